#include "cpu.h"

#include <atomic>
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(_M_ARM64)
#include <windows.h>
#endif
#if defined(__aarch64__) || defined(_M_ARM64)
#define KVANT_ARM 1
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
#elif defined(KVANT_ARM)
namespace neon {
extern const Isa kIsa;
}
namespace dotprod {
extern const Isa kIsa;
}
namespace i8mm {
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
#elif defined(KVANT_ARM)
struct Arm {
  bool dotprod = false, i8mm = false;
};

Arm arm() {
  Arm has;
#if defined(__linux__)
  has.dotprod = getauxval(AT_HWCAP) >> 20 & 1;  // HWCAP_ASIMDDP
  has.i8mm = getauxval(AT_HWCAP2) >> 13 & 1;    // HWCAP2_I8MM
#elif defined(__APPLE__)
  const auto feature = [](const char* name) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value;
  };
  has.dotprod = feature("hw.optional.arm.FEAT_DotProd");
  has.i8mm = feature("hw.optional.arm.FEAT_I8MM");
#elif defined(_M_ARM64)
  has.dotprod = IsProcessorFeaturePresent(43);  // PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE
#endif
  has.i8mm = has.i8mm && has.dotprod;
  return has;
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
#elif defined(KVANT_ARM)
  const Arm has = arm();
  if (has.i8mm) found.push_back(&i8mm::kIsa);
  if (has.dotprod) found.push_back(&dotprod::kIsa);
  found.push_back(&neon::kIsa);
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
#elif defined(KVANT_ARM)
  names.push_back("neon");
  if (arm().dotprod) names.push_back("dotprod");
  if (arm().i8mm) names.push_back("i8mm");
#endif
  return names;
}

}  // namespace kvant
