// Images of any strides as rows of pixels whose channels lie together, and back.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/types.h"
#include "simd/lanes.h"

namespace fastvae {
inline namespace FASTVAE_ISA {

// to[c * to_stride + r] = from[r * from_stride + c], for r in [0, rows) and c in [0, columns).
template <class T>
void transpose(const T* from, int64_t from_stride, int64_t rows, int64_t columns, T* to, int64_t to_stride) {
  constexpr int64_t width = Simd<T>::kWidth;
  for (int64_t r = 0; r < rows; r += width)
    for (int64_t c = 0; c < columns; c += width) {
      typename Simd<T>::Vector square[width];
#pragma GCC unroll 16
      for (int64_t i = 0; i < width; ++i) {
        square[i] = typename Simd<T>::Vector{};
        if (r + i < rows) square[i] = load_up_to(from + (r + i) * from_stride + c, columns - c);
      }
      transpose_square<T>(square);
#pragma GCC unroll 16
      for (int64_t i = 0; i < width; ++i) {
        if (c + i >= columns) continue;
        T* out = to + (c + i) * to_stride + r;
        store_up_to(out, square[i], rows - r);
      }
    }
}

// Reads a row of an image into pixels of `channels` numbers.
template <class T>
void gather_row(Images<const T> images, int64_t image, int64_t row, int64_t columns, int64_t channels, T* to) {
  const T* from = images.at(image, row, 0);
  if ((channels == 1 || images.stride[1] == 1) && images.stride[3] == channels) {
    std::copy(from, from + columns * channels, to);
  } else if (images.stride[1] == 1) {
    for (int64_t j = 0; j < columns; ++j) std::copy_n(from + j * images.stride[3], channels, to + j * channels);
  } else if (images.stride[3] == 1) {
    transpose(from, images.stride[1], channels, columns, to, channels);
  } else {
    for (int64_t j = 0; j < columns; ++j)
      for (int64_t c = 0; c < channels; ++c) to[j * channels + c] = from[j * images.stride[3] + c * images.stride[1]];
  }
}

// Writes pixels of `channels` numbers into a row of an image.
template <class T>
void scatter_row(const T* from, int64_t columns, int64_t channels, Images<T> images, int64_t image, int64_t row) {
  T* to = images.at(image, row, 0);
  if ((channels == 1 || images.stride[1] == 1) && images.stride[3] == channels) {
    std::copy(from, from + columns * channels, to);
  } else if (images.stride[1] == 1) {
    for (int64_t j = 0; j < columns; ++j) std::copy_n(from + j * channels, channels, to + j * images.stride[3]);
  } else if (images.stride[3] == 1) {
    transpose(from, channels, columns, channels, to, images.stride[1]);
  } else {
    for (int64_t j = 0; j < columns; ++j)
      for (int64_t c = 0; c < channels; ++c) to[j * images.stride[3] + c * images.stride[1]] = from[j * channels + c];
  }
}

// A part of an image, with zeros beyond the borders: row r of the window is row `row` + r of the image.
struct Window {
  int64_t row, rows, column, columns;
};

// Calls window_row(r, to) to fill the image's columns of row r; the rest of `to`, (rows, columns, channels), becomes 0.
template <class T, class Fill>
void fill_window(Window window, int64_t height, int64_t width, int64_t channels, T* to, const Fill& fill) {
  const int64_t before = -window.column * channels, inside = width * channels, row = window.columns * channels;
  for (int64_t r = 0; r < window.rows; ++r, to += row) {
    const int64_t h = window.row + r;
    if (h < 0 || h >= height) {
      std::fill(to, to + row, T(0));
      continue;
    }
    std::fill(to, to + before, T(0));
    fill(h, to + before);
    std::fill(to + before + inside, to + row, T(0));
  }
}

}  // namespace FASTVAE_ISA
}  // namespace fastvae
