// Names of the module that belong to the sampler.
#pragma once

#include <nanobind/nanobind.h>

namespace kvant {

void bind_sampler(nanobind::module_& m);

}  // namespace kvant
