// Groups of weights that share a scale and perhaps a zero: kvant/packing/groups.py is the
// specification, which this gives the bits of.
#pragma once

#include <cstdint>

namespace kvant {

// How a code q stands for a weight: d q + z with z a float; d (q - z) with z an integer; the same
// with z the middle code.
enum class GroupZero : int { Bias, Integer, Middle };

// What scales (and biases) are rounded to.
enum class GroupScale : int { F32, F16, BF16 };

struct GroupGrid {
  int bits;
  int64_t block;  // weights in a group
  GroupZero zero;
  GroupScale scale;

  float most() const { return float((1 << bits) - 1); }
  float middle() const { return float(1 << (bits - 1)); }
};

struct GroupKernels {
  // The least and the greatest weight of each of n groups x [n, block].
  void (*range)(const float* x, int64_t block, int64_t n, float* lo, float* hi);
  // Scales of least squared error. w [weights, block] weighs errors, group k by row k % weights;
  // null: all count alike. widths: how many steps the range is stretched over, in the candidates.
  void (*search)(const GroupGrid& grid, const float* x, const float* w, int64_t weights, int64_t n,
                 const float* widths, int count, float* d, float* z);
  // The nearest codes under given scales.
  void (*encode)(const GroupGrid& grid, const float* x, const float* d, const float* z, int64_t n,
                 uint8_t* codes);
  // A stream of bits, lowest first: n codes, n bits a multiple of 8 (and n of 8).
  void (*pack)(const uint8_t* codes, int bits, int64_t n, uint8_t* out);
};

}  // namespace kvant
