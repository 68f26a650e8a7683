#include "ops/causal_sampler.h"

#include <algorithm>

#include "base/crew.h"
#include "base/memory.h"
#include "base/parallel.h"
#include "images/gate.h"
#include "images/pixel_heads.h"
#include "images/sampler_program.h"
#include "simd/lanes.h"

namespace fastvae {
namespace {

// Images that one thread draws side by side: two tiles share every loaded weight, and a pixel's activations of all
// layers fit in the second-level cache.
constexpr int64_t kImagesAtOnce = 2 * kTilePixels;

// Products of a row that are worth sharing, some 5 us.
constexpr int64_t kSharedWork = 1 << 17;

// The items of a job: the pixels of a row of one image, or one pixel of several images.
struct Place {
  int64_t image, row, column, items;
  bool along_images;
};

// Images [first, first + count) of the batch, drawn by one thread. A crew takes part in products of whole rows.
template <class T>
class Sampling {
 public:
  using Vector = typename Simd<T>::Vector;

  Sampling(const SamplerProgram<T>& program, const PixelHead<T>& head, T* images, const uint8_t* given,
           const T* uniforms, T* parameters, int64_t capacity, Crew* crew)
      : program_(program),
        plan_(program.plan),
        sizes_(program.plan.sizes),
        head_(head),
        images_(images),
        given_(given),
        uniforms_(uniforms),
        parameters_(parameters),
        crew_(crew),
        memory_(capacity * sizes_.image_numbers),
        scratch_(std::max(sizes_.width, capacity) * program.most_channels),
        values_(sizes_.channels) {}

  void run(int64_t first, int64_t count) {
    first_ = first;
    count_ = count;
    std::fill_n(memory_.get(), count * sizes_.image_numbers, T(0));
    for (int64_t h = 0; h < sizes_.height; ++h) {
      for (const Job& job : program_.row_jobs) row(job, h);
      if (plan_.all_given) {
        for (int64_t w = 0; w < sizes_.width; ++w)
          for (int64_t c = 0; c < sizes_.channels; ++c) each_image([&](int64_t i) { known(i, c, h, w); });
        for (const auto& [pass, job] : program_.by_node) row(program_.passes[pass][job], h);
        if (parameters_)
          for (int64_t w = 0; w < sizes_.width; ++w) keep_parameters(h, w);
      } else {
        for (int64_t w = 0; w < sizes_.width; ++w) pixel(h, w);
      }
    }
  }

 private:
  template <class Body>
  void each_image(const Body& body) const {
    for (int64_t i = 0; i < count_; ++i) body(i);
  }

  T* at(int64_t buffer, int64_t image, int64_t row, int64_t column) const {
    return memory_.get() + image * sizes_.image_numbers + locate(plan_.buffers[buffer], row, column);
  }
  // The parameters' buffer.
  int64_t last_buffer() const { return static_cast<int64_t>(plan_.buffers.size()) - 1; }

  // Where a place's first item is, and how far apart its items are.
  T* at(int64_t buffer, int64_t first, const Place& place) const {
    return at(buffer, place.image, place.row, place.column) + first;
  }
  int64_t step(int64_t buffer, const Place& place) const {
    return place.along_images ? sizes_.image_numbers : plan_.buffers[buffer].channels;
  }
  T scalar(int64_t index) const { return static_cast<T>(plan_.scalars[index]); }

  T& pixel_of(int64_t image, int64_t c, int64_t h, int64_t w) const {
    return images_[(((first_ + image) * sizes_.channels + c) * sizes_.height + h) * sizes_.width + w];
  }
  // Copies the value of a pixel's channel to where the network reads it.
  void known(int64_t image, int64_t c, int64_t h, int64_t w) const { at(0, image, h, w)[c] = pixel_of(image, c, h, w); }

  void row(const Job& job, int64_t h) {
    const int64_t work = job.op() == SamplerOp::kConv ? program_.convs[job.conv].products.size() * sizes_.width : 0;
    if (crew_ && crew_->size() > 1 && work >= kSharedWork)
      crew_->share(crew_->size(), [&](int64_t part) { run_columns(job, h, part, crew_->size()); });
    else
      each_image([&](int64_t i) { run_job(job, {i, h, 0, sizes_.width, false}); });
  }

  // One of `parts` ranges of the row's columns.
  void run_columns(const Job& job, int64_t h, int64_t part, int64_t parts) {
    const int64_t begin = sizes_.width * part / parts, end = sizes_.width * (part + 1) / parts;
    each_image([&](int64_t i) { run_job(job, {i, h, begin, end - begin, false}); });
  }

  void pixel(int64_t h, int64_t w) {
    for (size_t pass = 0; pass < program_.passes.size(); ++pass) {
      for (const Job& job : program_.passes[pass]) run_job(job, {0, h, w, count_, true});
      if (pass < program_.drawn.size()) each_image([&](int64_t i) { draw(i, h, w, program_.drawn[pass]); });
      if (parameters_ && pass + 1 == program_.drawn.size()) keep_parameters(h, w);
    }
  }

  void draw(int64_t image, int64_t h, int64_t w, const std::vector<int64_t>& channels) {
    const int64_t n = first_ + image, position = h * sizes_.width + w, area = sizes_.height * sizes_.width;
    const T* u = uniforms_ + (n * area + position) * head_.columns;
    const auto is_given = [&](int64_t c) { return given_ && given_[(n * sizes_.channels + c) * area + position]; };
    for (const int64_t c : channels)
      if (is_given(c)) values_[c] = pixel_of(image, c, h, w);
    head_.draw(at(last_buffer(), image, h, w), u, channels, is_given, values_.data());
    for (const int64_t c : channels) {
      pixel_of(image, c, h, w) = values_[c];
      known(image, c, h, w);
    }
  }

  void keep_parameters(int64_t h, int64_t w) const {
    const int64_t area = sizes_.height * sizes_.width;
    each_image([&](int64_t i) {
      const T* from = at(last_buffer(), i, h, w);
      T* to = parameters_ + (first_ + i) * sizes_.parameters * area + h * sizes_.width + w;
      for (int64_t p = 0; p < sizes_.parameters; ++p) to[p * area] = from[p];
    });
  }

  void run_job(const Job& job, const Place& place) {
    const SamplerNode& node = job.node;
    switch (job.op()) {
      case SamplerOp::kConv:
        return convolve(job, place);
      case SamplerOp::kAdd:
        return pointwise(job, place, node.src, node.src_first, node.other, node.other_first,
                         [](Vector a, Vector b) { return a + b; });
      case SamplerOp::kSub:
        return pointwise(job, place, node.src, node.src_first, node.other, node.other_first,
                         [](Vector a, Vector b) { return a - b; });
      case SamplerOp::kMul:
        return pointwise(job, place, node.src, node.src_first, node.other, node.other_first,
                         [](Vector a, Vector b) { return a * b; });
      case SamplerOp::kAffine: {
        const T alpha = scalar(node.alpha), beta = scalar(node.beta);
        return pointwise(job, place, node.src, node.src_first, [=](Vector a) { return a * alpha + beta; });
      }
      case SamplerOp::kActivation:
        return activation(job, place);
      case SamplerOp::kGate:
        return gate(job, place);
      case SamplerOp::kCopy:
        return pointwise(job, place, node.src, node.src_first, [](Vector a) { return a; });
      case SamplerOp::kConstant:
        return constant(job, place);
    }
  }

  // Calls body(channel, count) for the vectors of an item's channels.
  template <class Body>
  FASTVAE_INLINE void each_vector(const ChannelSet& channels, const Body& body) const {
    constexpr int64_t width = Simd<T>::kWidth;
    if (!channels.contiguous) {
      for (const int64_t c : channels.list) body(c, 1);
      return;
    }
    const int64_t first = channels.first(), count = channels.count();
    int64_t c = 0;
    for (; c + width <= count; c += width) body(first + c, width);
    if (c < count) body(first + c, count - c);
  }

  template <class Function>
  FASTVAE_INLINE void pointwise(const Job& job, const Place& place, int64_t a, int64_t a_first, int64_t b,
                                int64_t b_first, const Function& function) const {
    const T *x = at(a, a_first, place), *y = at(b, b_first, place);
    T* to = at(job.node.dst, job.node.dst_first, place);
    const int64_t x_step = step(a, place), y_step = step(b, place), to_step = step(job.node.dst, place);
    for (int64_t i = 0; i < place.items; ++i, x += x_step, y += y_step, to += to_step)
      each_vector(job.channels, [&](int64_t c, int64_t count) FASTVAE_INLINE_LAMBDA {
        store_up_to(to + c, function(load_up_to(x + c, count), load_up_to(y + c, count)), count);
      });
  }

  template <class Function>
  FASTVAE_INLINE void pointwise(const Job& job, const Place& place, int64_t a, int64_t a_first,
                                const Function& function) const {
    pointwise(job, place, a, a_first, a, a_first, [&](Vector x, Vector) FASTVAE_INLINE_LAMBDA { return function(x); });
  }

  void activation(const Job& job, const Place& place) const {
    const SamplerNode& node = job.node;
    const auto chosen = static_cast<Activation>(node.activation);
    const auto apply = [&](const auto& function) { pointwise(job, place, node.src, node.src_first, function); };
    if (chosen == Activation::kSigmoid) return apply([](Vector a) { return sigmoid(a); });
    if (chosen == Activation::kLeakyRelu) {
      const T slope = scalar(node.slope);
      return apply([=](Vector a) { return a > 0 ? a : a * slope; });
    }
    with_activation(chosen, [&](auto a) { apply([](Vector v) { return activate<decltype(a)::value>(v); }); });
  }

  void gate(const Job& job, const Place& place) const {
    const SamplerNode& node = job.node;
    const int64_t half = node.channels;
    const bool conditioned = node.other != kAbsent;
    const T* x = at(node.src, node.src_first, place);
    const T* condition = conditioned ? at(node.other, node.other_first, place) : nullptr;
    T* to = at(node.dst, node.dst_first, place);
    const int64_t x_step = step(node.src, place), to_step = step(node.dst, place);
    const int64_t condition_step = conditioned ? step(node.other, place) : 0;
    with_gate(static_cast<Gate>(node.gate), [&](auto chosen) {
      for (int64_t i = 0; i < place.items; ++i, x += x_step, condition += condition_step, to += to_step)
        each_vector(job.channels, [&](int64_t c, int64_t count) FASTVAE_INLINE_LAMBDA {
          Vector a = load_up_to(x + c, count), b = load_up_to(x + half + c, count);
          if (conditioned) {
            a += load_up_to(condition + c, count);
            b += load_up_to(condition + half + c, count);
          }
          store_up_to(to + c, apply_gate<chosen()>(a, b), count);
        });
    });
  }

  void constant(const Job& job, const Place& place) const {
    const int64_t channels = job.node.channels, area = sizes_.height * sizes_.width;
    const bool is_map = job.node.is_map != 0;
    const T* from = program_.address(job.node.constant) + (first_ + place.image) * channels * (is_map ? area : 1);
    T* to = at(job.node.dst, job.node.dst_first, place);
    const int64_t to_step = step(job.node.dst, place);
    for (int64_t i = 0; i < place.items; ++i, to += to_step)
      for (int64_t c = 0; c < channels; ++c) to[c] = is_map ? from[c * area + place.row * sizes_.width + i] : from[c];
  }

  void convolve(const Job& job, const Place& place) const {
    const SamplerNode& node = job.node;
    const int64_t count = job.channels.count(), source_row = place.row % plan_.buffers[node.src].rows;
    const Conv<T>& conv = program_.convs[job.conv];
    const T* x = at(node.src, node.src_first, place);
    T* to = at(node.dst, node.dst_first, place);
    const int64_t x_step = step(node.src, place), to_step = step(node.dst, place);
    const bool direct = job.channels.contiguous;
    T* out = direct ? to + job.channels.first() : scratch_.get() + (place.along_images ? 0 : place.column * count);
    const int64_t out_step = direct ? to_step : count;
    for (size_t b = 0; b < conv.products.blocks.size(); ++b) {
      const auto& block = conv.products.blocks[b];
      multiply_block<T>(block, conv.offsets[b][source_row].data(), x, x_step, place.items, out + block.first, out_step);
    }
    with_activation(static_cast<Activation>(node.activation), [&](auto a) {
      constexpr Activation chosen = decltype(a)::value;
      if constexpr (chosen == Activation::kIdentity) return;
      constexpr int64_t width = Simd<T>::kWidth;
      for (int64_t i = 0; i < place.items; ++i)
        for (int64_t c = 0; c < count; c += width) {
          const int64_t here = std::min(width, count - c);
          T* values = out + i * out_step + c;
          store_up_to(values, activate<chosen>(load_up_to(values, here)), here);
        }
    });
    if (direct) return;
    for (int64_t i = 0; i < place.items; ++i)
      for (int64_t c = 0; c < count; ++c) to[i * to_step + job.channels.list[c]] = out[i * count + c];
  }

  const SamplerProgram<T>& program_;
  const SamplerPlan& plan_;
  const SamplerSizes& sizes_;
  const PixelHead<T>& head_;
  T* images_;
  const uint8_t* given_;
  const T* uniforms_;
  T* parameters_;
  Crew* crew_;
  Scratch<T> memory_, scratch_;
  std::vector<T> values_;
  int64_t first_ = 0, count_ = 0;
};

template <class T>
void run(const SamplerPlan& plan, T* images, const uint8_t* given, const T* uniforms, T* parameters) {
  const SamplerProgram<T> program(plan);
  const PixelHead<T> head(plan);
  const int64_t threads = omp_get_max_threads();
  const int64_t count = plan.sizes.images;
  const int64_t each = std::clamp<int64_t>((count + threads - 1) / threads, 1, kImagesAtOnce);
  const int64_t groups = (count + each - 1) / each;
  const auto draw = [&](int64_t group, Crew* crew) {
    const int64_t first = group * each, own = std::min(each, count - first);
    Sampling<T>(program, head, images, given, uniforms, parameters, own, crew).run(first, own);
  };
  if (groups == 1 && threads > 1 && !omp_in_parallel())
    Crew::run(std::clamp<int64_t>(plan.sizes.width / kTilePixels, 1, threads), [&](Crew& crew) { draw(0, &crew); });
  else
    parallel_tasks(groups, kParallelWork, [&](int64_t group) { draw(group, nullptr); });
}

template <class T>
CausalSampler<T> kernels() {
  return {run<T>};
}

}  // namespace

inline namespace FASTVAE_ISA {
CausalSampler<float> causal_sampler_f32() { return kernels<float>(); }
CausalSampler<double> causal_sampler_f64() { return kernels<double>(); }
}  // namespace FASTVAE_ISA

}  // namespace fastvae
