#include "feedback.h"

#include <algorithm>
#include <cmath>
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
      : column_(c), count_(c.even ? 2 : c.count), block_(c.width()),
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
    return {values_.data(), count_, column_.count - 1};
  }

 private:
  const BlockColumn& column_;
  const int count_;
  const int64_t block_;
  std::vector<float> values_;
  std::vector<uint8_t> codes_;
};

// Upper triangular, rows of eight, of which `n` count.
struct Small {
  double at[64] = {};
  double& operator()(int i, int j) { return at[i * 8 + j]; }
};

Small upper_inverse(Small u, int n) {
  Small out;
  for (int j = 0; j < n; ++j) {
    out(j, j) = 1.0 / u(j, j);
    for (int i = j - 1; i >= 0; --i) {
      double sum = 0;
      for (int k = i + 1; k <= j; ++k) sum += u(i, k) * out(k, j);
      out(i, j) = -sum / u(i, i);
    }
  }
  return out;
}

// Upper L with m = L L^T.
Small upper_root(Small m, int n) {
  Small out;
  for (int j = n - 1; j >= 0; --j)
    for (int i = j; i >= 0; --i) {
      double sum = m(i, j);
      for (int k = j + 1; k < n; ++k) sum -= out(i, k) * out(j, k);
      out(i, j) = i == j ? std::sqrt(std::max(sum, 1e-30)) : sum / out(j, j);
    }
  return out;
}

// Forms of units of `n` weights in groups of `group`, from the factor's diagonal block.
UnitForm form_of(Small factor, int n, int group) {
  UnitForm form = {};
  for (int g = 0; g < n / group; ++g) {
    Small own;
    for (int i = 0; i < group; ++i)
      for (int j = i; j < group; ++j) own(i, j) = factor(g * group + i, g * group + j);
    own = upper_inverse(own, group);
    for (int i = 0; i < group; ++i)
      for (int j = 0; j < group; ++j) {
        double sum = 0;
        for (int k = std::max(i, j); k < group; ++k) sum += own(i, k) * own(j, k);
        form.group[g].square[i * 8 + j] = float(sum);
        form.group[g].inverse[i * 8 + j] = float(own(i, j));
      }
  }
  if (n > group)
    for (int i = 0; i < group; ++i)
      for (int j = 0; j < group; ++j) form.cross[i * group + j] = float(factor(i, group + j));
  return form;
}

std::vector<UnitForm> forms_to_carry(const PackingKernels& p, const float* factor, const float* inverse) {
  std::vector<UnitForm> forms;
  for (int at = 0; at < p.block; at += p.group) {
    Small own;
    for (int i = 0; i < p.group; ++i) {
      own(i, i) = 1.0 / inverse[at + i];
      for (int j = i + 1; j < p.group; ++j) own(i, j) = factor[(at + i) * p.block + at + j];
    }
    forms.push_back(form_of(own, p.group, p.point));
  }
  return forms;
}

std::vector<UnitForm> forms_to_descend(const PackingKernels& p, const float* moments) {
  std::vector<UnitForm> forms;
  for (int at = 0; at < p.block; at += p.group) {
    Small own;
    for (int i = 0; i < p.group; ++i)
      for (int j = i; j < p.group; ++j) own(i, j) = moments[(at + i) * p.block + at + j];
    own = upper_inverse(upper_root(own, p.group), p.group);
    forms.push_back(form_of(own, p.group, p.point));
    for (int i = 0; i < p.group; ++i)
      for (int j = 0; j < p.group; ++j) {
        double sum = 0;
        for (int k = 0; k <= std::min(i, j); ++k) sum += own(k, i) * own(k, j);
        forms.back().solved[i * 8 + j] = float(sum);
      }
  }
  return forms;
}

}  // namespace

void carry_rows(const BlockColumn& c, float* w, int64_t stride, const float* factor,
                const float* inverse, float* error, int threads) {
  const FeedbackKernels& kernels = *current_isa().feedback;
  const int64_t block = c.width();
  if (c.packing && c.packing->carry_units) {
    const std::vector<UnitForm> forms = forms_to_carry(*c.packing, factor, inverse);
    over_rows(c.rows, threads, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row)
        c.packing->carry_units(c.scales[row], forms.data(), w + row * stride, factor, inverse,
                               c.codes + row * block, error + row * block);
    });
    return;
  }
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
  if (c.packing && c.packing->descend_units) {
    const std::vector<UnitForm> forms = forms_to_descend(*c.packing, moments);
    over_rows(c.rows, threads, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row)
        c.packing->descend_units(c.scales[row], forms.data(), q + row * stride, r + row * stride,
                                 moments, c.codes + row * block, change + row * block);
    });
    return;
  }
  over_rows(c.rows, threads, [&](int64_t first, int64_t last) {
    RowLevels levels(c);
    for (int64_t row = first; row < last; ++row)
      kernels.descend(levels.of(row), block, q + row * stride, r + row * stride, moments, inverse,
                      c.codes + row * block, change + row * block);
  });
}

}  // namespace kvant
