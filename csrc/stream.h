// Writing past the caches what is larger than they are: it saves reading the lines first, and keeps the rest cached.
#pragma once

#include <cstdint>

#include "simd.h"

namespace fastvae {
namespace {

// Arrays from this size on do not stay in the last-level cache until they are read again.
constexpr int64_t kStreamBytes = 8 << 20;

template <class T>
bool streams(int64_t count) {
  return count * static_cast<int64_t>(sizeof(T)) >= kStreamBytes;
}

// Whether a row that starts here and holds this many numbers can be written in whole aligned vectors.
template <class T>
FASTVAE_INLINE bool is_whole_vectors(const T* row, int64_t count) {
  return reinterpret_cast<uintptr_t>(row) % kVectorBytes == 0 && count % Simd<T>::kWidth == 0;
}

// Copies past the caches where the layout allows.
template <class T>
FASTVAE_INLINE void stream_row(T* to, const T* from, int64_t count) {
  if (is_whole_vectors(to, count)) {
    for (int64_t i = 0; i < count; i += Simd<T>::kWidth) stream(to + i, load(from + i));
  } else {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) to[i] = from[i];
  }
}

}  // namespace
}  // namespace fastvae
