// Blending kernels for any processor: vectors of four, as every current one has.
#pragma GCC diagnostic ignored "-Wpsabi"
#define SPLAT_PARTS 4
#include "splat_lanes.h"

const SplatKernels splat_plain = {forward, gradient};
