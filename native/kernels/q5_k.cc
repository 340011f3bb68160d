// Q5_K: 8 sub-blocks of 32 weights, 5-bit codes, 6-bit scales and minima under a half scale
// each. Block of 176 bytes: half d, half dmin, 12 bytes of scales and minima, 32 of fifth bits,
// 128 of nibbles.
#include "k_layout.h"
#include "panels.h"
#include "search_affine.h"

namespace kvant::KVANT_ISA {
namespace {

constexpr int kBytes = 176;
constexpr float kWidths[] = {29.4f, 29.9f, 30.3f, 30.6f, 30.9f, 31.2f, 31.5f, 31.9f, 32.4f};
using Grid = AffineGrid<32, 31, 63, 1, kWidths>;

void layout(const uint8_t* codes, const Scales* s, uint8_t* out, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k) {
    uint8_t* block = out + k * kBytes;
    store_half(block, s[k].d);
    store_half(block + 2, s[k].dmin);
    pack_scales_and_minima(s[k], block + 4);
    pack_bit_planes(codes + k * 256, 4, block + 16);
    pack_nibble_runs(codes + k * 256, block + 48);
  }
}

void unlayout(const uint8_t* in, uint8_t* codes, Scales* s, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k) {
    const uint8_t* block = in + k * kBytes;
    clear(s + k);
    s[k].d = load_half(block);
    s[k].dmin = load_half(block + 2);
    unpack_scales_and_minima(block + 4, s + k);
    unpack_nibble_runs(block + 48, codes + k * 256);
    add_bit_planes(block + 16, 4, codes + k * 256);
  }
}

using Panel = Format<4, 1, 256, 32, 0, SubScales::SixBits, true>;

}  // namespace

extern const PackingKernels kQ5_K = {13, 256, kBytes, Grid::fit, Grid::encode,
                                     Grid::decode, layout, unlayout,
    &panel_kernels<Panel, kBytes, unlayout>};

}  // namespace kvant::KVANT_ISA
