// What an x86 processor can do and its system lets it: asked of the processor itself, because some
// compilers' own answer (`__builtin_cpu_supports`) lacks names, or is empty where their runtime is not
// gcc's.
#pragma once
#if defined(__x86_64__)

namespace kvant {

struct X86 {
  bool sse42 = false, avx = false, f16c = false, fma = false, bmi2 = false, avx2 = false;
  bool avx512f = false, avx512bw = false, avx512dq = false, avx512vl = false;
  bool avx512vnni = false, avx512bf16 = false, avxvnni = false;
};

const X86& x86();  // in a file of its own: nothing of it may be compiled for what it asks about

}  // namespace kvant

#endif
