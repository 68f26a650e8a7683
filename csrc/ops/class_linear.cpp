#include "ops/class_linear.h"

#include <algorithm>

#include "base/memory.h"
#include "base/parallel.h"
#include "simd/activation.h"
#include "simd/lanes.h"
#include "simd/pairwise_sums.h"

namespace fastvae {
namespace {

constexpr int64_t kWorkPerNumber = 12;

// Calls body(h, count) for the vectors of a row; count is less than a vector at its end.
template <class T, class Body>
FASTVAE_INLINE void each_vector(int64_t columns, const Body& body) {
  constexpr int64_t width = Simd<T>::kWidth;
  int64_t h = 0;
  for (; h + width <= columns; h += width) body(h, width);
  if (h < columns) body(h, columns - h);
}

template <class T>
const T* row_or_null(Matrix<T> terms, int64_t row) {
  return terms.data ? terms.row(row) : nullptr;
}

template <class T>
FASTVAE_INLINE typename Simd<T>::Vector load_or_zero(const T* from, int64_t h, int64_t count) {
  return from ? load_up_to(from + h, count) : typename Simd<T>::Vector{};
}

template <class T>
void fwd(int64_t activation, ClassExtent extent, const ClassTerms<T>& terms, T* y, T* pre) {
  // Not a structured binding: with OpenMP Clang 15 captures none in a lambda.
  const int64_t rows = extent.rows, classes = extent.classes, columns = extent.columns;
  with_activation(static_cast<Activation>(activation), [&](auto a) {
    parallel_ranges(rows * classes, columns * kWorkPerNumber, [&](int64_t begin, int64_t end) {
      for (int64_t cell = begin; cell < end; ++cell) {
        const T *of_row = row_or_null(terms.rows, cell / classes), *own = row_or_null(terms.cells, cell);
        const T* of_class = row_or_null(terms.classes, cell % classes);
        T *to = y + cell * columns, *sums = pre ? pre + cell * columns : nullptr;
        each_vector<T>(columns, [&](int64_t h, int64_t count) FASTVAE_INLINE_LAMBDA {
          const auto sum =
              load_or_zero(of_row, h, count) + load_or_zero(own, h, count) + load_or_zero(of_class, h, count);
          store_up_to(to + h, activate<decltype(a)::value>(sum), count);
          if (sums) store_up_to(sums + h, sum, count);
        });
      }
    });
  });
}

// Rows whose gradients of the classes' terms are added one after another. The blocks depend on the shape alone; small
// ones leave work for several threads.
int64_t rows_of_block(int64_t rows) {
  constexpr int64_t blocks = 16, least = 8;
  return std::clamp((rows + blocks - 1) / blocks, least, kBlockTerms);
}

// Adds the sums of blocks, `size` numbers each, to those of the first block, in pairs.
template <class T>
void add_blocks(T* sums, int64_t blocks, int64_t size) {
  for (int64_t step = 1; step < blocks; step *= 2)
    for (int64_t b = 0; b + step < blocks; b += 2 * step) {
      const T* other = sums + (b + step) * size;
      T* to = sums + b * size;
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) to[i] += other[i];
    }
}

// One row's gradients. `by_class`, the sums over rows, is begun by the first row of a block. `part` has room for a sum
// over classes.
template <Activation a, class T>
FASTVAE_INLINE void row_gradients(ClassExtent extent, int64_t row, const T* d_y, const T* at, ClassGradients<T> to,
                                  T* by_class, bool first_row, T* part) {
  const auto [rows, classes, columns] = extent;
  T* d_row = to.rows ? to.rows + row * columns : nullptr;
  for (int64_t c = 0; c < classes; ++c) {
    const int64_t place = (row * classes + c) * columns;
    const bool first = c % kBlockTerms == 0, last = (c + 1) % kBlockTerms == 0 || c + 1 == classes;
    T* d_class = by_class ? by_class + c * columns : nullptr;
    each_vector<T>(columns, [&](int64_t h, int64_t count) FASTVAE_INLINE_LAMBDA {
      const auto g = through_activation<a>(load_up_to(d_y + place + h, count), load_up_to(at + place + h, count));
      if (to.cells) store_up_to(to.cells + place + h, g, count);
      if (d_class) store_up_to(d_class + h, first_row ? g : load_up_to(d_class + h, count) + g, count);
      if (!d_row) return;
      auto sum = first ? g : load_up_to(part + h, count) + g;
      if (last && c >= kBlockTerms) sum += load_up_to(d_row + h, count);
      store_up_to((last ? d_row : part) + h, sum, count);
    });
  }
}

template <class T>
void bwd(int64_t activation, ClassExtent extent, const T* d_y, const T* at, ClassGradients<T> gradients) {
  const int64_t rows = extent.rows, size = extent.classes * extent.columns, per_block = rows_of_block(rows);
  const int64_t blocks = count_blocks(rows, per_block);
  const Scratch<T> of_blocks(gradients.classes && blocks > 1 ? blocks * size : 0);
  T* sums = of_blocks.get() ? of_blocks.get() : gradients.classes;
  with_activation(static_cast<Activation>(activation), [&](auto a) {
    parallel_ranges(blocks, per_block * size * kWorkPerNumber, [&](int64_t begin, int64_t end) {
      const Scratch<T> part(extent.columns);
      for (int64_t block = begin; block < end; ++block) {
        T* by_class = sums ? sums + block * size : nullptr;
        const int64_t first = block * per_block, last = std::min(first + per_block, rows);
        for (int64_t row = first; row < last; ++row)
          row_gradients<decltype(a)::value>(extent, row, d_y, at, gradients, by_class, row == first, part.get());
      }
    });
  });
  if (!gradients.classes) return;
  if (blocks == 0) std::fill_n(gradients.classes, size, T(0));
  if (blocks < 2) return;
  add_blocks(sums, blocks, size);
  std::copy_n(sums, size, gradients.classes);
}

template <class T>
ClassLinear<T> kernels() {
  return {fwd<T>, bwd<T>};
}

}  // namespace

inline namespace FASTVAE_ISA {
ClassLinear<float> class_linear_f32() { return kernels<float>(); }
ClassLinear<double> class_linear_f64() { return kernels<double>(); }
}  // namespace FASTVAE_ISA

}  // namespace fastvae
