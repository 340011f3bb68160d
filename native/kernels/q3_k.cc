// Q3_K: 16 sub-blocks of 16 weights, signed 3-bit codes, signed 6-bit scales under one half
// scale. Block of 110 bytes: 32 bytes of third bits, 64 of low bits, 12 of scales, half d.
#include "k_layout.h"
#include "panels.h"
#include "search_symmetric.h"

namespace kvant::KVANT_ISA {
namespace {

constexpr int kBytes = 110;
constexpr float kWidths[] = {-5.0f, -4.6f, -4.3f, -4.0f, -3.7f, -3.4f, -3.1f, -2.8f, -2.5f, -2.2f, 2.2f,
                             2.5f, 2.8f, 3.1f, 3.4f, 3.7f, 4.0f, 4.3f};
using Grid = SymmetricGrid<4, 32, true, 1, kWidths>;

// Sixteen 6-bit scales, stored plus 32, in 12 bytes: byte i of the first eight holds the low
// nibbles of scales i and i + 8; byte 8 + i holds the top two bits of scales i, i + 4, i + 8, i + 12.
void pack_scales(const int8_t* sub, uint8_t* out) {
  uint8_t v[16];
  for (int j = 0; j < 16; ++j) v[j] = uint8_t(sub[j] + 32);
  for (int i = 0; i < 8; ++i) out[i] = uint8_t((v[i] & 15) | (v[i + 8] & 15) << 4);
  for (int i = 0; i < 4; ++i)
    out[8 + i] = uint8_t(v[i] >> 4 | (v[i + 4] >> 4) << 2 | (v[i + 8] >> 4) << 4 |
                         (v[i + 12] >> 4) << 6);
}

void unpack_scales(const uint8_t* in, int8_t* sub) {
  for (int j = 0; j < 16; ++j) {
    const int low = j < 8 ? in[j] & 15 : in[j - 8] >> 4;
    const int high = in[8 + j % 4] >> (2 * (j / 4)) & 3;
    sub[j] = int8_t((low | high << 4) - 32);
  }
}

void layout(const uint8_t* codes, const Scales* s, uint8_t* out, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k) {
    uint8_t* block = out + k * kBytes;
    pack_bit_planes(codes + k * 256, 2, block);
    pack_pair_runs(codes + k * 256, block + 32);
    pack_scales(s[k].sub, block + 96);
    store_half(block + 108, s[k].d);
  }
}

void unlayout(const uint8_t* in, uint8_t* codes, Scales* s, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k) {
    const uint8_t* block = in + k * kBytes;
    clear(s + k);
    unpack_pair_runs(block + 32, codes + k * 256);
    add_bit_planes(block, 2, codes + k * 256);
    unpack_scales(block + 96, s[k].sub);
    s[k].d = load_half(block + 108);
  }
}

using Panel = Format<2, 1, 256, 16, 4, SubScales::SixBitsSigned, false>;

}  // namespace

extern const PackingKernels kQ3_K = {11, 256, kBytes, Grid::fit, Grid::encode,
                                     Grid::decode, layout, unlayout,
    &panel_kernels<Panel, kBytes, unlayout>};

}  // namespace kvant::KVANT_ISA
