// IQ4_NL: 4-bit codes of uneven levels with one scale per 32 weights.
// Block of 18 bytes: half d, 16 bytes of nibbles.
#include "book.h"
#include "panels.h"
#include "plain.h"

namespace kvant::KVANT_ISA {
namespace {

constexpr int kBytes = 18;

using Grid = FlatBookGrid<Iq4, kIq4Widths>;

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

using Panel = Format<4, 0, 32, 32, 128, SubScales::None, false, LevelBytes<Iq4, 128>>;

}  // namespace

extern const PackingKernels kIQ4_NL = {20, 32, kBytes, Grid::fit, Grid::encode,
                                       Grid::decode, layout, unlayout,
    &panel_kernels<Panel, kBytes, unlayout>, Iq4::kLevels};

}  // namespace kvant::KVANT_ISA
