// Window partition of sparse voxels into sets of bounded size.
#include <algorithm>

#include "radix_sort.h"

// coords [n, 4] int32 (batch, x, y, z), any order. Writes the window of each row, its coordinates in
// the window (x, y, z), the rows in both orders (windows ascending; inside, axis 0 by (y, x, z) and
// axis 1 by (x, y, z)) and where each set begins in either order (up to n + 1 numbers).
// Returns the number of sets, or -1 where a coordinate is negative.
EXPORT int64_t s3d_window_partition(const int32_t* coords, int64_t n, const int64_t* windows,
                                    const int64_t* size, const int64_t* shift, int64_t set_size,
                                    int64_t* window_index, int32_t* inside, int64_t* order,
                                    int64_t* offsets, int64_t threads) try {
  int64_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    int64_t window = coords[4 * i];
    if ((coords[4 * i] | coords[4 * i + 1] | coords[4 * i + 2] | coords[4 * i + 3]) < 0) return -1;
    for (int axis = 0; axis < 3; ++axis) {
      const int64_t shifted = coords[4 * i + 1 + axis] + shift[axis];
      window = window * windows[axis] + shifted / size[axis];
      inside[3 * i + axis] = (int32_t)(shifted % size[axis]);
    }
    window_index[i] = window;
    largest = std::max(largest, window);
  }
  const radix::Sorted items(
      n, radix::bits_of((uint64_t)largest), [&](int64_t i) { return window_index[i]; }, threads);

  const auto before = [&](int64_t a, int64_t b) {
    return std::lexicographical_compare(inside + 3 * a, inside + 3 * a + 3, inside + 3 * b,
                                        inside + 3 * b + 3);
  };
  int64_t *y_major = order, *x_major = order + n;
  for (int64_t i = 0; i < n; ++i) x_major[i] = items.row(i);
  std::vector<int64_t> next(size[1] + 1);
  int64_t sets = 0;
  for (int64_t begin = 0, end; begin < n; begin = end) {
    for (end = begin; end < n && items.key(end) == items.key(begin); ++end) {
    }
    // Rows that came in ascending order are sorted by now: a window keeps the order of coordinates.
    if (!std::is_sorted(x_major + begin, x_major + end, before))
      std::sort(x_major + begin, x_major + end, before);
    std::fill(next.begin(), next.end(), 0);
    for (int64_t i = begin; i < end; ++i) ++next[inside[3 * x_major[i] + 1] + 1];
    for (int64_t y = 0; y < size[1]; ++y) next[y + 1] += next[y];
    for (int64_t i = begin; i < end; ++i)
      y_major[begin + next[inside[3 * x_major[i] + 1]]++] = x_major[i];

    const int64_t count = end - begin, here = (count + set_size - 1) / set_size;
    for (int64_t s = 0; s < here; ++s) offsets[sets++] = begin + s * count / here;
  }
  offsets[sets] = n;
  return sets;
} OR_SHORTAGE
