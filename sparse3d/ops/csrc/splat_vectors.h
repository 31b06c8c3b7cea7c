// Vectors of S3D_LANES floats: what splatting's kernel headers begin with, inside a namespace of their
// own for each instruction set. No guard: see levels.h.

#define INLINE static inline __attribute__((always_inline))

constexpr int L = S3D_LANES;
typedef float Lanes __attribute__((vector_size(4 * S3D_LANES), aligned(4)));
typedef int32_t Mask __attribute__((vector_size(4 * S3D_LANES), aligned(4)));

INLINE Lanes spread(float x) { return x - (Lanes){}; }
INLINE Lanes keep(Mask m, Lanes x) { return (Lanes)((Mask)x & m); }
template <class Function>
INLINE Lanes each(const Function& function) {
  Lanes out = {};
  for (int l = 0; l < L; l++) out[l] = function(l);
  return out;
}
INLINE Lanes root(Lanes x) {
  return each([&](int l) { return __builtin_sqrtf(x[l]); });
}
INLINE Lanes larger(Lanes a, Lanes b) { return a > b ? a : b; }
INLINE Lanes smaller(Lanes a, Lanes b) { return a < b ? a : b; }
