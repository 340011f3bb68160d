// Q2_K: 16 sub-blocks of 16 weights, 2-bit codes, 4-bit scales and minima under a half scale
// each. Block of 84 bytes: 16 bytes of scale (low nibble) and minimum, 64 of codes, half d, half
// dmin.
#include "k_layout.h"
#include "panels.h"
#include "search_affine.h"

namespace kvant::KVANT_ISA {
namespace {

constexpr int kBytes = 84;
constexpr float kWidths[] = {1.4f, 1.7f, 2.0f, 2.2f, 2.4f, 2.6f, 2.8f, 3.0f, 3.2f, 3.4f, 3.7f};
using Grid = AffineGrid<16, 3, 15, 2, kWidths>;

void layout(const uint8_t* codes, const Scales* s, uint8_t* out, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k) {
    uint8_t* block = out + k * kBytes;
    for (int j = 0; j < 16; ++j) block[j] = uint8_t(s[k].sub[j] | s[k].submin[j] << 4);
    pack_pair_runs(codes + k * 256, block + 16);
    store_half(block + 80, s[k].d);
    store_half(block + 82, s[k].dmin);
  }
}

void unlayout(const uint8_t* in, uint8_t* codes, Scales* s, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k) {
    const uint8_t* block = in + k * kBytes;
    for (int j = 0; j < 16; ++j) {
      s[k].sub[j] = int8_t(block[j] & 15);
      s[k].submin[j] = block[j] >> 4;
    }
    unpack_pair_runs(block + 16, codes + k * 256);
    s[k].d = load_half(block + 80);
    s[k].dmin = load_half(block + 82);
  }
}

using Panel = Format<2, 0, 256, 16, 0, SubScales::Nibbles, true>;

}  // namespace

extern const PackingKernels kQ2_K = {10, 256, kBytes, Grid::fit, Grid::encode,
                                     Grid::decode, layout, unlayout,
    &panel_kernels<Panel, kBytes, unlayout>};

}  // namespace kvant::KVANT_ISA
