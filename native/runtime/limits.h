// What this machine can do at most: what speed is measured against.
//
// Each call is short (some 100 ms), so that it can be taken right before and after what it is
// compared with: a shared machine is not equally fast from one minute to the next.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvant {

// Bytes a second at which `threads` threads together read `bytes` bytes at `data`, each its own
// stretch of it again and again for `seconds`. The limit of memory only where the buffer is much
// larger than the caches, and of one made of large pages where it matters.
double read_bandwidth(const uint8_t* data, size_t bytes, int threads, double seconds);

enum class Arithmetic { kInt8, kBf16, kFloat };

// Operations a second (a multiply-add is two) of `threads` threads together, out of registers: the
// best instructions this processor has for products of 8-bit integers summed in 32 bits, of bf16
// summed in float, and of floats. 0 where it has none (bf16 only).
double arithmetic_peak(Arithmetic kind, int threads, double seconds);

}  // namespace kvant
