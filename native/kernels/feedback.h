// Codes chosen one column after the other, with what each costs the columns that share its inputs.
#pragma once

#include <cstdint>

namespace kvant {

// The levels that the codes of one block stand for, by place. `count` 2 means evenly spaced levels,
// base + step code with codes 0..most, given by the first two; more are listed one by one.
struct Levels {
  const float* values;  // [count, block]
  int count;
  int most;  // the largest code
};

// Error feedback through one block of a row (GPTQ, arXiv 2210.17323). For each column in order: the
// code nearest to the weight, then what rounding left, divided by the factor's diagonal, is taken
// off the columns to its right by the factor's row.
//   w        [block], the weights as they stand; afterwards each as it was when it was rounded
//   factor   [block, block], right of the diagonal the upper Cholesky factor of the inverse second
//            moments, zero elsewhere; inverse [block], 1 / its diagonal
//   codes    [block]; error [block], for the columns of later blocks
using CarryBlock = void (*)(const Levels& levels, int64_t block, float* w, const float* factor,
                            const float* inverse, uint8_t* codes, float* error);

// One sweep of coordinate descent over the codes of one block of a row, scales fixed.
//   q        [block], the weights that the codes stand for; updated
//   r        [block], half the gradient: (q - wanted) times the second moments; updated inside the
//            block only
//   moments  [block, block]; inverse [block], 1 / its diagonal
//   codes    [block], updated; change [block], new q minus old
using DescendBlock = void (*)(const Levels& levels, int64_t block, float* q, float* r,
                              const float* moments, const float* inverse, uint8_t* codes,
                              float* change);

// How the errors of a few weights whose codes are chosen together add up: of a group of weights (of
// eight or four) they are |(q - w) inverse|^2 = (q - w) square (q - w)^T. Matrices have rows of eight.
struct GroupForm {
  float inverse[64];  // upper: of the diagonal block of the factor
  float square[64];   // inverse times its transpose
};

// A unit is one group, or two of four; `cross` is the factor's block between the two.
struct UnitForm {
  GroupForm group[2];
  float cross[16];
  float solved[64];  // for descent: the inverse of the unit's second moments
};

struct Scales;

// As CarryBlock and DescendBlock, for packings whose codes stand for several weights: a form for each
// unit of the block of 256. Scales are not negative.
using CarryUnits = void (*)(const Scales& scales, const UnitForm* forms, float* w, const float* factor,
                            const float* inverse, uint8_t* codes, float* error);
using DescendUnits = void (*)(const Scales& scales, const UnitForm* forms, float* q, float* r,
                              const float* moments, uint8_t* codes, float* change);

struct FeedbackKernels {
  CarryBlock carry;
  DescendBlock descend;
};

}  // namespace kvant
