#include "cpu.h"

#include <atomic>

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
#endif

namespace {

std::atomic<const Isa*> chosen{nullptr};

}  // namespace

std::vector<const Isa*> usable_isas() {
  std::vector<const Isa*> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    found.push_back(&avx512::kIsa);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    found.push_back(&avx2::kIsa);
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
  KVANT_FEATURE("f16c")
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
