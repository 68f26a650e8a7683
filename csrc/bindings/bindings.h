// What the extension's bindings share.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <vector>

#include "ops/dispatch.h"

// Lists of numbers. Nanobind's own caster may not throw, and ends the process where memory is short. This one takes the
// memory first, and throws when the function asks for the list.
namespace nanobind::detail {

template <class Entry>
struct checked_list_caster : list_caster<std::vector<Entry>, Entry> {
  using List = std::vector<Entry>;
  using Base = list_caster<List, Entry>;
  using Base::value;

  bool from_python(handle source, uint32_t flags, cleanup_list* cleanup) noexcept {
    const Py_ssize_t size = PyObject_Size(source.ptr());
    if (size < 0) PyErr_Clear();  // no list, which the other caster finds out
    try {
      value.reserve(size > 0 ? static_cast<size_t>(size) : 0);
    } catch (...) {
      return exhausted_ = true;
    }
    return Base::from_python(source, flags, cleanup);
  }

  explicit operator List*() { return &checked(); }
  explicit operator List&() { return checked(); }
  explicit operator List&&() { return static_cast<List&&>(checked()); }

 private:
  List& checked() {
    if (exhausted_) throw std::bad_alloc();
    return value;
  }

  bool exhausted_ = false;
};

template <>
struct type_caster<std::vector<int64_t>> : checked_list_caster<int64_t> {};
template <>
struct type_caster<std::vector<uint64_t>> : checked_list_caster<uint64_t> {};
template <>
struct type_caster<std::vector<double>> : checked_list_caster<double> {};

}  // namespace nanobind::detail

namespace fastvae {

// Each adds the functions of its file to the module.
void bind_attention_window(nanobind::module_& m);
void bind_bernoulli(nanobind::module_& m);
void bind_flow_steps(nanobind::module_& m);
void bind_flows(nanobind::module_& m);
void bind_gaussian_merge(nanobind::module_& m);
void bind_gaussians(nanobind::module_& m);
void bind_images(nanobind::module_& m);
void bind_layers(nanobind::module_& m);
void bind_linear_tril_gaussian(nanobind::module_& m);
void bind_looks(nanobind::module_& m);
void bind_sampler(nanobind::module_& m);

namespace {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// Runs body with a float or a double, without the interpreter lock.
template <class Body>
void with_type(bool is_double, const Body& body) {
  const nanobind::gil_scoped_release release;
  if (is_double)
    body(double{});
  else
    body(float{});
}

using Integers = std::vector<int64_t>;

// The number of integers in a struct that has nothing else.
template <class Record>
constexpr size_t fields_of = sizeof(Record) / sizeof(int64_t);

// The integers from `from` on as a struct.
template <class Record>
Record record(const int64_t* from) {
  static_assert(std::is_trivially_copyable_v<Record> && sizeof(Record) % sizeof(int64_t) == 0);
  Record named;
  std::memcpy(&named, from, sizeof(Record));
  return named;
}

// All integers of a list as structs, one after another.
template <class Record>
std::vector<Record> records(const Integers& from) {
  if (from.size() % fields_of<Record>) throw nanobind::value_error("a list does not hold whole records");
  std::vector<Record> named;
  named.reserve(from.size() / fields_of<Record>);
  for (size_t i = 0; i < from.size(); i += fields_of<Record>) named.push_back(record<Record>(from.data() + i));
  return named;
}

}  // namespace
}  // namespace fastvae
