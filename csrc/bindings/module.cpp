// The extension's module: its instruction set, its blocks of memory, and the functions that the other files bind.
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <string>
#include <vector>

#include "base/memory.h"
#include "bindings/bindings.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace fastvae;

namespace {

// An uninitialised tensor in a block of its own.
nb::ndarray<nb::pytorch, nb::c_contig> empty(bool is_double, const std::vector<size_t>& shape) {
  size_t bytes = is_double ? sizeof(double) : sizeof(float);
  for (const size_t size : shape) bytes = checked_bytes(bytes, size);
  void* data = take_block(bytes);
  const nb::capsule owner(data, [](void* block) noexcept { give_back(block); });
  return {data, shape.size(), shape.data(), owner, nullptr, is_double ? nb::dtype<double>() : nb::dtype<float>()};
}

std::vector<std::string> available_isas() {
  const Table* tables[4];
  const int count = available(tables, 4);
  std::vector<std::string> names;
  for (int i = 0; i < count; ++i) names.emplace_back(tables[i]->isa);
  return names;
}

void set_isa(const std::string& isa) {
  if (!select(isa.c_str()))
    throw nb::value_error("isa must be one of available_isas(); this processor cannot run the one asked for");
}

}  // namespace

NB_MODULE(_C, m) {
  bind_attention_window(m);
  bind_gaussian_merge(m);
  bind_bernoulli(m);
  bind_gaussians(m);
  bind_flow_steps(m);
  bind_flows(m);
  bind_images(m);
  bind_layers(m);
  bind_linear_tril_gaussian(m);
  bind_looks(m);
  bind_sampler(m);
  m.def("isa", [] { return std::string(current().isa); });
  m.def("available_isas", available_isas);
  m.def("set_isa", set_isa, "isa"_a);
  m.def("empty", empty, "is_double"_a, "shape"_a);
  m.def("release_blocks", release_blocks);
}
