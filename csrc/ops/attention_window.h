// A grid of Gaussian filters on an image: it reads a patch of an image, or writes a patch into one.
#pragma once

#include "base/types.h"

namespace fastvae {

// M windows on images of H rows and W columns, each of N x N points.
struct WindowExtent {
  int64_t windows, points, height, width;
};

// Images (M, H, W), one or two for each window; the second may be null.
template <class T>
struct WindowImages {
  T *first, *second;

  int64_t count() const { return second ? 2 : 1; }
};

// A window is a row of five numbers, see reference/attention_window.py.
template <class T>
struct AttentionWindow {
  // patches (M, K, N, N) of K images.
  void (*read_fwd)(WindowImages<const T> images, Matrix<T> window, T* patches, WindowExtent extent);
  // d_images of an image that needs none is null; so is d_window.
  void (*read_bwd)(const T* d_patches, WindowImages<const T> images, Matrix<T> window, T* const d_images[2],
                   T* d_window, WindowExtent extent);
  // The image (M, H, W) of a patch (M, N, N).
  void (*write_fwd)(const T* patch, Matrix<T> window, T* image, WindowExtent extent);
  void (*write_bwd)(const T* d_image, const T* patch, Matrix<T> window, T* d_patch, T* d_window, WindowExtent extent);
};

}  // namespace fastvae
