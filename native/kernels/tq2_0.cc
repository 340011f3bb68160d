// TQ2_0: ternary codes in two bits with one scale per 256 weights. Block of 66 bytes: 64 of pairs,
// half d.
#include "k_layout.h"
#include "panels.h"
#include "ternary.h"

namespace kvant::KVANT_ISA {
namespace {

constexpr int kBytes = 66;

using Grid = TernaryGrid;

void layout(const uint8_t* codes, const Scales* s, uint8_t* out, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k) {
    pack_pair_runs(codes + k * 256, out + k * kBytes);
    store_half(out + k * kBytes + 64, s[k].d);
  }
}

void unlayout(const uint8_t* in, uint8_t* codes, Scales* s, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k) {
    clear(s + k);
    s[k].d = load_half(in + k * kBytes + 64);
    unpack_pair_runs(in + k * kBytes, codes + k * 256);
  }
}

using Panel = Format<2, 0, 256, 256, 1, SubScales::None, false>;

}  // namespace

extern const PackingKernels kTQ2_0 = {35, 256, kBytes, Grid::fit, Grid::encode,
                                      Grid::decode, layout, unlayout,
    &panel_kernels<Panel, kBytes, unlayout>};

}  // namespace kvant::KVANT_ISA
