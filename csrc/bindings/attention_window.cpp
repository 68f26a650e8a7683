// The reading and writing of windows. Images and patches are contiguous, windows have contiguous rows.
#include "bindings/bindings.h"
#include "bindings/layer_views.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace fastvae {
namespace {

// Returns the patches (M, K, N, N) of one or two images (M, H, W).
nb::object attention_read_fwd(nb::handle x, nb::handle other, nb::handle window, int64_t points) {
  const TensorView first = view(x), second = view(other), w = view(window);
  const WindowExtent e{first.shape[0], points, first.shape[1], first.shape[2]};
  const Output patches = new_tensor(x, first, {e.windows, second.given ? 2 : 1, points, points});
  with_type(first.is_double(), [&]<class T>(T) {
    current().of<T>().attention_window.read_fwd({first.as<const T>(), second.as<const T>()}, rows_of<T>(w),
                                                patches.as<T>(), e);
  });
  return patches.tensor;
}

// Returns the gradients of the images and of the windows; None for those that `needs` does not want.
nb::tuple attention_read_bwd(nb::handle d_patches, nb::handle x, nb::handle other, nb::handle window,
                             nb::handle needs) {
  const TensorView g = view(d_patches), first = view(x), second = view(other), w = view(window);
  const WindowExtent e{first.shape[0], g.shape[2], first.shape[1], first.shape[2]};
  const Items wanted(needs);
  const auto wants = [&](size_t i) { return wanted[i].ptr() == Py_True; };
  const Output d_x = wants(0) ? new_tensor(x, first, {e.windows, e.height, e.width}) : Output();
  const Output d_other = second.given && wants(1) ? new_tensor(x, first, {e.windows, e.height, e.width}) : Output();
  const Output d_window = wants(2) ? new_tensor(window, w, {e.windows, w.shape[1]}) : Output();
  with_type(first.is_double(), [&]<class T>(T) {
    T* const d_images[] = {d_x.as<T>(), d_other.as<T>()};
    current().of<T>().attention_window.read_bwd(g.as<const T>(), {first.as<const T>(), second.as<const T>()},
                                                rows_of<T>(w), d_images, d_window.as<T>(), e);
  });
  return nb::make_tuple(d_x.tensor, d_other.tensor, d_window.tensor);
}

// Returns the image (M, height, width) of a patch (M, N, N).
nb::object attention_write_fwd(nb::handle patch, nb::handle window, int64_t height, int64_t width) {
  const TensorView p = view(patch), w = view(window);
  const WindowExtent e{p.shape[0], p.shape[1], height, width};
  const Output image = new_tensor(patch, p, {e.windows, height, width});
  with_type(p.is_double(), [&]<class T>(T) {
    current().of<T>().attention_window.write_fwd(p.as<const T>(), rows_of<T>(w), image.as<T>(), e);
  });
  return image.tensor;
}

// Returns the gradients of the patch and of the windows; None for those that `needs` does not want.
nb::tuple attention_write_bwd(nb::handle d_image, nb::handle patch, nb::handle window, nb::handle needs) {
  const TensorView g = view(d_image), p = view(patch), w = view(window);
  const WindowExtent e{p.shape[0], p.shape[1], g.shape[1], g.shape[2]};
  const Items wanted(needs);
  const auto wants = [&](size_t i) { return wanted[i].ptr() == Py_True; };
  const Output d_patch = wants(0) ? new_tensor(patch, p, {e.windows, e.points, e.points}) : Output();
  const Output d_window = wants(1) ? new_tensor(window, w, {e.windows, w.shape[1]}) : Output();
  with_type(p.is_double(), [&]<class T>(T) {
    current().of<T>().attention_window.write_bwd(g.as<const T>(), p.as<const T>(), rows_of<T>(w), d_patch.as<T>(),
                                                 d_window.as<T>(), e);
  });
  return nb::make_tuple(d_patch.tensor, d_window.tensor);
}

}  // namespace

void bind_attention_window(nb::module_& m) {
  m.def("attention_read_fwd", attention_read_fwd, "x"_a, "other"_a.none(), "window"_a, "points"_a);
  m.def("attention_read_bwd", attention_read_bwd, "d_patches"_a, "x"_a, "other"_a.none(), "window"_a, "needs"_a);
  m.def("attention_write_fwd", attention_write_fwd, "patch"_a, "window"_a, "height"_a, "width"_a);
  m.def("attention_write_bwd", attention_write_bwd, "d_image"_a, "patch"_a, "window"_a, "needs"_a);
}

}  // namespace fastvae
