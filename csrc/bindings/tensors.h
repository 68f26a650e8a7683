// Torch's tensors as arguments and results of bindings, without torch's headers. Torch >= 2.10 has a table of C
// functions that read a tensor (DLPack's exchange API): 50 ns a tensor, half of what one method of the Python object
// takes. With older versions the methods are called.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <initializer_list>
#include <span>
#include <vector>

namespace fastvae {

enum class Scalar { kOther, kFloat, kDouble, kInt64 };

// The numbers of a tensor in the memory of the CPU; without data where None was given.
struct Numbers {
  void* data = nullptr;
  Scalar scalar = Scalar::kOther;
  int dims = 0;
  bool given = false;

  bool is_double() const { return scalar == Scalar::kDouble; }
  bool is_real() const { return scalar == Scalar::kFloat || scalar == Scalar::kDouble; }

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

// A tensor of up to four dimensions.
struct TensorView : Numbers {
  static constexpr int kMostDims = 4;

  int64_t shape[kMostDims] = {}, stride[kMostDims] = {};

  // Whether the numbers of the last dimension are side by side, as one number always is.
  bool contiguous_rows() const { return dims == 0 || stride[dims - 1] == 1 || shape[dims - 1] <= 1; }
  // Whether rows of a vector or a matrix also follow each other.
  bool contiguous() const {
    return contiguous_rows() && (dims < 2 || (dims == 2 && (stride[0] == shape[1] || shape[0] <= 1)));
  }
};

// A contiguous tensor of any number of dimensions.
struct FlatView : Numbers {
  int64_t count = 0;
};

// A new tensor, whose numbers a kernel writes; None, without data, for an output that is not wanted.
struct Output {
  nanobind::object tensor = nanobind::none();
  void* data = nullptr;

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

// Whether it is a tensor or a parameter itself. A subclass may want to see every op.
bool is_plain(nanobind::handle tensor);
// Whether torch's machinery must see every op: a dispatch mode, a transform, forward-mode differentiation, a trace or
// the profiler.
bool is_watched();
// The properties by which tensors need checks or do not.
struct TensorKind {
  int floating = 0;               // a number for each floating-point type; 0 for others, and where there is no table
  int64_t rows = -1, width = -1;  // of a matrix with contiguous rows that are not empty

  bool is_matrix() const { return width > 0; }
  bool operator==(const TensorKind&) const = default;
};
// Whether a kernel can read the tensor as it is: strided, allocated in the memory of the CPU, and not negated lazily.
bool is_readable(nanobind::handle tensor, TensorKind& kind);
// The same, with its view.
bool try_readable_view(nanobind::handle tensor, TensorView& view);
// False unless it is a tensor in the memory of the CPU, or None, an absent one.
bool try_view(nanobind::handle tensor, TensorView& view);
// The same, or TypeError.
TensorView view(nanobind::handle tensor);
// The same for a contiguous tensor, however many dimensions it has.
FlatView flat_view(nanobind::handle tensor);

// An uninitialised tensor of `like`'s dtype, float32 or float64. Large ones use blocks of the pool.
Output new_tensor(nanobind::handle like, const Numbers& of_like, std::span<const int64_t> shape);
inline Output new_tensor(nanobind::handle like, const Numbers& of_like, std::initializer_list<int64_t> shape) {
  return new_tensor(like, of_like, std::span<const int64_t>(shape.begin(), shape.size()));
}

// Switches torch's table on or off, so that tests try both ways. Returns whether it is used now.
bool use_exchange(bool wanted);

// The items of a list or tuple.
class Items {
 public:
  explicit Items(nanobind::handle sequence)
      : fast_(nanobind::steal(PySequence_Fast(sequence.ptr(), "expected a list or tuple"))) {
    if (!fast_.is_valid()) throw nanobind::python_error();
    is_list_ = PyList_Check(fast_.ptr());
  }
  size_t size() const { return static_cast<size_t>(Py_SIZE(fast_.ptr())); }
  nanobind::handle operator[](size_t i) const {
    if (i >= size()) throw nanobind::index_error("a list is too short");
    const auto place = static_cast<Py_ssize_t>(i);
    return is_list_ ? NB_LIST_GET_ITEM(fast_.ptr(), place) : NB_TUPLE_GET_ITEM(fast_.ptr(), place);
  }
  // All of them as integers.
  std::vector<int64_t> integers() const {
    std::vector<int64_t> found(size());
    for (size_t i = 0; i < found.size(); ++i) found[i] = nanobind::cast<int64_t>((*this)[i]);
    return found;
  }

 private:
  nanobind::object fast_;
  bool is_list_;
};

}  // namespace fastvae
