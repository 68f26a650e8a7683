// Writes past the caches, for arrays larger than they are: no line is read first, and the caches keep other data.
#pragma once

#include <cstdint>

#include "simd/simd.h"

namespace fastvae {
inline namespace FASTVAE_ISA {

// A last-level cache of 32 MiB does not keep arrays from this size on until they are read again.
constexpr int64_t kStreamBytes = 12 << 20;

// Whether rows of d numbers from data on are written past the caches: they are large together, and each row is whole
// aligned vectors.
template <class T>
bool streams(const T* data, int64_t rows, int64_t d) {
  return rows * d * static_cast<int64_t>(sizeof(T)) >= kStreamBytes && d % Simd<T>::kWidth == 0 &&
         reinterpret_cast<uintptr_t>(data) % kVectorBytes == 0;
}

}  // namespace FASTVAE_ISA
}  // namespace fastvae
