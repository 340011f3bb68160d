// Names of the module that measure the machine.
#pragma once

#include <nanobind/nanobind.h>

namespace kvant {

void bind_limits(nanobind::module_& m);

}  // namespace kvant
