#include "score.h"

#include <algorithm>
#include <system_error>
#include <thread>

#include "cpu.h"

namespace kvant {
namespace {

// Calls `work(part)` for each part of `parts`, on as many threads; where no more can be started, on
// fewer. `work` must not throw.
template <class Work>
void on_threads(int parts, const Work& work) {
  std::vector<std::thread> started;
  int part = 1;
  try {
    for (started.reserve(size_t(parts)); part < parts; ++part)
      started.emplace_back([&work, part] { work(part); });
  } catch (const std::system_error&) {
    for (; part < parts; ++part) work(part);
  }
  work(0);
  for (std::thread& thread : started) thread.join();
}

// What one thread works in.
struct Scratch {
  explicit Scratch(size_t models)
      : logits(models), sums(models), nll(models), kld(models), same(models) {}
  std::vector<const float*> logits;
  std::vector<ScoreSums> sums;
  std::vector<double> nll, kld;
  std::vector<uint8_t> same;
  NotFinite bad{false, 0, 0};
};

// Below so many logits a thread is busy for less time than it takes to start.
constexpr int64_t kWorthAThread = 1 << 17;

}  // namespace

NotFinite score_rows(const ScoreTask& task, int threads) {
  const Isa& isa = current_isa();
  const int models = int(task.logits.size());
  const int64_t total = task.rows * task.vocab * models;
  const int64_t most = std::min(std::max<int64_t>(1, total / kWorthAThread), task.rows);
  const int parts = int(std::clamp<int64_t>(threads, 1, std::max<int64_t>(1, most)));
  // All that the threads need is made here, where running out of memory can be told.
  std::vector<Scratch> scratch(size_t(parts), Scratch(task.logits.size()));
  on_threads(parts, [&](int part) {
    Scratch& s = scratch[size_t(part)];
    const int64_t end = task.rows * (part + 1) / parts;
    for (int64_t row = task.rows * part / parts; row < end; ++row) {
      for (size_t m = 0; m < s.logits.size(); ++m)
        s.logits[m] = task.logits[m] + row * task.vocab;
      const int model = isa.score_row(s.logits.data(), models, task.vocab, task.targets[row],
                                      s.sums.data(), s.nll.data(), s.kld.data(), s.same.data());
      if (model >= 0) {
        s.bad = {true, row, model};
        return;
      }
      for (int m = 0; m < models; ++m) task.nll[m * task.rows + row] = s.nll[size_t(m)];
      for (int m = 0; m + 1 < models; ++m) {
        task.kld[m * task.rows + row] = s.kld[size_t(m)];
        task.same[m * task.rows + row] = s.same[size_t(m)];
      }
    }
  });
  for (const Scratch& s : scratch)
    if (s.bad.found) return s.bad;  // parts are in the order of rows
  return {false, 0, 0};
}

}  // namespace kvant
