// The arguments of functions that draw, as the kernels take them.
#pragma once

#include "base/types.h"
#include "bindings/tensors.h"

namespace fastvae {
namespace {

// `count` numbers are K samples for each row; none where there are no rows.
inline Extent extent_of(int64_t count, int64_t rows, int64_t columns) {
  return {rows ? count / (rows * columns) : 0, rows, columns};
}
inline Extent extent_of(int64_t count, const TensorView& parameters) {
  return extent_of(count, parameters.shape[0], parameters.shape[1]);
}

// Without dimensions it is a seed, else the numbers themselves.
template <class T>
NoiseSource<T> noise_of(const FlatView& noise, int64_t row_offset) {
  const bool given = noise.dims > 0;
  return {given ? nullptr : noise.as<const int64_t>(), given ? noise.as<const T>() : nullptr, row_offset};
}

}  // namespace
}  // namespace fastvae
