#include "limits.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "peaks.h"

namespace kvant {
namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Run `work(thread)` over and over in every thread for `seconds`, all of them beginning together;
// it returns how much it did. The sum over threads of what each did in a second.
template <class Work>
double rate(int threads, double seconds, Work work) {
  std::atomic<int> waiting{threads};
  std::vector<double> rates(size_t(threads), 0.0);
  auto body = [&](int thread) {
    double done = work(thread);  // pages, clocks and wide units wake up here; it does not count
    waiting.fetch_sub(1);
    while (waiting.load() > 0) std::this_thread::yield();
    const auto start = Clock::now();
    done = 0;
    double passed = 0;
    do {
      done += work(thread);
      passed = since(start);
    } while (passed < seconds);
    rates[size_t(thread)] = done / passed;
  };
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(body, t);
  body(0);
  for (auto& t : others) t.join();
  double sum = 0;
  for (double r : rates) sum += r;
  return sum;
}

// Keeps the compiler from leaving out what nobody looks at.
std::atomic<uint64_t> sink{0};

}  // namespace

double read_bandwidth(const uint8_t* data, size_t bytes, int threads, double seconds) {
  threads = std::max(1, threads);
  constexpr size_t kPiece = size_t(1) << 20;  // a clock reading for each costs nothing
  const size_t pieces = bytes / kPiece / size_t(threads);
  if (pieces == 0) return 0;
  std::vector<size_t> next(size_t(threads) * 16, 0);  // a cache line apart
  const auto read = best_reader();
  return rate(threads, seconds, [&](int thread) {
    size_t& at = next[size_t(thread) * 16];
    const uint8_t* piece = data + (size_t(thread) * pieces + at) * kPiece;
    at = at + 1 == pieces ? 0 : at + 1;
    sink.fetch_add(read(piece, kPiece), std::memory_order_relaxed);
    return double(kPiece);
  });
}

double arithmetic_peak(Arithmetic kind, int threads, double seconds) {
  const Peak peak = best_peak(kind);
  if (!peak.run) return 0;
  constexpr int64_t kRounds = 20000;
  return rate(std::max(1, threads), seconds, [&](int) {
    sink.fetch_add(peak.run(kRounds), std::memory_order_relaxed);
    return peak.operations * double(kRounds);
  });
}

}  // namespace kvant
