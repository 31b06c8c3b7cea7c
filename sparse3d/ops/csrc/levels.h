// Compiles S3D_KERNELS, a header without a guard, once for each level of vector instructions: into the
// namespaces plain, avx2 and avx512, with S3D_LANES floats in a vector. Include it inside the unnamed
// namespace, behind what the kernels need. common.h's best_level chooses; S3D_AT calls.
#define S3D_LANES 4
namespace plain {
#include S3D_KERNELS
}
#undef S3D_LANES

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#pragma GCC optimize("fp-contract=fast")
#define S3D_LANES 8
namespace avx2 {
#include S3D_KERNELS
}
#undef S3D_LANES
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,prefer-vector-width=512")
#pragma GCC optimize("fp-contract=fast")
#define S3D_LANES 16
namespace avx512 {
#include S3D_KERNELS
}
#undef S3D_LANES
#pragma GCC pop_options
#define S3D_AT(level, call) \
  ((level) == 3 ? avx512::call : (level) == 2 ? avx2::call : plain::call)
#else
#define S3D_AT(level, call) ((void)(level), plain::call)
#endif
