// The kernels of every instruction set on this machine, against each other and against a digest that
// other machines print too. Runs without Python, so that a build for another processor can be run
// under an emulator (tests/packing/test_other_processors.py).
//
// Prints a line for each packing and instruction set: what was packed and what it decodes to, as
// CRC-32; these must be the same everywhere. Products, attention and row kernels fuse multiply and
// add where the machine can: they are compared with the scalar set's within a bound, and the exit
// status says whether it holds.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "runtime/cpu.h"
#include "runtime/rows.h"
#include "runtime/sampler.h"

using namespace kvant;

namespace {

constexpr int64_t kRows = 21, kColumns = 512;  // a panel and a part of one
constexpr double kBound = 1e-5;                // of the largest result
int failures = 0;

uint32_t crc32(const void* data, size_t n) {
  uint32_t c = 0xffffffffu;
  for (size_t i = 0; i < n; ++i) {
    c ^= static_cast<const uint8_t*>(data)[i];
    for (int k = 0; k < 8; ++k) c = (c >> 1) ^ (0xedb88320u & (0u - (c & 1)));
  }
  return ~c;
}

// Numbers that need no rounding: sums of four 16-bit integers over 2^16. NumPy makes the same ones.
struct Numbers {
  uint32_t state;
  float next() {
    int32_t sum = 0;
    for (int i = 0; i < 4; ++i) {
      state = state * 1664525u + 1013904223u;
      sum += int32_t(state >> 16) - 32768;
    }
    return float(sum) / 65536.0f;
  }
};

std::vector<float> numbers(uint32_t seed, size_t n) {
  Numbers from{seed};
  std::vector<float> out(n);
  for (float& x : out) x = from.next();
  return out;
}

struct Aligned {
  explicit Aligned(int64_t n) : size(n), data(static_cast<uint8_t*>(std::aligned_alloc(64, size_t((n + 127) / 64 * 64)))) {
    std::memset(data, 0, size_t(n));
  }
  ~Aligned() { std::free(data); }
  Aligned(const Aligned&) = delete;
  int64_t size;
  uint8_t* data;
};

using Results = std::vector<std::vector<float>>;

void product(const PanelKernels& k, const uint8_t* packed, int64_t row_bytes, Results& out) {
  const std::vector<float> x = numbers(7, size_t(kTile * kColumns));
  for (int tokens : {1, 3, kTile}) {
    const int width = tile_width(tokens);
    Aligned tile(act_layout(k.act, kColumns, width).bytes), panel(k.panel_bytes(kColumns));
    Aligned unpacked(k.unpacked_bytes(kColumns));
    const float* rows[kTile];
    for (int t = 0; t < tokens; ++t) rows[t] = x.data() + t * kColumns;
    current_isa().prepare_tile(k.act, rows, tokens, width, kColumns, tile.data);
    for (int64_t first = 0; first < kRows; first += kPanelRows) {
      const int n = int(kRows - first < kPanelRows ? kRows - first : kPanelRows);
      const uint8_t* from[kPanelRows] = {};
      for (int r = 0; r < n; ++r) from[r] = packed + (first + r) * row_bytes;
      k.interleave(from, n, kColumns, panel.data);
      std::vector<float> y(size_t(tokens) * kPanelRows), z(y.size());
      k.multiply(panel.data, kColumns, tile.data, width, tokens, y.data(), kPanelRows);
      out.push_back(y);
      if (width != kTile) continue;  // few tokens are multiplied straight from the panel
      k.unpack(panel.data, kColumns, unpacked.data);
      k.multiply_unpacked(unpacked.data, kColumns, tile.data, width, tokens, z.data(), kPanelRows);
      if (std::memcmp(y.data(), z.data(), y.size() * 4)) {
        std::printf("FAILED %s: unpacked panels give another product\n", current_isa().name);
        ++failures;
      }
    }
  }
}

void attention(Results& out) {
  const RowKernels& rows = *current_isa().rows;
  for (KvType type : {KvType::F16, KvType::Q8_0}) {
    const KvShape shape = {2, 80, type};
    const int64_t n = 70, width = 160, group = 3;
    const std::vector<float> k = numbers(1, size_t(n * width)), v = numbers(2, size_t(n * width));
    const std::vector<float> q = numbers(3, size_t(n * width * group));
    Aligned cache(3 * kv_block_bytes(shape)), scratch(attention_scratch(shape, int(group), n) * 4);
    const int32_t table[] = {2, 0, 1};
    rows.kv_write(shape, cache.data, table, 0, n, k.data(), width, v.data(), width, 0, 2);
    for (int head = 0; head < 2; ++head) {
      std::vector<float> y(size_t(n * group * 80));
      const Attention a = {shape, cache.data, table, 0, n, q.data() + head * group * 80, width * group,
                           head, int(group), 0.11f, head ? 20 : 0, head ? 5.0f : 0.0f};
      rows.attend(a, y.data(), group * 80, reinterpret_cast<float*>(scratch.data));
      out.push_back(y);
    }
  }
}

void row_kernels(Results& out) {
  const RowKernels& rows = *current_isa().rows;
  std::vector<float> x = numbers(11, 300), w = numbers(12, 300), y(300);
  rows.rms_norm(x.data(), w.data(), y.data(), 300, 1, 1e-5f);
  out.push_back(y);
  rows.swiglu(x.data(), w.data(), y.data(), 300);
  out.push_back(y);
  std::vector<float> turned = x;
  rows.rope(turned.data(), w.data(), w.data() + 50, 3, 100, 100);
  out.push_back(turned);
  float greatest;
  double sum;
  rows.log_sum_exp(x.data(), 300, &greatest, &sum);
  out.push_back({greatest, float(sum)});
  SamplerOptions options;
  options.top_k = 40;
  options.top_p = 0.9f;
  options.seed = 5;
  Sampler sampler(options, 4000);
  const std::vector<float> logits = numbers(13, 4000);
  for (int i = 0; i < 20; ++i) out.push_back({float(sampler.sample(logits.data()).token)});
}

void compare(const char* what, const Results& found, const Results& expected) {
  for (size_t i = 0; i < expected.size(); ++i) {
    double most = 1e-30, off = 0;
    for (size_t j = 0; j < expected[i].size(); ++j) {
      most = std::fmax(most, std::fabs(double(expected[i][j])));
      const double d = std::fabs(double(found[i][j]) - double(expected[i][j]));
      off = std::isnan(d) ? INFINITY : std::fmax(off, d);
    }
    if (off > kBound * most) {
      std::printf("FAILED %s %s: part %zu is off by %.3g of %.3g\n", current_isa().name, what, i, off, most);
      ++failures;
    }
  }
}

}  // namespace

int main() {
  const std::vector<float> weights = numbers(42, size_t(kRows * kColumns));
  std::vector<float> importance = numbers(43, size_t(kColumns));
  for (float& w : importance) w = w * w + 0.0625f;
  const auto isas = usable_isas();
  std::vector<Results> expected;
  Results expected_rows;
  for (auto isa = isas.rbegin(); isa != isas.rend(); ++isa) {  // scalar first
    select_isa((*isa)->name);
    size_t at = 0;
    for (const PackingKernels* const* p = (*isa)->packings; *p; ++p, ++at) {
      const PackingKernels& k = **p;
      const int64_t row_bytes = kColumns / k.block * k.block_bytes;
      uint32_t sums[4];
      std::vector<uint8_t> packed(size_t(kRows * row_bytes));
      std::vector<float> decoded(size_t(kRows * kColumns));
      for (int weighted = 0; weighted < 2; ++weighted) {
        convert_rows(kF32, k.id, reinterpret_cast<const uint8_t*>(weights.data()), packed.data(), kRows,
                     kColumns, weighted ? importance.data() : nullptr);
        decode_rows(k.id, packed.data(), decoded.data(), kRows, kColumns);
        sums[2 * weighted] = crc32(packed.data(), packed.size());
        sums[2 * weighted + 1] = crc32(decoded.data(), decoded.size() * 4);
      }
      std::printf("%s %d %08x %08x %08x %08x\n", (*isa)->name, k.id, sums[0], sums[1], sums[2], sums[3]);
      Results found;
      if (k.panels) product(*k.panels, packed.data(), row_bytes, found);
      if (at == expected.size()) expected.push_back(found);
      compare(("packing " + std::to_string(k.id)).c_str(), found, expected[at]);
    }
    Results found;
    attention(found);
    row_kernels(found);
    if (expected_rows.empty()) expected_rows = found;
    compare("rows", found, expected_rows);
  }
  return failures != 0;
}
