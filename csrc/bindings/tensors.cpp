#include "bindings/tensors.h"

#include <nanobind/ndarray.h>

#include <algorithm>
#include <functional>
#include <new>
#include <numeric>
#include <vector>

#include "base/memory.h"

namespace nb = nanobind;

namespace fastvae {
namespace {

// The structures and functions of DLPack, version 1, that are used here (github.com/dmlc/dlpack, dlpack.h).
struct DlDevice {
  int32_t type, id;
};
struct DlType {
  uint8_t code, bits;
  uint16_t lanes;
};
struct DlTensor {
  void* data;
  DlDevice device;
  int32_t dims;
  DlType type;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};
struct DlExchange {
  uint32_t major, minor;
  DlExchange* previous;
  void *allocate, *from_object, *to_object;
  int (*view)(void* object, DlTensor* to);
  void* current_stream;
};
constexpr int32_t kDlCpu = 1;
constexpr uint8_t kDlInt = 0, kDlFloat = 2, kDlBfloat = 4;

// Torch's objects, looked up once. Never destroyed: tensors may outlive every static object.
struct Torch {
  PyTypeObject *tensor, *parameter;
  nb::object float32, float64, int64, deterministic, is_neg;
  const DlExchange* exchange = nullptr;
  bool wanted = true;

  Torch() {
    const nb::module_ torch = nb::module_::import_("torch");
    const nb::object type = torch.attr("Tensor");
    tensor = reinterpret_cast<PyTypeObject*>(type.ptr());
    parameter = reinterpret_cast<PyTypeObject*>(torch.attr("nn").attr("Parameter").ptr());
    float32 = torch.attr("float32");
    float64 = torch.attr("float64");
    int64 = torch.attr("int64");
    deterministic = torch.attr("are_deterministic_algorithms_enabled");
    is_neg = type.attr("is_neg");
    const nb::object capsule = nb::getattr(type, "__dlpack_c_exchange_api__", nb::none());
    if (!PyCapsule_CheckExact(capsule.ptr())) return;
    const auto* found =
        static_cast<const DlExchange*>(PyCapsule_GetPointer(capsule.ptr(), PyCapsule_GetName(capsule.ptr())));
    if (!found) throw nb::python_error();
    if (found->major == 1) exchange = found;
  }
};

Torch& torch() {
  static Torch* const instance = new Torch;
  return *instance;
}

bool is_negated(nb::handle tensor) {
  const nb::object answer = nb::steal(PyObject_CallFunctionObjArgs(torch().is_neg.ptr(), tensor.ptr(), nullptr));
  if (!answer.is_valid()) throw nb::python_error();
  return answer.ptr() == Py_True;
}

// Whether a tensor has memory. Its storage may be freed, or may never exist, as for a tensor of zeros.
bool is_allocated(const void* data, const int64_t* shape, int32_t dims) {
  return data || std::find(shape, shape + dims, 0) != shape + dims;
}

bool find(const DlExchange& exchange, nb::handle tensor, DlTensor& found) {
  if (exchange.view(tensor.ptr(), &found) == 0) return true;
  PyErr_Clear();
  return false;
}

void* data_of(const DlTensor& t) { return static_cast<char*>(t.data) + t.byte_offset; }

Scalar scalar_of(DlType type) {
  if (type.lanes != 1) return Scalar::kOther;
  if (type.code == kDlFloat && type.bits == 32) return Scalar::kFloat;
  if (type.code == kDlFloat && type.bits == 64) return Scalar::kDouble;
  return type.code == kDlInt && type.bits == 64 ? Scalar::kInt64 : Scalar::kOther;
}

Scalar scalar_by_method(const Torch& torch, nb::handle tensor) {
  const nb::object dtype = tensor.attr("dtype");
  if (dtype.is(torch.float32)) return Scalar::kFloat;
  if (dtype.is(torch.float64)) return Scalar::kDouble;
  return dtype.is(torch.int64) ? Scalar::kInt64 : Scalar::kOther;
}

void* data_by_method(nb::handle tensor) {
  return reinterpret_cast<void*>(nb::cast<uintptr_t>(tensor.attr("data_ptr")()));
}

bool view_by_exchange(const DlExchange& exchange, nb::handle tensor, TensorView& view) {
  DlTensor t;
  if (!find(exchange, tensor, t) || t.device.type != kDlCpu || t.dims > TensorView::kMostDims) return false;
  view.data = data_of(t);
  view.dims = t.dims;
  for (int i = 0; i < t.dims; ++i) {
    view.shape[i] = t.shape[i];
    view.stride[i] = t.strides[i];
  }
  view.scalar = scalar_of(t.type);
  return true;
}

bool view_by_methods(const Torch& torch, nb::handle tensor, TensorView& view) {
  if (!nb::cast<bool>(tensor.attr("is_cpu"))) return false;
  const nb::tuple shape(tensor.attr("shape")), stride(tensor.attr("stride")());
  if (shape.size() > TensorView::kMostDims) return false;
  view.data = data_by_method(tensor);
  view.dims = static_cast<int>(shape.size());
  for (int i = 0; i < view.dims; ++i) {
    view.shape[i] = nb::cast<int64_t>(shape[i]);
    view.stride[i] = nb::cast<int64_t>(stride[i]);
  }
  view.scalar = scalar_by_method(torch, tensor);
  return true;
}

}  // namespace

bool try_view(nb::handle tensor, TensorView& view) {
  view = {};
  if (tensor.is_none()) return true;
  const Torch& t = torch();
  if (!PyObject_TypeCheck(tensor.ptr(), t.tensor)) return false;
  view.given = true;
  return t.exchange && t.wanted ? view_by_exchange(*t.exchange, tensor, view) : view_by_methods(t, tensor, view);
}

bool is_watched() {
  // Python's functions, looked up once, since torch's headers are not used.
  struct Questions {
    nb::object modes, transforms, tracing, level_name, profiling_name;
    nb::dict forward_ad, profiler;

    Questions() {
      const nb::object internals = nb::module_::import_("torch").attr("_C");
      modes = internals.attr("_len_torch_dispatch_stack");
      transforms = internals.attr("_are_functorch_transforms_active");
      tracing = internals.attr("_get_tracing_state");
      forward_ad = nb::module_::import_("torch.autograd.forward_ad").attr("__dict__");
      profiler = nb::module_::import_("torch.autograd.profiler").attr("__dict__");
      level_name = nb::steal(PyUnicode_InternFromString("_current_level"));
      profiling_name = nb::steal(PyUnicode_InternFromString("_is_profiler_enabled"));
    }
  };
  static Questions* const ask = new Questions;
  const auto answer = [](const nb::object& question) {
    nb::object found = nb::steal(PyObject_CallNoArgs(question.ptr()));
    if (!found.is_valid()) throw nb::python_error();
    return found;
  };
  if (PyDict_GetItem(ask->profiler.ptr(), ask->profiling_name.ptr()) == Py_True) return true;
  PyObject* level = PyDict_GetItem(ask->forward_ad.ptr(), ask->level_name.ptr());
  if (level && PyLong_AsLong(level) >= 0) return true;
  const nb::object stack = answer(ask->modes);
  if (PyLong_AsLong(stack.ptr()) != 0) return true;
  return answer(ask->transforms).ptr() == Py_True || !answer(ask->tracing).is_none();
}

bool is_plain(nb::handle tensor) {
  const Torch& t = torch();
  return Py_TYPE(tensor.ptr()) == t.tensor || Py_TYPE(tensor.ptr()) == t.parameter;
}

bool is_readable(nb::handle tensor, TensorKind& kind) {
  const Torch& t = torch();
  kind = {};
  if (t.exchange && t.wanted) {
    DlTensor found;
    if (!find(*t.exchange, tensor, found)) return false;
    if (found.type.code == kDlFloat || found.type.code == kDlBfloat)
      kind.floating = 100 * found.type.code + found.type.bits;
    if (found.dims == 2 && (found.strides[1] == 1 || found.shape[1] == 1)) {
      kind.rows = found.shape[0];
      kind.width = found.shape[1];
    }
    return found.device.type == kDlCpu && is_allocated(found.data, found.shape, found.dims) && !is_negated(tensor);
  }
  try {
    if (!nb::cast<bool>(tensor.attr("is_cpu"))) return false;
    const nb::tuple sizes(tensor.attr("shape"));
    std::vector<int64_t> shape;
    for (const nb::handle size : sizes) shape.push_back(nb::cast<int64_t>(size));
    const auto* data = reinterpret_cast<const void*>(nb::cast<uintptr_t>(tensor.attr("data_ptr")()));
    return is_allocated(data, shape.data(), static_cast<int32_t>(shape.size())) && !is_negated(tensor);
  } catch (const nb::python_error&) {
    return false;  // sparse and nested tensors have no address
  }
}

bool try_readable_view(nb::handle tensor, TensorView& view) {
  if (!try_view(tensor, view) || !is_allocated(view.data, view.shape, view.dims)) return false;
  // Only parts of complex numbers are negated lazily.
  return view.scalar == Scalar::kInt64 || !is_negated(tensor);
}

TensorView view(nb::handle tensor) {
  TensorView found;
  if (!try_view(tensor, found)) throw nb::type_error("the extension takes tensors in the memory of the CPU");
  return found;
}

FlatView flat_view(nb::handle tensor) {
  FlatView flat;
  if (tensor.is_none()) return flat;
  const Torch& t = torch();
  flat.given = true;
  if (t.exchange && t.wanted) {
    DlTensor found;
    if (!find(*t.exchange, tensor, found) || found.device.type != kDlCpu)
      throw nb::type_error("the extension takes tensors in the memory of the CPU");
    flat.data = data_of(found);
    flat.scalar = scalar_of(found.type);
    flat.dims = found.dims;
    flat.count = std::accumulate(found.shape, found.shape + found.dims, int64_t{1}, std::multiplies<>());
    return flat;
  }
  flat.data = data_by_method(tensor);
  flat.scalar = scalar_by_method(t, tensor);
  flat.dims = nb::cast<int>(tensor.attr("dim")());
  flat.count = nb::cast<int64_t>(tensor.attr("numel")());
  return flat;
}

Output new_tensor(nb::handle like, const Numbers& of_like, std::span<const int64_t> shape) {
  // From this size on outputs use blocks: the first touch of fresh pages costs more than the kernel that fills them.
  constexpr size_t block_bytes = 1 << 20;
  const Torch& t = torch();
  size_t bytes = of_like.is_double() ? sizeof(double) : sizeof(float);
  for (const int64_t size : shape) bytes = checked_bytes(bytes, static_cast<size_t>(size));
  // Under deterministic algorithms torch fills what it allocates.
  if (bytes >= block_bytes && !nb::cast<bool>(t.deterministic())) {
    void* data = take_block(bytes);
    const nb::capsule owner(data, [](void* block) noexcept { give_back(block); });
    const std::vector<size_t> sizes(shape.begin(), shape.end());
    return {nb::cast(
                nb::ndarray<nb::pytorch, nb::c_contig>(data, sizes.size(), sizes.data(), owner, nullptr,
                                                       of_like.is_double() ? nb::dtype<double>() : nb::dtype<float>())),
            data};
  }
  static PyObject* const name = PyUnicode_InternFromString("new_empty");
  nb::object made;
  if (shape.size() > 0 && shape.size() <= TensorView::kMostDims) {
    // Torch reads sizes faster as single arguments than as a tuple. A null pointer is the end of them.
    static_assert(TensorView::kMostDims == 4);
    nb::object sizes[TensorView::kMostDims];
    for (size_t i = 0; i < shape.size(); ++i) sizes[i] = nb::int_(shape[i]);
    made = nb::steal(PyObject_CallMethodObjArgs(like.ptr(), name, sizes[0].ptr(), sizes[1].ptr(), sizes[2].ptr(),
                                                sizes[3].ptr(), nullptr));
  } else {
    nb::list sizes;
    for (const int64_t size : shape) sizes.append(size);
    made = nb::steal(PyObject_CallMethodObjArgs(like.ptr(), name, sizes.ptr(), nullptr));
  }
  if (!made.is_valid()) throw nb::python_error();
  DlTensor found;
  if (t.exchange && t.wanted && find(*t.exchange, made, found)) return {made, data_of(found)};
  return {made, data_by_method(made)};
}

bool use_exchange(bool wanted) {
  torch().wanted = wanted;
  return wanted && torch().exchange;
}

}  // namespace fastvae
