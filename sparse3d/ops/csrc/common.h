// What every kernel file shares. Kernels take pointers, int64_t and double, and return int64_t.
#pragma once
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <new>
#include <stdexcept>

// What Python calls is EXPORTed, and its body is try { ... } OR_SHORTAGE: no exception may reach a caller
// that is not C++. Kernels throw only where memory is short; native.py knows the number.
#define EXPORT extern "C" __attribute__((visibility("default")))
#define OR_SHORTAGE \
  catch (const std::bad_alloc&) { return INT64_MIN; } \
  catch (const std::length_error&) { return INT64_MIN; }

// Memory that a parallel region did not get: no exception may leave the region, and no thread may miss a
// barrier or a loop that threads share.
class Shortage {
 public:
  bool none() const { return !found_.load(std::memory_order_relaxed); }
  // Does what may ask for memory, or nothing once a thread got none. Returns none().
  template <class Work>
  bool within(const Work& work) {
    try {
      if (none()) work();
    } catch (...) {
      found_ = true;
    }
    return none();
  }
  // Behind the region.
  void raise() const {
    if (!none()) throw std::bad_alloc();
  }

 private:
  std::atomic<bool> found_{false};
};

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
