// What the extension's bindings share.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <vector>

#include "dispatch.h"

namespace fastvae {

// Add the functions on images, and those on masked layers and networks, to the module.
void bind_images(nanobind::module_& m);
void bind_networks(nanobind::module_& m);

namespace {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

template <class T>
Matrix<T> matrix(Address address, int64_t stride) {
  return {at<const T>(address), stride};
}

template <class T>
NoiseSource<T> noise_source(Address noise, bool given, int64_t row_offset) {
  return {given ? nullptr : at<const int64_t>(noise), given ? at<const T>(noise) : nullptr, row_offset};
}

// Runs body with a float or a double, without the interpreter lock.
template <class Body>
void typed(bool is_double, const Body& body) {
  const nanobind::gil_scoped_release release;
  if (is_double)
    body(double{});
  else
    body(float{});
}

using Integers = std::vector<int64_t>;

}  // namespace
}  // namespace fastvae
