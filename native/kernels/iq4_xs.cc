// IQ4_XS: 8 sub-blocks of 32 weights, 4-bit codes of uneven levels, signed 6-bit scales under one
// half scale. Block of 136 bytes: half d, 2 bytes of the scales' top two bits, 4 of their low
// nibbles, 128 of nibbles. Scales are stored plus 32.
#include "book.h"
#include "panels.h"
#include "plain.h"

namespace kvant::KVANT_ISA {
namespace {

constexpr int kBytes = 136;

using Grid = BookGrid<Iq4, kIq4Widths>;

void layout(const uint8_t* codes, const Scales* s, uint8_t* out, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k) {
    uint8_t* block = out + k * kBytes;
    store_half(block, s[k].d);
    uint8_t v[8];
    for (int j = 0; j < 8; ++j) v[j] = uint8_t(s[k].sub[j] + 32);
    for (int i = 0; i < 2; ++i)
      block[2 + i] = uint8_t(v[4 * i] >> 4 | v[4 * i + 1] >> 4 << 2 | v[4 * i + 2] >> 4 << 4 |
                             v[4 * i + 3] >> 4 << 6);
    for (int i = 0; i < 4; ++i) block[4 + i] = uint8_t((v[2 * i] & 15) | v[2 * i + 1] << 4);
    for (int j = 0; j < 8; ++j) pack_nibbles(codes + k * 256 + j * 32, block + 8 + j * 16);
  }
}

void unlayout(const uint8_t* in, uint8_t* codes, Scales* s, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k) {
    const uint8_t* block = in + k * kBytes;
    clear(s + k);
    s[k].d = load_half(block);
    for (int j = 0; j < 8; ++j) {
      const int low = block[4 + j / 2] >> (4 * (j % 2)) & 15;
      const int high = block[2 + j / 4] >> (2 * (j % 4)) & 3;
      s[k].sub[j] = int8_t((low | high << 4) - 32);
      unpack_nibbles(block + 8 + j * 16, codes + k * 256 + j * 32);
    }
  }
}

using Panel = Format<4, 0, 256, 32, 128, SubScales::EightSixBits, false, LevelBytes<Iq4, 128>>;

}  // namespace

extern const PackingKernels kIQ4_XS = {23, 256, kBytes, Grid::fit, Grid::encode,
                                       Grid::decode, layout, unlayout,
    &panel_kernels<Panel, kBytes, unlayout>, Iq4::kLevels};

}  // namespace kvant::KVANT_ISA
