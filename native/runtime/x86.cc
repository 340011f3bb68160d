#include "x86.h"

#if defined(__x86_64__)

#include <cpuid.h>

#include <cstdint>

namespace kvant {
namespace {

X86 ask_x86() {
  X86 has;
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return has;
  has.sse42 = c >> 20 & 1;
  if (!(c >> 27 & 1)) return has;  // the system does not say which registers it keeps
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  const bool keeps256 = (low & 0x06) == 0x06, keeps512 = (low & 0xe6) == 0xe6;
  if (!keeps256) return has;
  has.avx = c >> 28 & 1;
  has.f16c = c >> 29 & 1;
  has.fma = c >> 12 & 1;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return has;
  has.avx2 = b >> 5 & 1;
  has.bmi2 = b >> 8 & 1;
  if (keeps512) {
    has.avx512f = b >> 16 & 1;
    has.avx512dq = b >> 17 & 1;
    has.avx512bw = b >> 30 & 1;
    has.avx512vl = b >> 31 & 1;
    has.avx512vnni = c >> 11 & 1;
  }
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d)) return has;
  has.avxvnni = a >> 4 & 1;
  has.avx512bf16 = keeps512 && (a >> 5 & 1);
  return has;
}

}  // namespace

const X86& x86() {
  static const X86 has = ask_x86();
  return has;
}

}  // namespace kvant

#endif
