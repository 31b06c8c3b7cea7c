// Nearest neighbours by a k-d tree per sample. ops/reference/neighbors.py defines the result.
//
// It does not depend on the shape of the tree: candidates rank by (distance, index), and a node is left
// out only when the distance to its bounding box, computed like that of a point and hence rounded no
// higher than that of any point inside, is larger than the worst candidate.
#include <algorithm>
#include <limits>
#include <vector>

#include "common.h"

namespace {

constexpr int64_t kLeaf = 16;
constexpr int kDepth = 64;  // halving 2^63 points ends before

template <typename T>
struct Node {
  T low[3], high[3];
  int64_t begin, end;   // rows of the reordered points
  int64_t left, right;  // children; left < 0 in a leaf
};

template <typename T>
struct Point {
  T at[3];
  int64_t index;
};

template <typename T>
T squared(T x, T y, T z) {
  return x * x + y * y + z * z;
}

template <typename T>
T gap(T low, T high, T value) {
  return value < low ? low - value : value > high ? value - high : T(0);
}

template <typename T>
T distance(const Node<T>& node, const T* query) {
  return squared(gap(node.low[0], node.high[0], query[0]), gap(node.low[1], node.high[1], query[1]),
                 gap(node.low[2], node.high[2], query[2]));
}

template <typename T>
struct Tree {
  std::vector<Node<T>> nodes;
  std::vector<Point<T>>& points;

  int64_t build(int64_t begin, int64_t end) {
    Node<T> node;
    for (int axis = 0; axis < 3; ++axis) {
      node.low[axis] = node.high[axis] = points[begin].at[axis];
      for (int64_t i = begin; i < end; ++i) {
        node.low[axis] = std::min(node.low[axis], points[i].at[axis]);
        node.high[axis] = std::max(node.high[axis], points[i].at[axis]);
      }
    }
    node.begin = begin;
    node.end = end;
    node.left = node.right = -1;
    const int64_t self = (int64_t)nodes.size();
    nodes.push_back(node);
    if (end - begin <= kLeaf) return self;

    int axis = 0;
    for (int other = 1; other < 3; ++other)
      if (node.high[other] - node.low[other] > node.high[axis] - node.low[axis]) axis = other;
    const int64_t middle = begin + (end - begin) / 2;
    std::nth_element(points.begin() + begin, points.begin() + middle, points.begin() + end,
                     [axis](const Point<T>& a, const Point<T>& b) { return a.at[axis] < b.at[axis]; });
    const int64_t left = build(begin, middle), right = build(middle, end);
    nodes[self].left = left;
    nodes[self].right = right;
    return self;
  }
};

// The best candidates so far, by (distance, index).
template <typename T>
struct Best {
  int64_t k, count;
  T limit;  // squared radius
  int64_t* index;
  T* dist;

  T worst() const { return count < k ? limit : dist[k - 1]; }

  void offer(T d, int64_t i) {
    if (!(d <= worst())) return;
    if (count == k && d == dist[k - 1] && i > index[k - 1]) return;
    int64_t at = count < k ? count++ : k - 1;
    for (; at > 0 && (dist[at - 1] > d || (dist[at - 1] == d && index[at - 1] > i)); --at) {
      dist[at] = dist[at - 1];
      index[at] = index[at - 1];
    }
    dist[at] = d;
    index[at] = i;
  }
};

template <typename T>
void search(const Tree<T>& tree, int64_t root, const T* query, Best<T>& best) {
  struct Visit {
    int64_t node;
    T dist;
  } stack[kDepth];
  int top = 0;
  stack[top++] = {root, distance(tree.nodes[root], query)};
  while (top) {
    const Visit visit = stack[--top];
    if (visit.dist > best.worst()) continue;
    const Node<T>& node = tree.nodes[visit.node];
    if (node.left < 0) {
      for (int64_t i = node.begin; i < node.end; ++i) {
        const Point<T>& point = tree.points[i];
        best.offer(squared(query[0] - point.at[0], query[1] - point.at[1], query[2] - point.at[2]),
                   point.index);
      }
      continue;
    }
    Visit near = {node.left, distance(tree.nodes[node.left], query)};
    Visit far = {node.right, distance(tree.nodes[node.right], query)};
    if (far.dist < near.dist) std::swap(near, far);
    stack[top++] = far;
    stack[top++] = near;
  }
}

// order [P]: rows of points by batch, starts [batches + 1] into it.
template <typename T>
int64_t knn(const T* points, const int64_t* order, const int64_t* starts, int64_t batches, const T* query,
            const int64_t* query_batch, int64_t queries, int64_t k, double radius, int64_t* index, T* dist,
            int64_t threads) {
  std::vector<Point<T>> sorted(starts[batches]);
  for (int64_t i = 0; i < starts[batches]; ++i) {
    const T* at = points + 3 * order[i];
    sorted[i] = {{at[0], at[1], at[2]}, order[i]};
  }
  Tree<T> tree{{}, sorted};
  std::vector<int64_t> roots(batches, -1);
  for (int64_t b = 0; b < batches; ++b)
    if (starts[b + 1] > starts[b]) roots[b] = tree.build(starts[b], starts[b + 1]);

  const T limit = (T)radius * (T)radius;
  const int team = useful_threads(threads, queries, 256);
#pragma omp parallel for schedule(dynamic, 64) num_threads(team)
  for (int64_t q = 0; q < queries; ++q) {
    Best<T> best{k, 0, limit, index + q * k, dist + q * k};
    const int64_t root = roots[query_batch[q]];
    if (root >= 0) search(tree, root, query + 3 * q, best);
    for (int64_t i = best.count; i < k; ++i) {
      best.index[i] = -1;
      best.dist[i] = std::numeric_limits<T>::infinity();
    }
  }
  return 0;
}

}  // namespace

EXPORT int64_t s3d_knn_f32(const float* points, const int64_t* order, const int64_t* starts,
                           int64_t batches, const float* query, const int64_t* query_batch,
                           int64_t queries, int64_t k, double radius, int64_t* index, float* dist,
                           int64_t threads) try {
  return knn(points, order, starts, batches, query, query_batch, queries, k, radius, index, dist, threads);
} OR_SHORTAGE

EXPORT int64_t s3d_knn_f64(const double* points, const int64_t* order, const int64_t* starts,
                           int64_t batches, const double* query, const int64_t* query_batch,
                           int64_t queries, int64_t k, double radius, int64_t* index, double* dist,
                           int64_t threads) try {
  return knn(points, order, starts, batches, query, query_batch, queries, k, radius, index, dist, threads);
} OR_SHORTAGE
