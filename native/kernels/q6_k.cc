// Q6_K: 16 sub-blocks of 16 weights, signed 6-bit codes, signed 8-bit scales under one half
// scale. Block of 210 bytes: 128 bytes of low nibbles, 64 of high pairs, 16 of scales, half d.
// In each run of 128 codes, byte i of the nibbles holds codes i and i + 64, byte 32 + i codes
// i + 32 and i + 96; byte i of the pairs holds codes i, i + 32, i + 64, i + 96.
#include "k_layout.h"
#include "panels.h"
#include "search_symmetric.h"

namespace kvant::KVANT_ISA {
namespace {

constexpr int kBytes = 210;
constexpr float kWidths[] = {-32.35f, -31.9f, -31.0f, -30.1f, -29.05f};
using Grid = SymmetricGrid<32, 128, false, 0, kWidths>;

void layout(const uint8_t* codes, const Scales* s, uint8_t* out, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k) {
    uint8_t* block = out + k * kBytes;
    for (int r = 0; r < 2; ++r)
      for (int i = 0; i < 32; ++i) {
        const uint8_t* c = codes + k * 256 + r * 128 + i;
        block[r * 64 + i] = uint8_t((c[0] & 15) | (c[64] & 15) << 4);
        block[r * 64 + 32 + i] = uint8_t((c[32] & 15) | (c[96] & 15) << 4);
        block[128 + r * 32 + i] =
            uint8_t(c[0] >> 4 | (c[32] >> 4) << 2 | (c[64] >> 4) << 4 | (c[96] >> 4) << 6);
      }
    std::memcpy(block + 192, s[k].sub, 16);
    store_half(block + 208, s[k].d);
  }
}

void unlayout(const uint8_t* in, uint8_t* codes, Scales* s, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k) {
    const uint8_t* block = in + k * kBytes;
    clear(s + k);
    for (int r = 0; r < 2; ++r)
      for (int i = 0; i < 32; ++i) {
        uint8_t* c = codes + k * 256 + r * 128 + i;
        const uint8_t a = block[r * 64 + i], b = block[r * 64 + 32 + i];
        const uint8_t high = block[128 + r * 32 + i];
        c[0] = uint8_t((a & 15) | (high & 3) << 4);
        c[32] = uint8_t((b & 15) | (high >> 2 & 3) << 4);
        c[64] = uint8_t(a >> 4 | (high >> 4 & 3) << 4);
        c[96] = uint8_t(b >> 4 | (high >> 6) << 4);
      }
    std::memcpy(s[k].sub, block + 192, 16);
    s[k].d = load_half(block + 208);
  }
}

using Panel = Format<4, 2, 256, 16, 32, SubScales::Bytes, false>;

}  // namespace

extern const PackingKernels kQ6_K = {14, 256, kBytes, Grid::fit, Grid::encode,
                                     Grid::decode, layout, unlayout,
    &panel_kernels<Panel, kBytes, unlayout>};

}  // namespace kvant::KVANT_ISA
