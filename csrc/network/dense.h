// Layers that are not masked, and the likelihood behind the last of them, on blocks of lanes.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "network/staircase.h"
#include "simd/activation.h"

namespace fastvae {
inline namespace FASTVAE_ISA {

inline LaneRange lanes_of(int64_t rows, int64_t width) { return {0, (rows + width - 1) / width * width, rows}; }

// What a product's sums go through. They have names, and a group's end has one type, since every kind of tile is
// compiled anew for each type.

// Adds biases; rows of `to` are counted from *first.
template <class T>
struct StoreWithBias {
  const Staircase<T>* s;
  T* to;
  const int64_t* first;

  FASTVAE_INLINE void operator()(int64_t r, int64_t lane, typename Simd<T>::Vector sum) const {
    store(to + (r - *first) * kLanes + lane, sum + s->bias(r));
  }
};

// Multiplies by the factor of each lane.
template <class T>
struct StoreTimes {
  T* to;
  const T* factors;

  FASTVAE_INLINE void operator()(int64_t k, int64_t lane, typename Simd<T>::Vector sum) const {
    store(to + k * kLanes + lane, sum * load(factors + lane));
  }
};

// Calls a body that lives longer.
class GroupDone {
 public:
  template <class Body>
  explicit GroupDone(const Body& body)
      : body_(&body),
        call_([](const void* given, int64_t begin, int64_t end) { (*static_cast<const Body*>(given))(begin, end); }) {}

  void operator()(int64_t begin, int64_t end) const { call_(body_, begin, end); }

 private:
  const void* body_;
  void (*call_)(const void*, int64_t, int64_t);
};

// A layer that is not masked, with the degrees that say so.
template <class T>
struct Dense {
  LocalVector<int64_t> degrees;
  MaskedLayer<T> layer;
  Staircase<T> staircase;

  explicit Dense(const MaskedLayer<T>& given)
      : degrees(static_cast<size_t>(std::max(given.in, given.out))), layer(given), staircase(with_degrees()) {}

 private:
  const MaskedLayer<T>& with_degrees() {
    std::fill(degrees.begin(), degrees.end(), 0);
    layer.in_degrees = layer.out_degrees = degrees.data();
    return layer;
  }
};

// The data points of a block's rows in lanes, (out, kLanes); they are read again only where they are others.
template <class T>
class Points {
 public:
  Points(Matrix<T> x, int64_t out) : x_(x), out_(out), values_(out * kLanes) { points_.fill(-1); }

  // point_of(lane) is the row of x for a lane.
  template <class PointOf>
  const T* read(const PointOf& point_of, LaneRange lanes) {
    std::array<int64_t, kLanes> points;
    points.fill(-1);
    for (int64_t i = 0; i < lanes.count; ++i) points[i] = point_of(i);
    if (points == points_) return values_.get();
    points_ = points;
    constexpr int64_t width = Simd<T>::kWidth;
    for (int64_t lane = lanes.begin; lane < lanes.end; lane += width)
      for (int64_t c = 0; c < out_; c += width) {
        typename Simd<T>::Vector square[width];
        for (int64_t i = 0; i < width; ++i) {
          square[i] = typename Simd<T>::Vector{};
          if (lane + i < lanes.count) square[i] = load_up_to(x_.row(points[lane + i]) + c, out_ - c);
        }
        transpose_square<T>(square);
        for (int64_t i = 0; i < std::min(width, out_ - c); ++i)
          store(values_.get() + (c + i) * kLanes + lane, square[i]);
      }
    return values_.get();
  }

 private:
  Matrix<T> x_;
  int64_t out_;
  Scratch<T> values_;
  std::array<int64_t, kLanes> points_;
};

// Sums over outputs in each lane. Twelve groups of outputs are a part, and twelve parts are a block: the error of long
// sums stays small.
template <class T>
class LaneSums {
 public:
  using Vector = typename Simd<T>::Vector;

  void begin_group(bool last) {
    ++groups_;
    ends_part_ = groups_ % kTerms == 0 || last;
    ends_block_ = groups_ % (kTerms * kTerms) == 0 || last;
  }
  // The sum of the groups before, of the same part.
  FASTVAE_INLINE Vector part(int64_t lane) const { return load(part_ + lane); }
  // Takes that sum with the present group's.
  FASTVAE_INLINE void set_part(int64_t lane, Vector sum) {
    store(part_ + lane, ends_part_ ? Vector{} : sum);
    if (!ends_part_) return;
    sum += load(block_ + lane);
    store(block_ + lane, ends_block_ ? Vector{} : sum);
    if (ends_block_) store(total_ + lane, load(total_ + lane) + sum);
  }
  const T* total() const { return total_; }

 private:
  static constexpr int64_t kTerms = 12;

  alignas(kVectorBytes) T part_[kLanes] = {}, block_[kLanes] = {}, total_[kLanes] = {};
  int64_t groups_ = 0;
  bool ends_part_ = false, ends_block_ = false;
};

template <class T>
FASTVAE_INLINE typename Simd<T>::Vector tail_of(typename Simd<T>::Vector l) {
  return exp(l < 0 ? l : -l);
}

}  // namespace FASTVAE_ISA
}  // namespace fastvae
