// What every kernel file shares. Kernels take pointers, int64_t and double, and return int64_t.
#pragma once
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT extern "C" __attribute__((visibility("default")))

// Threads that are worth their start for `work` items of which one thread should have `grain`.
static inline int useful_threads(int64_t threads, int64_t work, int64_t grain) {
  const int64_t most = (work + grain - 1) / grain;
  return (int)(most < 1 ? 1 : most < threads ? most : threads);
}

// Vector instructions to use: 1 plain, 2 AVX2, 3 AVX-512. asked: one of these (or the next lower one
// that the processor has), or 0 for the best, which SPARSE3D_ISA=plain|avx2|avx512 can lower.
static inline int best_level(int64_t asked) {
#if defined(__x86_64__) && defined(__GNUC__)
  const char* named = asked ? nullptr : getenv("SPARSE3D_ISA");
  if (named && !strcmp(named, "plain")) asked = 1;
  if (named && !strcmp(named, "avx2")) asked = 2;
  if ((asked == 0 || asked == 3) && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl"))
    return 3;
  if (asked != 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 2;
#endif
  return 1;
}
