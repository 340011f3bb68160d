// Which instruction sets this machine has, and which one the kernels use.
#pragma once

#include <string>
#include <vector>

#include "../kernels/packing.h"

namespace kvant {

// Instruction sets compiled into this build that this processor can run, best first.
std::vector<const Isa*> usable_isas();

// The one in use; the best, unless `select_isa` chose another.
const Isa& current_isa();

// False if there is no such usable instruction set.
bool select_isa(const std::string& name);

// Processor features that kernels care about, by the names the vendors use.
std::vector<std::string> cpu_features();

}  // namespace kvant
