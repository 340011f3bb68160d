// Q4_0: signed 4-bit codes with one scale per 32 weights.
// Block of 18 bytes: half d, 16 bytes of nibbles.
#include "panels.h"
#include "plain.h"

namespace kvant::KVANT_ISA {
namespace {

constexpr int kBytes = 18;

using Grid = PlainSymmetricGrid<8>;

void layout(const uint8_t* codes, const Scales* s, uint8_t* out, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k) {
    uint8_t* block = out + k * kBytes;
    store_half(block, s[k].d);
    pack_nibbles(codes + k * 32, block + 2);
  }
}

void unlayout(const uint8_t* in, uint8_t* codes, Scales* s, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k) {
    const uint8_t* block = in + k * kBytes;
    clear(s + k);
    s[k].d = load_half(block);
    unpack_nibbles(block + 2, codes + k * 32);
  }
}

using Panel = Format<4, 0, 32, 32, 8, SubScales::None, false>;

}  // namespace

extern const PackingKernels kQ4_0 = {2, 32, kBytes, Grid::fit, Grid::encode,
                                     Grid::decode, layout, unlayout,
    &panel_kernels<Panel, kBytes, unlayout>};

}  // namespace kvant::KVANT_ISA
