#include "cpu.h"

#include <atomic>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace kvant {

namespace scalar {
extern const Isa kIsa;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Isa kIsa;
}
namespace avx512 {
extern const Isa kIsa;
}
namespace avx512vnni {
extern const Isa kIsa;
}
#endif

namespace {

std::atomic<const Isa*> chosen{nullptr};

#if defined(__x86_64__)
// Asked of the processor itself: clang before 18 has no name for it. That the system keeps the wide
// registers is part of "avx2".
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

}  // namespace

std::vector<const Isa*> usable_isas() {
  std::vector<const Isa*> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  // What CMakeLists.txt lets the compiler use; a virtual machine may hide any of it.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi2") && has_f16c();
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    if (__builtin_cpu_supports("avx512vnni")) found.push_back(&avx512vnni::kIsa);
    found.push_back(&avx512::kIsa);
  }
  if (avx2) found.push_back(&avx2::kIsa);
#endif
  found.push_back(&scalar::kIsa);
  return found;
}

const Isa& current_isa() {
  const Isa* isa = chosen.load(std::memory_order_acquire);
  if (!isa) {
    isa = usable_isas().front();
    chosen.store(isa, std::memory_order_release);
  }
  return *isa;
}

bool select_isa(const std::string& name) {
  for (const Isa* isa : usable_isas())
    if (name == isa->name) {
      chosen.store(isa, std::memory_order_release);
      return true;
    }
  return false;
}

std::vector<std::string> cpu_features() {
  std::vector<std::string> names;
#if defined(__x86_64__)
  __builtin_cpu_init();
#define KVANT_FEATURE(f) \
  if (__builtin_cpu_supports(f)) names.push_back(f);
  KVANT_FEATURE("sse4.2")
  KVANT_FEATURE("avx")
  if (has_f16c()) names.push_back("f16c");
  KVANT_FEATURE("fma")
  KVANT_FEATURE("avx2")
  KVANT_FEATURE("avx512f")
  KVANT_FEATURE("avx512bw")
  KVANT_FEATURE("avx512vnni")
  KVANT_FEATURE("avx512bf16")
#undef KVANT_FEATURE
#elif defined(__aarch64__)
  names.push_back("neon");
#endif
  return names;
}

}  // namespace kvant
