// Looks at a call's tensors, which tell Python whether the kernels can be called at once.
#include <vector>

#include "bindings/bindings.h"
#include "bindings/tensors.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace fastvae {
namespace {

// The result of a look at a call's tensors, where None is an absent one, and at torch's modes.
enum class Look {
  kNotPlain,  // somebody must see the op, or the kernels cannot read a tensor as it is
  kPlain,     // the kernels can be called without torch's dispatcher
  kAlike,     // also, the first `required` ones are there, and the first `floats` ones of one floating-point type
  kRows,      // also, those are matrices of one shape with contiguous rows, which are not empty
};

int look(nb::handle tensors, size_t floats, size_t required) {
  if (is_watched()) return static_cast<int>(Look::kNotPlain);
  const Items given(tensors);
  TensorKind first;
  bool alike = true, rows = true;
  for (size_t i = 0; i < given.size(); ++i) {
    if (given[i].is_none()) {
      alike &= i >= required;
      continue;
    }
    TensorKind kind;
    if (!is_plain(given[i]) || !is_readable(given[i], kind)) return static_cast<int>(Look::kNotPlain);
    if (i >= floats) continue;
    if (i == 0) first = kind;
    alike &= kind.floating != 0 && kind.floating == first.floating;
    rows &= kind.is_matrix() && kind == first;
  }
  return static_cast<int>(!alike ? Look::kPlain : rows ? Look::kRows : Look::kAlike);
}

nb::object to_tuple(const std::vector<nb::handle>& items) {
  nb::object tuple = nb::steal(PyTuple_New(static_cast<Py_ssize_t>(items.size())));
  for (size_t i = 0; i < items.size(); ++i)
    NB_TUPLE_SET_ITEM(tuple.ptr(), static_cast<Py_ssize_t>(i), items[i].inc_ref().ptr());
  return tuple;
}

// Returns a call's tensors as one tuple (the weights, then context term, biases and factors as far as they are there),
// and a tuple that says which are there. Returns None where they must be checked, cast or laid out first: unless all
// are float32, or all float64, in the memory of the CPU, have the sizes of the degrees, and contiguous rows.
nb::object network_tensors(nb::handle x, nb::handle context_term, nb::handle weights, nb::handle biases,
                           nb::handle scales, nb::handle degrees, nb::handle structure) {
  TensorView point, t;
  if (is_watched()) return nb::none();
  const auto try_plain_view = [](nb::handle tensor, TensorView& to) {
    return tensor.is_none() ? try_view(tensor, to) : is_plain(tensor) && try_readable_view(tensor, to);
  };
  if (!try_plain_view(x, point) || !point.given || !point.is_real() || point.dims != 2 || !point.contiguous_rows())
    return nb::none();
  const Items w(weights), d(degrees), b(biases), s(scales), of_structure(structure);
  const size_t layers = w.size();
  if (layers == 0 || d.size() != layers + 1 || b.size() != layers || s.size() != layers) return nb::none();
  const int64_t features = nb::cast<int64_t>(of_structure[0]), params = nb::cast<int64_t>(of_structure[1]);
  const auto fits = [&](int dims) { return t.scalar == point.scalar && t.dims == dims && t.contiguous_rows(); };
  std::vector<int64_t> sizes(layers + 1);
  for (size_t l = 0; l <= layers; ++l) {
    if (!try_plain_view(d[l], t) || t.scalar != Scalar::kInt64 || t.dims != 1 || !t.contiguous_rows())
      return nb::none();
    sizes[l] = t.shape[0];
  }
  if (point.shape[1] != features || sizes[0] != features || sizes[layers] != features * params) return nb::none();
  std::vector<nb::handle> found;
  found.reserve(3 * layers + 1);
  for (size_t l = 0; l < layers; ++l) {
    if (!try_plain_view(w[l], t) || !fits(2) || t.shape[0] != sizes[l + 1] || t.shape[1] != sizes[l]) return nb::none();
    found.push_back(w[l]);
  }
  nb::object present = nb::steal(PyTuple_New(static_cast<Py_ssize_t>(1 + 2 * layers)));
  const auto add = [&](size_t place, nb::handle tensor) {
    NB_TUPLE_SET_ITEM(present.ptr(), static_cast<Py_ssize_t>(place), nb::bool_(t.given).release().ptr());
    if (t.given) found.push_back(tensor);
  };
  if (!try_plain_view(context_term, t)) return nb::none();
  // Its rows follow each other.
  if (t.given && (!fits(2) || t.shape[0] != point.shape[0] || t.shape[1] != sizes[1] ||
                  (t.stride[0] != sizes[1] && t.shape[0] > 1)))
    return nb::none();
  add(0, context_term);
  for (size_t part = 0; part < 2; ++part)
    for (size_t l = 0; l < layers; ++l) {
      const nb::handle item = part == 0 ? b[l] : s[l];
      if (!try_plain_view(item, t) || (t.given && (!fits(1) || t.shape[0] != sizes[l + 1]))) return nb::none();
      add(1 + part * layers + l, item);
    }
  return nb::make_tuple(to_tuple(found), present);
}

// Returns a decoder's tensors as one tuple (the weights, then the biases that there are), and a tuple that says which
// biases are there. Returns None where they must be checked, cast or laid out first: unless all are float32, or all
// float64, in the memory of the CPU, of sizes that fit, with contiguous rows, and x has one row or as many as the
// points, which are matrices of one shape.
nb::object decoder_tensors(nb::handle points, nb::handle weights, nb::handle biases, nb::handle x) {
  if (is_watched()) return nb::none();
  TensorView first, t;
  const auto fits = [&](nb::handle tensor, int dims) {
    return is_plain(tensor) && try_readable_view(tensor, t) && t.is_real() && t.dims == dims && t.contiguous_rows() &&
           (!first.given || t.scalar == first.scalar);
  };
  const Items z(points), w(weights), b(biases);
  const size_t layers = w.size();
  if (layers == 0 || b.size() != layers) return nb::none();
  for (size_t i = 0; i < z.size(); ++i) {
    if (!fits(z[i], 2)) return nb::none();
    if (i == 0) first = t;
    if (t.shape[0] != first.shape[0] || t.shape[1] != first.shape[1]) return nb::none();
  }
  std::vector<nb::handle> found;
  found.reserve(2 * layers);
  std::vector<int64_t> sizes{first.shape[1]};
  for (size_t l = 0; l < layers; ++l) {
    if (!fits(w[l], 2) || t.shape[1] != sizes[l] || t.shape[0] == 0 || t.shape[1] == 0) return nb::none();
    found.push_back(w[l]);
    sizes.push_back(t.shape[0]);
  }
  nb::object has_bias = nb::steal(PyTuple_New(static_cast<Py_ssize_t>(layers)));
  for (size_t l = 0; l < layers; ++l) {
    const bool there = !b[l].is_none();
    if (there && (!fits(b[l], 1) || t.shape[0] != sizes[l + 1])) return nb::none();
    if (there) found.push_back(b[l]);
    NB_TUPLE_SET_ITEM(has_bias.ptr(), static_cast<Py_ssize_t>(l), nb::bool_(there).release().ptr());
  }
  if (!fits(x, 2) || t.shape[1] != sizes[layers] || (t.shape[0] != first.shape[0] && t.shape[0] != 1))
    return nb::none();
  return nb::make_tuple(to_tuple(found), has_bias);
}

}  // namespace

void bind_looks(nb::module_& m) {
  m.def("use_exchange", use_exchange, "wanted"_a);
  m.def("look", look);
  m.def("network_tensors", network_tensors, "x"_a.none(), "context_term"_a.none(), "weights"_a.none(),
        "biases"_a.none(), "scales"_a.none(), "degrees"_a.none(), "structure"_a);
  m.def("decoder_tensors", decoder_tensors, "points"_a, "weights"_a, "biases"_a, "x"_a.none());
}

}  // namespace fastvae
