// Uninitialised arrays; large ones ask for huge pages, because the first touch of ordinary pages costs
// more than what most kernels do with them.
#pragma once
#include <stdint.h>
#include <stdlib.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include <memory>
#include <new>

constexpr int64_t kHugePage = 1 << 21;

// Advice for the huge pages that lie wholly within `bytes` from `start` on; nothing where the system
// has none.
inline void want_huge_pages(void* start, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  const uintptr_t from = ((uintptr_t)start + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t to = ((uintptr_t)start + bytes) / kHugePage * kHugePage;
  if (to > from) madvise((void*)from, to - from, MADV_HUGEPAGE);
#else
  (void)start, (void)bytes;
#endif
}

struct Freed {
  void operator()(void* memory) const { free(memory); }
};

template <class T>
using Array = std::unique_ptr<T[], Freed>;

template <class T>
Array<T> uninitialised(int64_t n) {
  int64_t bytes = n * (int64_t)sizeof(T);
  const bool large = bytes >= 2 * kHugePage;
  if (large) bytes = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  void* memory = large ? aligned_alloc(kHugePage, bytes) : malloc(bytes ? bytes : 1);
  if (!memory) throw std::bad_alloc();
  if (large) want_huge_pages(memory, bytes);
  return Array<T>((T*)memory);
}
