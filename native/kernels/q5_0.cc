// Q5_0: signed 5-bit codes with one scale per 32 weights.
// Block of 22 bytes: half d, 4 bytes of fifth bits, 16 bytes of nibbles.
#include "panels.h"
#include "plain.h"

namespace kvant::KVANT_ISA {
namespace {

constexpr int kBytes = 22;

using Grid = PlainSymmetricGrid<16>;

void layout(const uint8_t* codes, const Scales* s, uint8_t* out, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k) {
    uint8_t* block = out + k * kBytes;
    store_half(block, s[k].d);
    pack_fifth_bits(codes + k * 32, block + 2);
    pack_nibbles(codes + k * 32, block + 6);
  }
}

void unlayout(const uint8_t* in, uint8_t* codes, Scales* s, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k) {
    const uint8_t* block = in + k * kBytes;
    clear(s + k);
    s[k].d = load_half(block);
    unpack_nibbles(block + 6, codes + k * 32);
    add_fifth_bits(block + 2, codes + k * 32);
  }
}

using Panel = Format<4, 1, 32, 32, 16, SubScales::None, false>;

}  // namespace

extern const PackingKernels kQ5_0 = {6, 32, kBytes, Grid::fit, Grid::encode,
                                     Grid::decode, layout, unlayout,
    &panel_kernels<Panel, kBytes, unlayout>};

}  // namespace kvant::KVANT_ISA
