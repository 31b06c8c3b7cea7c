// What every kernel file shares. Kernels take pointers, int64_t and double, and return int64_t.
#pragma once
#include <stdint.h>

#define EXPORT extern "C" __attribute__((visibility("default")))

// Threads that are worth their start for `work` items of which one thread should have `grain`.
static inline int useful_threads(int64_t threads, int64_t work, int64_t grain) {
  const int64_t most = (work + grain - 1) / grain;
  return (int)(most < 1 ? 1 : most < threads ? most : threads);
}
