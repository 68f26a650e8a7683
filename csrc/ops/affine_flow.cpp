#include "ops/affine_flow.h"

#include "base/parallel.h"
#include "network/affine.h"
#include "simd/lanes.h"

namespace fastvae {
namespace {

constexpr int64_t kWorkPerNumber = 12;

// Calls body(i, count) for the vectors of columns [begin, end); count is less than a vector at the end.
template <class T, class Body>
FASTVAE_INLINE void each_vector_of_row(int64_t begin, int64_t end, const Body& body) {
  constexpr int64_t width = Simd<T>::kWidth;
  int64_t i = begin;
  for (; i + width <= end; i += width) body(i, width);
  if (i < end) body(i, end - i);
}

template <class T>
void fwd(int64_t kind, bool inverse, Matrix<T> z, Matrix<T> shift, Matrix<T> scale_logit, T* out, LogDet<T> log_det,
         int64_t rows, int64_t columns) {
  using Vector = typename Simd<T>::Vector;
  with_kind(static_cast<FlowKind>(kind), [&](auto chosen) {
    constexpr FlowKind k = decltype(chosen)::value;
    parallel_ranges(rows, columns * kWorkPerNumber, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const T *x = z.row(n), *m = shift.row(n), *s = k == FlowKind::kLocationOnly ? m : scale_logit.row(n);
        T* to = out + n * columns;
        T log_scale = 0;
        for (int64_t first = 0; first < columns; first += kBlockNumbers<T>) {
          Vector total{};
          each_vector_of_row<T>(
              first, std::min(first + kBlockNumbers<T>, columns), [&](int64_t i, int64_t count) FASTVAE_INLINE_LAMBDA {
                const auto at = scale_of<k, T>(load_up_to(s + i, count));
                const Vector value = load_up_to(x + i, count), moved = at.c * load_up_to(m + i, count);
                const Vector back = k == FlowKind::kLocationOnly ? value - moved : (value - moved) * exp(-at.log_a);
                store_up_to(to + i, inverse ? back : at.a * value + moved, count);
                if (log_det.by_dimension)
                  store_up_to(&log_det.at(n, i, columns), inverse ? -at.log_a : at.log_a, count);
                else
                  total += count == Simd<T>::kWidth ? at.log_a : first_lanes<T>(at.log_a, count);
              });
          log_scale += sum<T>(total);
        }
        if (!log_det.by_dimension) log_det.data[n] = inverse ? -log_scale : log_scale;
      }
    });
  });
}

template <class T>
void bwd(int64_t kind, bool inverse, const T* d_out, LogDet<const T> d_log_det, Matrix<T> z, Matrix<T> shift,
         Matrix<T> scale_logit, T* d_z, T* d_shift, T* d_scale_logit, int64_t rows, int64_t columns) {
  using Vector = typename Simd<T>::Vector;
  with_kind(static_cast<FlowKind>(kind), [&](auto chosen) {
    constexpr FlowKind k = decltype(chosen)::value;
    parallel_ranges(rows, columns * kWorkPerNumber, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const T *x = z.row(n), *m = shift.row(n), *s = k == FlowKind::kLocationOnly ? m : scale_logit.row(n);
        const T* upstream = d_out + n * columns;
        const int64_t row = n * columns;
        each_vector_of_row<T>(0, columns, [&](int64_t i, int64_t count) FASTVAE_INLINE_LAMBDA {
          const auto at = scale_of<k, T>(load_up_to(s + i, count));
          const Vector g = load_up_to(upstream + i, count), location = load_up_to(m + i, count);
          const Vector value = load_up_to(x + i, count), turn = pivot<k, T>(location);
          const Vector shrink = k == FlowKind::kLocationOnly ? Vector{} + 1 : exp(-at.log_a);
          const Vector direct = inverse ? g * shrink : g * at.a;
          // The inverse, out = (z - c m) / a, has the same slope with the opposite sign.
          const Vector arm = inverse ? turn - (value - at.c * location) * shrink : value - turn;
          const Vector lever = inverse ? g * arm : direct * arm;
          const T& of_log = d_log_det.at(n, i, columns);
          const Vector given = d_log_det.by_dimension ? load_up_to(&of_log, count) : Vector{} + of_log;
          const Vector d_log = inverse ? -given : given;
          store_up_to(d_z + row + i, direct, count);
          store_up_to(d_shift + row + i, inverse ? -(direct * at.c) : g * at.c, count);
          if (k != FlowKind::kLocationOnly) store_up_to(d_scale_logit + row + i, at.to_logit(lever + d_log), count);
        });
      }
    });
  });
}

template <class T>
AffineFlow<T> kernels() {
  return {fwd<T>, bwd<T>};
}

}  // namespace

inline namespace FASTVAE_ISA {
AffineFlow<float> affine_flow_f32() { return kernels<float>(); }
AffineFlow<double> affine_flow_f64() { return kernels<double>(); }
}  // namespace FASTVAE_ISA

}  // namespace fastvae
