#include "ops/masked_conv2d.h"

#include <bit>
#include <memory>
#include <mutex>
#include <utility>

#include "base/memory.h"
#include "base/parallel.h"
#include "images/conv_tiles.h"
#include "images/pixels.h"
#include "simd/activation.h"

namespace fastvae {
namespace {

// A band's inputs should stay in the second-level cache, and its halo be small beside it.
constexpr int64_t kBandBytes = 256 << 10, kLeastBand = 8;

// Pixels of one part of the sums for a weight's gradient, and the fewest that are worth a part of their own.
constexpr int64_t kPartPixels = 2048, kLeastPartPixels = 1024;
// With fewer pixels there are still this many parts, which threads share, and with more pixels this many at least.
constexpr int64_t kFewParts = 4, kManyParts = 16;
// Pixels whose products are added one after another.
constexpr int64_t kBlockPixels = 256;

// Whole vectors are read behind a row's last pixel.
template <class T>
constexpr int64_t kSlack = kTileVectors * Simd<T>::kWidth;

// Images cut into bands of rows, for caches and for threads.
struct Bands {
  int64_t count;

  // `threads` share the images; few images are cut into more bands for them.
  Bands(int64_t images, int64_t height, int64_t row_bytes, int64_t threads) {
    const int64_t rows = std::max(kLeastBand, kBandBytes / std::max<int64_t>(row_bytes, 1));
    const int64_t for_caches = (height + rows - 1) / rows;
    const int64_t for_threads = images < threads ? (threads + images - 1) / std::max<int64_t>(images, 1) : 1;
    count = std::min(std::max<int64_t>(height, 1), std::max(for_caches, for_threads));
  }
  int64_t begin(int64_t band, int64_t height) const { return height * band / count; }
};

// Eight products count as one operation, as vectors compute them.
template <class T>
int64_t work_of_row(const ConvSpec<T>& s) {
  return s.out_width * s.out * s.group_in() * static_cast<int64_t>(s.taps.size()) / 8;
}

// The first and the last row of the dilated kernel that has a tap.
template <class T>
struct Reach {
  int64_t first_row = 0, last_row = 0;

  explicit Reach(const ConvSpec<T>& s) {
    if (s.taps.empty()) return;
    first_row = s.tap_row(s.taps.front());
    last_row = s.tap_row(s.taps.back());
  }
};

template <class T>
std::vector<Term> terms_of(const ConvSpec<T>& s, int64_t channels, int64_t row_stride, int64_t pixel_stride,
                           bool mirrored, int64_t first_row) {
  std::vector<Term> terms;
  const int64_t last_row = Reach<T>(s).last_row, last_column = (s.kernel_width - 1) * s.dilation_x;
  for (const int64_t tap : s.taps) {
    const int64_t row = mirrored ? last_row - s.tap_row(tap) : s.tap_row(tap) - first_row;
    const int64_t column = mirrored ? last_column - s.tap_column(tap) : s.tap_column(tap);
    for (int64_t c = 0; c < channels; ++c) terms.push_back({row * row_stride + column * pixel_stride + c, tap, c});
  }
  return terms;
}

template <class T>
void activate_all(int64_t activation, T* values, int64_t count) {
  constexpr int64_t width = Simd<T>::kWidth;
  with_activation(static_cast<Activation>(activation), [&](auto a) {
    constexpr Activation chosen = decltype(a)::value;
    if constexpr (chosen == Activation::kIdentity) return;
    int64_t i = 0;
    for (; i + width <= count; i += width) store(values + i, activate<chosen>(load(values + i)));
    if (i < count) store_first(values + i, activate<chosen>(load_first(values + i, count - i)), count - i);
  });
}

// values *= derivative at `at`.
template <class T>
void multiply_by_derivative(int64_t activation, T* values, const T* at, int64_t count) {
  constexpr int64_t width = Simd<T>::kWidth;
  with_activation(static_cast<Activation>(activation), [&](auto a) {
    constexpr Activation chosen = decltype(a)::value;
    if constexpr (chosen == Activation::kIdentity) return;
    int64_t i = 0;
    for (; i + width <= count; i += width)
      store(values + i, through_activation<chosen>(load(values + i), load(at + i)));
    if (i < count)
      store_first(values + i,
                  through_activation<chosen>(load_first(values + i, count - i), load_first(at + i, count - i)),
                  count - i);
  });
}

template <class T>
void fwd(const ConvSpec<T>& s, Images<const T> x, Images<T> y, T* pre) {
  const int64_t columns = std::max(s.out_width + (s.kernel_width - 1) * s.dilation_x, s.left + s.width);
  const int64_t row = columns * s.in;
  const Reach<T> reach(s);
  const auto terms = terms_of(s, s.group_in(), row, s.in, false, reach.first_row);
  std::vector<PackedProducts<T>> groups;
  groups.reserve(s.groups);
  for (int64_t g = 0; g < s.groups; ++g) {
    const int64_t first_in = g * s.group_in(), first_out = g * s.group_out();
    groups.emplace_back(
        s.group_out(), terms, [&](int64_t o, const Term& t) { return s.weight_of(first_out + o, t.channel, t.tap); },
        [&](int64_t o, const Term& t) { return s.counts(t.tap, first_in + t.channel, first_out + o); },
        [&](int64_t o) { return s.bias ? s.bias[first_out + o] : T(0); });
  }
  const Bands bands(s.images, s.out_height, row * static_cast<int64_t>(sizeof(T)), omp_get_max_threads());
  const int64_t reached = reach.last_row - reach.first_row;
  const int64_t most_rows = (s.out_height + bands.count - 1) / bands.count + 1 + reached;
  Images<T> pre_images = y;
  pre_images.data = pre;
  const auto one_band = [&](int64_t unit, T* inputs, T* outputs) {
    const int64_t image = unit / bands.count, band = unit % bands.count;
    const int64_t begin = bands.begin(band, s.out_height), end = bands.begin(band + 1, s.out_height);
    fill_window({begin + reach.first_row - s.top, end - begin + reached, -s.left, columns}, s.height, s.width, s.in,
                inputs, [&](int64_t h, T* to) { gather_row(x, image, h, s.width, s.in, to); });
    for (int64_t h = begin; h < end; ++h) {
      for (int64_t g = 0; g < s.groups; ++g)
        for (const auto& block : groups[g].blocks)
          multiply_block<T>(block, block.offsets.data(), inputs + (h - begin) * row + g * s.group_in(), s.in,
                            s.out_width, outputs + g * s.group_out() + block.first, s.out);
      if (pre) scatter_row(outputs, s.out_width, s.out, pre_images, image, h);
      activate_all(s.activation, outputs, s.out_width * s.out);
      scatter_row(outputs, s.out_width, s.out, y, image, h);
    }
  };
  parallel_ranges(s.images * bands.count, work_of_row(s) * s.out_height / bands.count, [&](int64_t begin, int64_t end) {
    const Scratch<T> inputs(most_rows * row + kSlack<T>), outputs(s.out_width * s.out + kSlack<T>);
    for (int64_t unit = begin; unit < end; ++unit) one_band(unit, inputs.get(), outputs.get());
  });
}

// One part of the sums for the gradients of weight and bias: for each group (terms, columns) and (columns).
template <class T>
class WeightSums {
 public:
  WeightSums(const ConvSpec<T>& s, int64_t terms)
      : stride((s.group_out() + kSlack<T> - 1) / kSlack<T> * kSlack<T>),
        group_size((terms + 1) * stride),
        size_(s.groups * group_size),
        memory_(size_) {
    std::fill_n(memory_.get(), size_, T(0));
  }
  // The term after the last is the bias.
  T* of(int64_t group, int64_t term) const { return memory_.get() + group * group_size + term * stride; }

  void add(const WeightSums& other) const {
    T* to = memory_.get();
    const T* from = other.memory_.get();
#pragma omp simd
    for (int64_t i = 0; i < size_; ++i) to[i] += from[i];
  }

  int64_t stride, group_size;

 private:
  int64_t size_;
  Scratch<T> memory_;
};

// The parts of the sums depend on the sizes alone, and so do the pairs in which they are added up, and the pairs of
// pairs: the sum has the same bits whichever threads compute it. The later part of a pair finds the earlier one
// waiting.
template <class T>
class PartSums {
 public:
  explicit PartSums(int64_t parts) : waiting_(static_cast<size_t>(parts)) {}

  void add(int64_t part, std::unique_ptr<WeightSums<T>> sums) {
    const int64_t parts = static_cast<int64_t>(waiting_.size());
    for (int64_t width = 1; width < parts; width *= 2) {
      const int64_t first = part / width * width, other = first ^ width;
      if (other >= parts) continue;
      std::unique_ptr<WeightSums<T>> found;
      {
        const std::lock_guard<std::mutex> lock(gate_);
        Waiting& partner = waiting_[static_cast<size_t>(other)];
        if (partner.width == width)
          found = std::move(partner.sums);
        else
          waiting_[static_cast<size_t>(first)] = {width, std::move(sums)};
      }
      if (!found) return;
      sums->add(*found);
    }
    waiting_[0] = {parts, std::move(sums)};
  }

  const WeightSums<T>& total() const { return *waiting_[0].sums; }

 private:
  // The sums of `width` parts, at the place of the first one.
  struct Waiting {
    int64_t width = 0;
    std::unique_ptr<WeightSums<T>> sums;
  };
  std::vector<Waiting> waiting_;
  std::mutex gate_;
};

int64_t count_parts(int64_t units, int64_t pixels) {
  const int64_t parts = std::max(pixels / kPartPixels, std::min(kManyParts, pixels / kLeastPartPixels));
  return std::min(units, static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(std::max(kFewParts, parts)))));
}

template <class T>
void add_rows(const T* d, int64_t count, int64_t stride, int64_t columns, T* sums) {
  for (int64_t p = 0; p < count; ++p)
#pragma omp simd
    for (int64_t c = 0; c < columns; ++c) sums[c] += d[p * stride + c];
}

// The columns of the adjoints that a band's input gradients need, zeros beyond the borders.
template <class T>
struct AdjointWindow {
  int64_t shift, columns;

  explicit AdjointWindow(const ConvSpec<T>& s)
      : shift(std::max(s.left, (s.kernel_width - 1) * s.dilation_x)),
        columns(std::max(s.width, s.out_width - s.left) + shift) {}
};

struct RowRange {
  int64_t begin, end;

  int64_t count() const { return end - begin; }
};

// d_weight from the sums, zeros where masked.
template <class T>
void weight_gradient(const ConvSpec<T>& s, T* d_weight, const WeightSums<T>& total) {
  const int64_t area = s.kernel_height * s.kernel_width, in = s.group_in(), row = in * area;
  parallel_ranges(s.out, row * 8, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      const int64_t g = o / s.group_out();
      std::fill_n(d_weight + o * row, row, T(0));
      for (size_t t = 0; t < s.taps.size(); ++t)
        for (int64_t i = 0; i < in; ++i)
          if (s.counts(s.taps[t], g * in + i, o))
            d_weight[o * row + i * area + s.taps[t]] = total.of(g, static_cast<int64_t>(t) * in + i)[o % s.group_out()];
    }
  });
}

template <class T>
void bwd(const ConvSpec<T>& s, Images<const T> d_y, Images<const T> at, Images<const T> x, Images<T> d_x, T* d_weight,
         T* d_bias) {
  const Reach<T> reach(s);
  const int64_t reached = reach.last_row - reach.first_row;
  const int64_t x_columns = std::max(s.out_width + (s.kernel_width - 1) * s.dilation_x, s.left + s.width);
  const int64_t x_row = x_columns * s.in;
  const AdjointWindow<T> adjoint(s);
  const int64_t d_row = adjoint.columns * s.out;
  const auto x_terms = terms_of(s, s.group_in(), x_row, s.in, false, reach.first_row);
  std::vector<int64_t> x_offsets;
  for (const Term& term : x_terms) x_offsets.push_back(term.offset);
  const int64_t terms = static_cast<int64_t>(x_terms.size());

  std::vector<PackedProducts<T>> groups;
  if (d_x.data) {
    const auto d_terms = terms_of(s, s.group_out(), d_row, s.out, true, 0);
    groups.reserve(s.groups);
    for (int64_t g = 0; g < s.groups; ++g) {
      const int64_t first_in = g * s.group_in(), first_out = g * s.group_out();
      groups.emplace_back(
          s.group_in(), d_terms, [&](int64_t i, const Term& t) { return s.weight_of(first_out + t.channel, i, t.tap); },
          [&](int64_t i, const Term& t) { return s.counts(t.tap, first_in + i, first_out + t.channel); },
          [](int64_t) { return T(0); });
    }
  }

  const Bands bands(s.images, std::max(s.height, s.out_height), (x_row + d_row) * static_cast<int64_t>(sizeof(T)),
                    kFewParts);
  const int64_t units = s.images * bands.count;
  const bool of_weight = d_weight || d_bias;
  const int64_t parts = of_weight ? count_parts(units, s.images * s.out_height * s.out_width) : units;
  PartSums<T> sums(std::max<int64_t>(parts, 1));
  // The outputs whose adjoints a band needs: its own, and those that read its inputs.
  const auto adjoint_rows = [&](int64_t band) {
    const int64_t begin = bands.begin(band, s.out_height), end = bands.begin(band + 1, s.out_height);
    return RowRange{std::min(begin, bands.begin(band, s.height) + s.top - reach.last_row),
                    std::max(end, bands.begin(band + 1, s.height) + s.top - reach.first_row)};
  };

  const auto one_band = [&](int64_t unit, T* inputs, T* adjoints, T* line, const WeightSums<T>* total) {
    const int64_t image = unit / bands.count, band = unit % bands.count;
    const int64_t begin = bands.begin(band, s.out_height), end = bands.begin(band + 1, s.out_height);
    const int64_t in_begin = bands.begin(band, s.height), in_end = bands.begin(band + 1, s.height);
    const RowRange needed = adjoint_rows(band);
    const int64_t first = needed.begin;
    fill_window({first, needed.count(), s.left - adjoint.shift, adjoint.columns}, s.out_height, s.out_width, s.out,
                adjoints, [&](int64_t h, T* to) {
                  gather_row(d_y, image, h, s.out_width, s.out, to);
                  if (static_cast<Activation>(s.activation) == Activation::kIdentity) return;
                  gather_row(at, image, h, s.out_width, s.out, line);
                  multiply_by_derivative(s.activation, to, line, s.out_width * s.out);
                });
    if (total) {
      const T* own = adjoints + (begin - first) * d_row + (adjoint.shift - s.left) * s.out;
      if (d_weight)
        fill_window({begin + reach.first_row - s.top, end - begin + reached, -s.left, x_columns}, s.height, s.width,
                    s.in, inputs, [&](int64_t h, T* to) { gather_row(x, image, h, s.width, s.in, to); });
      // About two rows at a time: the sums are long, and the adjoints fit in the first-level cache.
      const int64_t for_cache = (16 << 10) / (s.out_width * s.out * static_cast<int64_t>(sizeof(T)) + 1);
      const int64_t at_once =
          std::max<int64_t>(1, std::min(for_cache, kBlockPixels / std::max<int64_t>(s.out_width, 1)));
      for (int64_t g = 0; g < s.groups; ++g)
        for (int64_t h = 0; h < end - begin; h += at_once) {
          const int64_t rows = std::min(at_once, end - begin - h);
          const T* d = own + h * d_row + g * s.group_out();
          if (d_bias) {
            std::fill_n(line, s.group_out(), T(0));
            for (int64_t r = 0; r < rows; ++r) add_rows(d + r * d_row, s.out_width, s.out, s.group_out(), line);
            add_rows(line, 1, 0, s.group_out(), total->of(g, terms));
          }
          if (d_weight)
            accumulate_products<T>(x_offsets, s.group_out(), inputs + h * x_row + g * s.group_in(), s.in, x_row, d,
                                   s.out, d_row, {rows, s.out_width}, total->of(g, 0), total->stride);
        }
    }
    if (!d_x.data) return;
    for (int64_t h = in_begin; h < in_end; ++h) {
      const T* from = adjoints + (h + s.top - reach.last_row - first) * d_row;
      // The mirrored offsets count columns from the kernel's last column.
      const T* pixel = from + (adjoint.shift - (s.kernel_width - 1) * s.dilation_x) * s.out;
      for (int64_t g = 0; g < s.groups; ++g)
        for (const auto& block : groups[g].blocks)
          multiply_block<T>(block, block.offsets.data(), pixel + g * s.group_out(), s.out, s.width,
                            line + g * s.group_in() + block.first, s.in);
      scatter_row(line, s.width, s.in, d_x, image, h);
    }
  };

  int64_t most_adjoints = 0;
  for (int64_t band = 0; band < bands.count; ++band)
    most_adjoints = std::max(most_adjoints, adjoint_rows(band).count());
  const int64_t most_inputs = (s.out_height + bands.count - 1) / bands.count + 1 + reached;
  const int64_t line_size = std::max(s.out_width * s.out, s.width * s.in) + kSlack<T>;
  const int64_t work = 3 * work_of_row(s) * s.out_height * s.images / std::max<int64_t>(parts, 1);
  parallel_ranges(parts, work, [&](int64_t begin, int64_t end) {
    const Scratch<T> inputs(d_weight ? most_inputs * x_row + kSlack<T> : 0);
    const Scratch<T> adjoints(most_adjoints * d_row + kSlack<T>), line(line_size);
    for (int64_t part = begin; part < end; ++part) {
      auto own = of_weight ? std::make_unique<WeightSums<T>>(s, terms) : nullptr;
      for (int64_t unit = units * part / parts; unit < units * (part + 1) / parts; ++unit)
        one_band(unit, inputs.get(), adjoints.get(), line.get(), own.get());
      if (own) sums.add(part, std::move(own));
    }
  });
  if (!of_weight) return;
  if (parts == 0) sums.add(0, std::make_unique<WeightSums<T>>(s, terms));
  const WeightSums<T>& total = sums.total();
  if (d_weight) weight_gradient(s, d_weight, total);
  if (d_bias)
    for (int64_t o = 0; o < s.out; ++o) d_bias[o] = total.of(o / s.group_out(), terms)[o % s.group_out()];
}

template <class T>
MaskedConv2d<T> kernels() {
  return {fwd<T>, bwd<T>};
}

}  // namespace

inline namespace FASTVAE_ISA {
MaskedConv2d<float> masked_conv2d_f32() { return kernels<float>(); }
MaskedConv2d<double> masked_conv2d_f64() { return kernels<double>(); }
}  // namespace FASTVAE_ISA

}  // namespace fastvae
