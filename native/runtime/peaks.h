// The loops behind limits.h, one for each instruction worth measuring.
#pragma once

#include <cstddef>
#include <cstdint>

#include "limits.h"

namespace kvant {

struct Peak {
  // Runs a round of independent multiply-adds `rounds` times; what comes out only has to be used.
  uint64_t (*run)(int64_t rounds);
  double operations;  // of one round
};

// The best loop this processor can run; `run` is null if it has no such instruction.
Peak best_peak(Arithmetic kind);

// Reads `bytes` (a multiple of 512) at an address aligned to 64.
uint64_t (*best_reader())(const uint8_t* data, size_t bytes);

}  // namespace kvant
