// Q4_1: 4-bit codes with a scale and a minimum per 32 weights.
// Block of 20 bytes: half d, half m, 16 bytes of nibbles.
#include "panels.h"
#include "plain.h"

namespace kvant::KVANT_ISA {
namespace {

constexpr int kBytes = 20;

using Grid = PlainAffineGrid<15>;

void layout(const uint8_t* codes, const Scales* s, uint8_t* out, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k) {
    uint8_t* block = out + k * kBytes;
    store_half(block, s[k].d);
    store_half(block + 2, s[k].dmin);
    pack_nibbles(codes + k * 32, block + 4);
  }
}

void unlayout(const uint8_t* in, uint8_t* codes, Scales* s, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k) {
    const uint8_t* block = in + k * kBytes;
    clear(s + k);
    s[k].d = load_half(block);
    s[k].dmin = load_half(block + 2);
    unpack_nibbles(block + 4, codes + k * 32);
  }
}

using Panel = Format<4, 0, 32, 32, 0, SubScales::None, true>;

}  // namespace

extern const PackingKernels kQ4_1 = {3, 32, kBytes, Grid::fit, Grid::encode,
                                     Grid::decode, layout, unlayout,
    &panel_kernels<Panel, kBytes, unlayout>};

}  // namespace kvant::KVANT_ISA
