// Writing past the caches what is larger than they are: it saves reading the lines first, and keeps the rest cached.
#pragma once

#include <cstdint>

#include "simd/simd.h"

namespace fastvae {
namespace {

// Arrays from this size on do not stay in a last-level cache of 32 MiB, beside all else, until they are read again.
constexpr int64_t kStreamBytes = 12 << 20;

// Whether rows of d numbers from data on are written past the caches: all of it large, each row whole aligned vectors.
template <class T>
bool streams(const T* data, int64_t rows, int64_t d) {
  return rows * d * static_cast<int64_t>(sizeof(T)) >= kStreamBytes && d % Simd<T>::kWidth == 0 &&
         reinterpret_cast<uintptr_t>(data) % kVectorBytes == 0;
}

}  // namespace
}  // namespace fastvae
