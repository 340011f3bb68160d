// Feedback and descent over the rows of one block column, on several threads.
#pragma once

#include <cstdint>

#include "kernels/packing.h"

namespace kvant {

// Rows of one block of columns of a matrix. Rows are `stride` floats apart.
struct BlockColumn {
  const PackingKernels* packing;  // null: levels follow from base and step
  int count;         // codes there are
  bool even;         // levels are evenly spaced
  int64_t rows;
  const Scales* scales;  // [rows]
  uint8_t* codes;        // [rows, block]
  // Without a packing: code c of row r stands for base[r] + step[r] c, or where there is a table
  // (of `count` levels) for base[r] + step[r] table[c].
  int64_t block = 0;
  const float* base = nullptr;
  const float* step = nullptr;
  const float* table = nullptr;

  int64_t width() const { return packing ? packing->block : block; }
};

// See CarryBlock. w [rows, stride], error [rows, block].
void carry_rows(const BlockColumn& column, float* w, int64_t stride, const float* factor,
                const float* inverse, float* error, int threads);

// See DescendBlock. q and r [rows, stride], change [rows, block].
void descend_rows(const BlockColumn& column, float* q, float* r, int64_t stride,
                  const float* moments, const float* inverse, float* change, int threads);

}  // namespace kvant
