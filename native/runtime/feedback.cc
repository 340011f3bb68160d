#include "feedback.h"

#include <algorithm>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

#include "cpu.h"

namespace kvant {
namespace {

// Below so many rows a thread is busy for less time than it takes to start.
constexpr int64_t kWorthAThread = 64;

// Calls `work(first, last)` for parts of the rows. What a row gets does not depend on its part.
template <class Work>
void over_rows(int64_t rows, int threads, const Work& work) {
  const int64_t most = std::max<int64_t>(1, rows / kWorthAThread);
  const int parts = int(std::clamp<int64_t>(threads, 1, most));
  std::vector<std::thread> started;
  int part = 1;
  try {
    for (started.reserve(size_t(parts)); part < parts; ++part)
      started.emplace_back([&, part] { work(rows * part / parts, rows * (part + 1) / parts); });
  } catch (const std::system_error&) {
    for (; part < parts; ++part) work(rows * part / parts, rows * (part + 1) / parts);
  }
  work(0, rows / parts);
  for (std::thread& thread : started) thread.join();
}

// The levels of a row's block: what the packing makes of a block that has one code everywhere, or
// the same at every place.
class RowLevels {
 public:
  explicit RowLevels(const BlockColumn& c)
      : column_(c), count_(c.even ? 2 : 1 << c.bits), block_(c.width()),
        values_(size_t(count_ * block_)), codes_(size_t(block_)) {}

  Levels of(int64_t row) {
    for (int c = 0; c < count_; ++c) {
      if (!column_.packing) {
        const float level = column_.table ? column_.table[c] : float(c);
        const float value = column_.base[row] + column_.step[row] * level;
        std::fill_n(values_.begin() + c * block_, block_, value);
        continue;
      }
      std::memset(codes_.data(), c, codes_.size());
      column_.packing->decode(codes_.data(), column_.scales + row, values_.data() + c * block_, 1);
    }
    return {values_.data(), count_, (1 << column_.bits) - 1};
  }

 private:
  const BlockColumn& column_;
  const int count_;
  const int64_t block_;
  std::vector<float> values_;
  std::vector<uint8_t> codes_;
};

}  // namespace

void carry_rows(const BlockColumn& c, float* w, int64_t stride, const float* factor,
                const float* inverse, float* error, int threads) {
  const FeedbackKernels& kernels = *current_isa().feedback;
  const int64_t block = c.width();
  over_rows(c.rows, threads, [&](int64_t first, int64_t last) {
    RowLevels levels(c);
    for (int64_t row = first; row < last; ++row)
      kernels.carry(levels.of(row), block, w + row * stride, factor, inverse,
                    c.codes + row * block, error + row * block);
  });
}

void descend_rows(const BlockColumn& c, float* q, float* r, int64_t stride, const float* moments,
                  const float* inverse, float* change, int threads) {
  const FeedbackKernels& kernels = *current_isa().feedback;
  const int64_t block = c.width();
  over_rows(c.rows, threads, [&](int64_t first, int64_t last) {
    RowLevels levels(c);
    for (int64_t row = first; row < last; ++row)
      kernels.descend(levels.of(row), block, q + row * stride, r + row * stride, moments, inverse,
                      c.codes + row * block, change + row * block);
  });
}

}  // namespace kvant
