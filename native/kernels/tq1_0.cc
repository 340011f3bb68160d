// TQ1_0: ternary codes, five to a byte, with one scale per 256 weights. Block of 54 bytes: 32 with
// five codes each (code n of byte m is code 32 n + m), 16 with five, 4 with four, half d. A byte is its
// codes' number in base three as a fraction of 243, in 256ths, rounded up: the codes come out by
// multiplication.
//
// The engine holds two bits a code, as TQ2_0 does: five to a byte take longer to unpack than the
// bytes saved take to read.
#include "panels.h"
#include "ternary.h"

namespace kvant::KVANT_ISA {
namespace {

constexpr int kBytes = 54;

using Grid = TernaryGrid;

template <int WIDTH, int DIGITS>
void pack_run(const uint8_t* codes, uint8_t* out) {
  for (int m = 0; m < WIDTH; ++m) {
    int value = 0;
    for (int n = 0; n < 5; ++n) value = 3 * value + (n < DIGITS ? codes[n * WIDTH + m] : 0);
    out[m] = uint8_t((value * 256 + 242) / 243);
  }
}

template <int WIDTH, int DIGITS>
void unpack_run(const uint8_t* in, uint8_t* codes) {
  for (int m = 0; m < WIDTH; ++m) {
    uint8_t rest = in[m];
    for (int n = 0; n < DIGITS; ++n, rest = uint8_t(rest * 3))
      codes[n * WIDTH + m] = uint8_t(rest * 3 >> 8);
  }
}

void layout(const uint8_t* codes, const Scales* s, uint8_t* out, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k, codes += 256, out += kBytes) {
    pack_run<32, 5>(codes, out);
    pack_run<16, 5>(codes + 160, out + 32);
    pack_run<4, 4>(codes + 240, out + 48);
    store_half(out + 52, s[k].d);
  }
}

void unlayout(const uint8_t* in, uint8_t* codes, Scales* s, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k, codes += 256, in += kBytes) {
    clear(s + k);
    s[k].d = load_half(in + 52);
    unpack_run<32, 5>(in, codes);
    unpack_run<16, 5>(in + 32, codes + 160);
    unpack_run<4, 4>(in + 48, codes + 240);
  }
}

using Panel = Format<2, 0, 256, 256, 1, SubScales::None, false>;

}  // namespace

extern const PackingKernels kTQ1_0 = {34, 256, kBytes, Grid::fit, Grid::encode,
                                      Grid::decode, layout, unlayout,
    &panel_kernels<Panel, kBytes, unlayout>};

}  // namespace kvant::KVANT_ISA
