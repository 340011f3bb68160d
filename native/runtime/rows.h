// Rows of one packing to rows of another, through float.
#pragma once

#include <cstdint>
#include <string>

namespace kvant {

// Type numbers are ggml's: 0 F32, 1 F16, 30 BF16, and those of the packings.
inline constexpr int kF32 = 0, kF16 = 1, kBF16 = 30;

// What a type needs: elements and bytes of a block; {0, 0} if the core does not know it.
struct BlockShape {
  int elements;
  int bytes;
};
BlockShape block_shape(int type);

// Where a weight was found that the target cannot hold.
struct BadValue {
  bool found;
  int64_t row;
  int64_t column;
  float value;
};

// Decode `rows` rows of `columns` weights to float.
void decode_rows(int type, const uint8_t* in, float* out, int64_t rows, int64_t columns);

// Convert `rows` rows of `columns` weights from one type to another. `importance` holds a weight
// for each column, or is null. Stops at the first value that is not finite, or that is beyond half
// precision (65504) where the target keeps half scales or half values.
BadValue convert_rows(int from, int to, const uint8_t* in, uint8_t* out, int64_t rows,
                      int64_t columns, const float* importance);

}  // namespace kvant
