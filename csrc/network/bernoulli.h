// Log-likelihoods of binary data whose logits a dense layer makes, on blocks of lanes: which rows a block takes, their
// data points, and the sums over the logits, of which a few are in memory at a time.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/parallel.h"
#include "base/types.h"
#include "network/dense.h"
#include "simd/activation.h"

namespace fastvae {
inline namespace FASTVAE_ISA {

// Visits of one task: those of the same data points read them once.
constexpr int64_t kTaskVisits = 8;

// The rows that one block of lanes takes, and their data points. `stacked` visits see all samples of a block of data
// points one after another, and so read the points once. The last block of points may leave lanes empty: where these
// are many, visits take rows as they come.
class Visits {
 public:
  explicit Visits(BernoulliSizes sizes) : sizes_(sizes) {
    const int64_t blocks = (sizes.points + kLanes - 1) / kLanes, empty = blocks * kLanes - sizes.points;
    stacked_ = sizes.inner == 1 && sizes.points >= kLanes && empty <= blocks * kLanes / 8;
    count_ = stacked_ ? blocks * sizes.samples : (sizes.rows() + kLanes - 1) / kLanes;
  }

  int64_t count() const { return count_; }

  // The first row; all rows of a visit follow each other.
  int64_t first_row(int64_t visit) const {
    return stacked_ ? visit % sizes_.samples * sizes_.points + first_point(visit) : visit * kLanes;
  }
  int64_t rows(int64_t visit) const {
    return std::min(kLanes, stacked_ ? sizes_.points - first_point(visit) : sizes_.rows() - visit * kLanes);
  }
  int64_t point_of(int64_t row) const { return row / sizes_.inner % sizes_.points; }

 private:
  int64_t first_point(int64_t visit) const { return visit / sizes_.samples * kLanes; }

  BernoulliSizes sizes_;
  bool stacked_;
  int64_t count_;
};

// The data points of a visit, in lanes.
template <class T>
const T* read_points(Points<T>& points, const Visits& visits, int64_t visit, LaneRange lanes) {
  const int64_t first = visits.first_row(visit);
  return points.read([&](int64_t lane) { return visits.point_of(first + lane); }, lanes);
}

// Parts of a block's lanes: as many as give every thread one, of whole vectors.
template <class T>
int64_t count_parts(int64_t visits) {
  int64_t parts = 1;
  while (parts * Simd<T>::kWidth < kLanes && visits * parts < omp_get_max_threads()) parts *= 2;
  return parts;
}

// The lanes of a part of a block; some may hold no row.
inline LaneRange lanes_of_part(int64_t part, int64_t parts, int64_t rows) {
  const int64_t lanes = kLanes / parts;
  return {part * lanes, (part + 1) * lanes, rows};
}

// Those of a part that hold rows, in whole vectors.
template <class T>
LaneRange lanes_with_rows(LaneRange part) {
  const int64_t end = std::min(part.end, lanes_of(part.count, Simd<T>::kWidth).end);
  return {part.begin, std::max(part.begin, end), part.count};
}

// Calls body(visit, part, points) for all parts of the visits [begin, end), each task with points of its own. `weights`
// are those that a row meets.
template <class T, class Body>
void each_part_of_visits(int64_t weights, Matrix<T> x, int64_t outputs, int64_t begin, int64_t end, int64_t parts,
                         const Body& body) {
  const int64_t threads = omp_get_max_threads(), count = (end - begin) * parts;
  // Points of one part are not those of the next.
  const int64_t step = parts > 1 ? 1 : std::max<int64_t>(1, std::min(kTaskVisits, count / threads));
  parallel_tasks((count + step - 1) / step, step * kLanes / parts * weights / 8, [&](int64_t task) {
    Points<T> points(x, outputs);
    for (int64_t i = task * step; i < std::min((task + 1) * step, count); ++i)
      body(begin + i / parts, i % parts, points);
  });
}

// The logits of a visit, a few outputs at a time: done(begin, end, logits) gets (end - begin, kLanes) of them.
template <class T, class Done>
FASTVAE_INLINE void each_group(const Staircase<T>& s, const T* inputs, LaneRange lanes, T* logits, const Done& done) {
  int64_t group = 0;
  const auto next = [&](int64_t begin, int64_t end) {
    done(begin, end, logits);
    group = end;
  };
  multiply_rows<true>(s, inputs, 0, s.layer.out, lanes, StoreWithBias<T>{&s, logits, &group}, GroupDone(next));
}

// The log-likelihood of each lane into log_p. each(index, value, logit, e^-|logit|) sees every vector of logits.
template <class T, class Each>
FASTVAE_INLINE void sum_log_probs(const Staircase<T>& s, const T* inputs, const T* values, LaneRange lanes, T* log_p,
                                  const Each& each) {
  using Vector = typename Simd<T>::Vector;
  alignas(kVectorBytes) T logits[kTileRows * kLanes];
  LaneSums<T> sums;
  each_group<T>(s, inputs, lanes, logits, [&](int64_t begin, int64_t end, const T* group) {
    sums.begin_group(end == s.layer.out);
    for (int64_t lane = lanes.begin; lane < lanes.end; lane += Simd<T>::kWidth) {
      // The product of all 1 + e^-|l|, less 1: one logarithm for the group.
      Vector sum = sums.part(lane), product{};
      for (int64_t r = begin; r < end; ++r) {
        const Vector l = load(group + (r - begin) * kLanes + lane), tail = tail_of<T>(l);
        const Vector value = load(values + r * kLanes + lane);
        product += fused(tail, product, tail);
        sum += fused(value, l, -positive_part(l));
        each(r * kLanes + lane, lane, value, l, tail);
      }
      sums.set_part(lane, sum - log1p_unit(product));
    }
  });
  for (int64_t lane = lanes.begin; lane < std::min(lanes.end, lanes.count); ++lane) log_p[lane] = sums.total()[lane];
}

// x - sigmoid(l), and 0 in lanes without a row: sums over rows read whole blocks.
template <class T>
FASTVAE_INLINE void store_residual(typename Simd<T>::Vector x, typename Simd<T>::Vector l,
                                   typename Simd<T>::Vector tail, int64_t rows, T* to) {
  const auto r = x - (l < 0 ? tail : 1 + typename Simd<T>::Vector{}) / (1 + tail);
  store(to, rows < Simd<T>::kWidth ? first_lanes<T>(r, rows) : r);
}

// Zeros in the lanes [begin, end) of the rows of a block.
template <class T>
void clear_lanes(int64_t begin, int64_t end, int64_t rows, T* block) {
  for (int64_t r = 0; begin < end && r < rows; ++r) std::fill_n(block + r * kLanes + begin, end - begin, T(0));
}

// Sums over the lanes of a block of residuals times `upstream`, one for each output.
template <class T>
void weighted_sums(const T* residuals, const T* upstream, int64_t out, T* sums) {
  constexpr int64_t width = Simd<T>::kWidth;
  for (int64_t r = 0; r < out; r += width) {
    const int64_t rows = std::min(width, out - r);
    typename Simd<T>::Vector totals[width] = {};
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t lane = 0; lane < kLanes; lane += width)
        totals[i] = fused(load(residuals + (r + i) * kLanes + lane), load(upstream + lane), totals[i]);
    transpose_square<T>(totals);
    for (int64_t i = 1; i < width; ++i) totals[0] += totals[i];
    store_up_to(sums + r, totals[0], rows);
  }
}

// The sum of the rows of `parts`.
template <class T>
void sum_rows(const T* parts, int64_t rows, int64_t columns, T* total) {
  std::fill_n(total, columns, T(0));
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t c = 0; c < columns; ++c) total[c] += parts[i * columns + c];
}

}  // namespace FASTVAE_ISA
}  // namespace fastvae
