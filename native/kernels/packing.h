// What a packing's kernel file offers. One file a packing; compiled once per instruction set.
#pragma once

#include <cstdint>

#include "feedback.h"
#include "groups.h"
#include "panel.h"
#include "rowops.h"
#include "score.h"
#include "vocab.h"

namespace kvant {

// The scales of one block, as `fit` finds them and `encode` and `layout` use them. The NumPy
// specification has the same record (kvant.packing.spec.SCALES). Packings without sub-blocks leave
// `sub` and `submin` zero, and keep `d` and `dmin` in single precision until they are laid out; with
// sub-blocks both are values that half precision represents exactly.
struct Scales {
  float d;
  float dmin;
  int8_t sub[16];
  uint8_t submin[16];
};
static_assert(sizeof(Scales) == 40);

struct PackingKernels {
  int id;           // ggml's type number
  int block;        // weights in a block
  int block_bytes;  // bytes of a packed block
  // x [blocks * block]; w the same length, or null for equal weights.
  void (*fit)(const float* x, const float* w, Scales* scales, int64_t blocks);
  void (*encode)(const float* x, const Scales* scales, uint8_t* codes, int64_t blocks);
  void (*decode)(const uint8_t* codes, const Scales* scales, float* y, int64_t blocks);
  void (*layout)(const uint8_t* codes, const Scales* scales, uint8_t* out, int64_t blocks);
  void (*unlayout)(const uint8_t* in, uint8_t* codes, Scales* scales, int64_t blocks);
  const PanelKernels* panels;  // how the engine multiplies it
  // What each code stands for, in steps of its scale, where that is not evenly spaced: for methods
  // that choose codes themselves. Null where a code's distance from its zero is what it stands for.
  const int8_t* levels = nullptr;
  // Where codes are of groups of weights, and importance decides among them; else null. The second
  // has a scale and a shift for each group of its own.
  void (*encode_weighted)(const float* x, const float* w, const Scales* scales, uint8_t* codes,
                          int64_t blocks) = nullptr;
  void (*encode_groups)(const float* x, const float* w, const float* scales, const uint8_t* low,
                        uint8_t* codes, int64_t groups) = nullptr;
  int group = 1;  // weights encoded together
  int point = 1;  // of them, those of one point
  // Their error feedback and descent.
  CarryUnits carry_units = nullptr;
  DescendUnits descend_units = nullptr;
};

// One per instruction set: a null-terminated list of packings, and work on runs of plain floats.
struct Isa {
  const char* name;
  const PackingKernels* const* packings;
  void (*from_f16)(const uint8_t* in, float* out, int64_t n);
  void (*from_bf16)(const uint8_t* in, float* out, int64_t n);
  void (*to_f16)(const float* in, uint8_t* out, int64_t n);
  void (*to_bf16)(const float* in, uint8_t* out, int64_t n);
  // Index of the first value that is not finite or larger in magnitude than `limit`, or -1.
  int64_t (*first_beyond)(const float* x, int64_t n, float limit);
  // Whether any of n bfloat16 values is; half the bytes to look at.
  bool (*bf16_beyond)(const uint8_t* in, int64_t n, float limit);
  // Panels of float weights by ggml's type number (null for others), and activations for all panels.
  const PanelKernels* (*float_panels)(int type);
  PrepareTile prepare_tile;
  const RowKernels* rows;  // what the engine does between matrix products
  ScoreRow score_row;  // logits scored, for evaluation
  const VocabKernels* vocab;  // logits sampled from
  const FeedbackKernels* feedback;  // codes chosen column by column
  const GroupKernels* groups;  // scales and codes of formats that keep both apart
};

}  // namespace kvant
