#include "rows.h"

#include <cstring>
#include <vector>

#include "cpu.h"

namespace kvant {
namespace {

// Weights worked on at a time: whole blocks of every packing, and its buffers stay in first-level
// cache (8 KiB of floats beside 2 KiB of codes).
constexpr int64_t kRun = 2048;

const PackingKernels* find(const Isa& isa, int type) {
  for (const PackingKernels* const* p = isa.packings; *p; ++p)
    if ((*p)->id == type) return *p;
  return nullptr;
}

int64_t bytes_of(int type, int64_t n) {
  const BlockShape s = block_shape(type);
  return n / s.elements * s.bytes;
}

// The largest weight a type holds; the packings keep scales in half precision. For bfloat16 it is the
// largest single that rounding does not carry to infinity.
float largest_of(int type) {
  if (type == kF32) return 0x1.fffffep127f;
  return type == kBF16 ? 0x1.fefffep127f : 65504.0f;
}

// Decodes and encodes runs of at most kRun weights; holds the scratch for it.
class Codec {
 public:
  Codec(const Isa& isa, int type) : isa_(isa), type_(type), packing_(find(isa, type)) {
    if (packing_) {
      codes_.resize(kRun);
      scales_.resize(size_t(kRun / packing_->block));
    }
  }

  void decode(const uint8_t* in, float* out, int64_t n) {
    switch (type_) {
      case kF32: std::memcpy(out, in, size_t(n) * 4); return;
      case kF16: isa_.from_f16(in, out, n); return;
      case kBF16: isa_.from_bf16(in, out, n); return;
      default: break;
    }
    const int64_t blocks = n / packing_->block;
    packing_->unlayout(in, codes_.data(), scales_.data(), blocks);
    packing_->decode(codes_.data(), scales_.data(), out, blocks);
  }

  void encode(const float* in, const float* importance, uint8_t* out, int64_t n) {
    switch (type_) {
      case kF32: std::memcpy(out, in, size_t(n) * 4); return;
      case kF16: isa_.to_f16(in, out, n); return;
      case kBF16: isa_.to_bf16(in, out, n); return;
      default: break;
    }
    const int64_t blocks = n / packing_->block;
    packing_->fit(in, importance, scales_.data(), blocks);
    if (importance && packing_->encode_weighted)
      packing_->encode_weighted(in, importance, scales_.data(), codes_.data(), blocks);
    else
      packing_->encode(in, scales_.data(), codes_.data(), blocks);
    packing_->layout(codes_.data(), scales_.data(), out, blocks);
  }

 private:
  const Isa& isa_;
  int type_;
  const PackingKernels* packing_;
  std::vector<uint8_t> codes_;
  std::vector<Scales> scales_;
};

}  // namespace

BlockShape block_shape(int type) {
  switch (type) {
    case kF32: return {1, 4};
    case kF16:
    case kBF16: return {1, 2};
    default: break;
  }
  const PackingKernels* p = find(current_isa(), type);
  return p ? BlockShape{p->block, p->block_bytes} : BlockShape{0, 0};
}

void decode_rows(int type, const uint8_t* in, float* out, int64_t rows, int64_t columns) {
  Codec codec(current_isa(), type);
  const int64_t total = rows * columns;  // rows hold whole blocks, so they may be run together
  for (int64_t o = 0; o < total; o += kRun)
    codec.decode(in + bytes_of(type, o), out + o, total - o < kRun ? total - o : kRun);
}

BadValue convert_rows(int from, int to, const uint8_t* in, uint8_t* out, int64_t rows,
                      int64_t columns, const float* importance) {
  const Isa& isa = current_isa();
  Codec source(isa, from), target(isa, to);
  std::vector<float> x(kRun);
  const float limit = largest_of(to);
  const int64_t total = rows * columns;
  for (int64_t row = 0, o = 0; o < total;) {
    // Without importance rows may be run together; with it a run must not cross a row's end.
    const int64_t end = importance ? (row + 1) * columns : total;
    const int64_t n = end - o < kRun ? end - o : kRun;
    const uint8_t* stored = in + bytes_of(from, o);
    source.decode(stored, x.data(), n);
    const bool fine = from == kBF16 && !isa.bf16_beyond(stored, n, limit);
    const int64_t bad = fine ? -1 : isa.first_beyond(x.data(), n, limit);
    if (bad >= 0) return {true, (o + bad) / columns, (o + bad) % columns, x[size_t(bad)]};
    target.encode(x.data(), importance ? importance + (o - row * columns) : nullptr,
                  out + bytes_of(to, o), n);
    o += n;
    if (importance && o == end) ++row;
  }
  return {false, 0, 0, 0.0f};
}

}  // namespace kvant
