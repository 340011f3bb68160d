#include "cpu.h"

#include <atomic>

#include "x86.h"
#if defined(__aarch64__) && defined(__linux__)
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

#if defined(KVANT_ARM)
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
  // What CMakeLists.txt lets the compiler use; a virtual machine may hide any of it.
  const X86& has = x86();
  const bool avx2 = has.avx2 && has.fma && has.bmi2 && has.f16c;
  if (avx2 && has.avx512f && has.avx512bw && has.avx512dq && has.avx512vl) {
    if (has.avx512vnni) found.push_back(&avx512vnni::kIsa);
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
  const X86& has = x86();
  const auto say = [&](bool there, const char* name) {
    if (there) names.push_back(name);
  };
  say(has.sse42, "sse4.2");
  say(has.avx, "avx");
  say(has.f16c, "f16c");
  say(has.fma, "fma");
  say(has.avx2, "avx2");
  say(has.avx512f, "avx512f");
  say(has.avx512bw, "avx512bw");
  say(has.avx512vnni, "avx512vnni");
  say(has.avx512bf16, "avx512bf16");
#elif defined(KVANT_ARM)
  names.push_back("neon");
  if (arm().dotprod) names.push_back("dotprod");
  if (arm().i8mm) names.push_back("i8mm");
#endif
  return names;
}

}  // namespace kvant
