// Names of the module that measure the machine.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <string>

#include "runtime/limits.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvant {
namespace {

using ByteVector = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(what);
}

constexpr int kMostThreads = 512;

void require_run(int threads, double seconds) {
  require(threads >= 1 && threads <= kMostThreads, "threads are 1 to 512");
  require(seconds > 0 && seconds <= 60, "seconds are above 0 and at most 60");
}

double bandwidth(ByteVector data, int threads, double seconds) {
  require_run(threads, seconds);
  require(reinterpret_cast<uintptr_t>(data.data()) % 64 == 0, "the buffer starts at a cache line");
  require(data.shape(0) >= (size_t(threads) << 20), "the buffer has a megabyte for each thread");
  nb::gil_scoped_release unlocked;
  return read_bandwidth(data.data(), data.shape(0), threads, seconds);
}

double peak(const std::string& kind, int threads, double seconds) {
  require_run(threads, seconds);
  require(kind == "int8" || kind == "bf16" || kind == "float", "kinds are int8, bf16 and float");
  const Arithmetic arithmetic = kind == "int8"   ? Arithmetic::kInt8
                                : kind == "bf16" ? Arithmetic::kBf16
                                                 : Arithmetic::kFloat;
  nb::gil_scoped_release unlocked;
  return arithmetic_peak(arithmetic, threads, seconds);
}

}  // namespace

void bind_limits(nb::module_& m) {
  m.def("read_bandwidth", &bandwidth, "data"_a.noconvert(), "threads"_a, "seconds"_a,
        "Bytes a second that threads read of a buffer.");
  m.def("arithmetic_peak", &peak, "kind"_a, "threads"_a, "seconds"_a,
        "Operations a second of int8, bf16 or float multiply-adds; 0 without such instructions.");
}

}  // namespace kvant
