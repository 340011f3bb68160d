// Q4_K: 8 sub-blocks of 32 weights, 4-bit codes, 6-bit scales and minima under a half scale
// each. Block of 144 bytes: half d, half dmin, 12 bytes of scales and minima, 128 of nibbles.
#include "k_layout.h"
#include "panels.h"
#include "search_affine.h"

namespace kvant::KVANT_ISA {
namespace {

constexpr int kBytes = 144;
constexpr float kWidths[] = {13.8f, 14.1f, 14.4f, 14.7f, 15.0f, 15.3f, 15.6f, 15.9f, 16.2f, 16.6f};
using Grid = AffineGrid<32, 15, 63, 1, kWidths>;

void layout(const uint8_t* codes, const Scales* s, uint8_t* out, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k) {
    uint8_t* block = out + k * kBytes;
    store_half(block, s[k].d);
    store_half(block + 2, s[k].dmin);
    pack_scales_and_minima(s[k], block + 4);
    pack_nibble_runs(codes + k * 256, block + 16);
  }
}

void unlayout(const uint8_t* in, uint8_t* codes, Scales* s, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k) {
    const uint8_t* block = in + k * kBytes;
    clear(s + k);
    s[k].d = load_half(block);
    s[k].dmin = load_half(block + 2);
    unpack_scales_and_minima(block + 4, s + k);
    unpack_nibble_runs(block + 16, codes + k * 256);
  }
}

using Panel = Format<4, 0, 256, 32, 0, SubScales::SixBits, true>;

}  // namespace

extern const PackingKernels kQ4_K = {12, 256, kBytes, Grid::fit, Grid::encode,
                                     Grid::decode, layout, unlayout,
    &panel_kernels<Panel, kBytes, unlayout>};

}  // namespace kvant::KVANT_ISA
