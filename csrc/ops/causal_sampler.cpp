#include "ops/causal_sampler.h"

#include <algorithm>

#include "base/memory.h"
#include "base/parallel.h"
#include "images/gate.h"
#include "images/pixel_heads.h"
#include "images/sampler_program.h"
#include "simd/lanes.h"

namespace fastvae {
namespace {

// Images that one thread draws side by side: two tiles share every weight that is loaded, and what a pixel touches of
// all layers stays in the second-level cache.
constexpr int64_t kImagesAtOnce = 2 * kTilePixels;

// As numbered by fastvae/ops/causal_sampler.py, beyond those that convolutions have.
constexpr int64_t kSigmoid = 7, kLeakyRelu = 8;

// Items that a job works on: the pixels of a row of one image, or one pixel of several images.
struct Place {
  int64_t image, row, column, items;
  bool along_images;
};

// Images [first, first + count) of the batch, drawn by one thread.
template <class T>
class Sampling {
 public:
  using Vector = typename Simd<T>::Vector;

  Sampling(const SamplerProgram<T>& program, const PixelHead<T>& head, T* images, const uint8_t* given,
           const T* uniforms, T* parameters, int64_t capacity)
      : program_(program),
        plan_(program.plan),
        head_(head),
        images_(images),
        given_(given),
        uniforms_(uniforms),
        parameters_(parameters),
        memory_(capacity * program.image_numbers),
        scratch_(std::max(plan_.width, capacity) * program.most_channels),
        values_(plan_.channels) {}

  void run(int64_t first, int64_t count) {
    first_ = first;
    count_ = count;
    std::fill_n(memory_.get(), count * program_.image_numbers, T(0));
    for (int64_t h = 0; h < plan_.height; ++h) {
      for (const Job& job : program_.row_jobs) row(job, h);
      if (plan_.all_given) {
        for (int64_t w = 0; w < plan_.width; ++w)
          for (int64_t c = 0; c < plan_.channels; ++c) each_image([&](int64_t i) { known(i, c, h, w); });
        for (const auto& [pass, job] : program_.by_node) row(program_.passes[pass][job], h);
        if (parameters_)
          for (int64_t w = 0; w < plan_.width; ++w) keep_parameters(h, w);
      } else {
        for (int64_t w = 0; w < plan_.width; ++w) pixel(h, w);
      }
    }
  }

 private:
  template <class Body>
  void each_image(const Body& body) const {
    for (int64_t i = 0; i < count_; ++i) body(i);
  }

  T* at(int64_t buffer, int64_t image, int64_t row, int64_t column) const {
    return memory_.get() + image * program_.image_numbers + program_.buffers[buffer].pixel(row, column);
  }
  T* at(int64_t buffer, const Place& place) const { return at(buffer, place.image, place.row, place.column); }
  int64_t step(int64_t buffer, const Place& place) const {
    return place.along_images ? program_.image_numbers : program_.buffers[buffer].channels;
  }

  T& pixel_of(int64_t image, int64_t c, int64_t h, int64_t w) const {
    return images_[(((first_ + image) * plan_.channels + c) * plan_.height + h) * plan_.width + w];
  }
  // The value of a pixel's channel, where the network reads it.
  void known(int64_t image, int64_t c, int64_t h, int64_t w) const { at(0, image, h, w)[c] = pixel_of(image, c, h, w); }

  void row(const Job& job, int64_t h) {
    each_image([&](int64_t i) { run_job(job, {i, h, 0, plan_.width, false}); });
  }

  void pixel(int64_t h, int64_t w) {
    for (size_t pass = 0; pass < program_.passes.size(); ++pass) {
      for (const Job& job : program_.passes[pass]) run_job(job, {0, h, w, count_, true});
      if (pass < program_.drawn.size()) each_image([&](int64_t i) { draw(i, h, w, program_.drawn[pass]); });
      if (parameters_ && pass + 1 == program_.drawn.size()) keep_parameters(h, w);
    }
  }

  void draw(int64_t image, int64_t h, int64_t w, const std::vector<int64_t>& channels) {
    const int64_t n = first_ + image, position = h * plan_.width + w, area = plan_.height * plan_.width;
    const int64_t parameters = static_cast<int64_t>(program_.buffers.size()) - 1;
    const T* u = uniforms_ + (n * area + position) * head_.columns;
    const auto is_given = [&](int64_t c) { return given_ && given_[(n * plan_.channels + c) * area + position]; };
    for (const int64_t c : channels)
      if (is_given(c)) values_[c] = pixel_of(image, c, h, w);
    head_.draw(at(parameters, image, h, w), u, channels, is_given, values_.data());
    for (const int64_t c : channels) {
      pixel_of(image, c, h, w) = values_[c];
      known(image, c, h, w);
    }
  }

  void keep_parameters(int64_t h, int64_t w) const {
    const int64_t last = static_cast<int64_t>(program_.buffers.size()) - 1, area = plan_.height * plan_.width;
    each_image([&](int64_t i) {
      const T* from = at(last, i, h, w);
      T* to = parameters_ + (first_ + i) * plan_.parameters * area + h * plan_.width + w;
      for (int64_t p = 0; p < plan_.parameters; ++p) to[p * area] = from[p];
    });
  }

  void run_job(const Job& job, const Place& place) {
    const int64_t* f = job.fields;
    switch (job.op) {
      case NodeOp::kConv:
        return convolve(job, place);
      case NodeOp::kAdd:
        return pointwise(job, place, f[0], f[1], f[2], f[3], [](Vector a, Vector b) { return a + b; });
      case NodeOp::kSub:
        return pointwise(job, place, f[0], f[1], f[2], f[3], [](Vector a, Vector b) { return a - b; });
      case NodeOp::kMul:
        return pointwise(job, place, f[0], f[1], f[2], f[3], [](Vector a, Vector b) { return a * b; });
      case NodeOp::kAffine: {
        const T alpha = static_cast<T>(plan_.scalars[f[2]]), beta = static_cast<T>(plan_.scalars[f[3]]);
        // Twice through memory: a fused product and sum would not round as torch's two do.
        pointwise(job, place, f[0], f[1], f[0], f[1], [=](Vector a, Vector) { return a * alpha; });
        return pointwise(job, place, job.dst, job.dst_offset, job.dst, job.dst_offset,
                         [=](Vector a, Vector) { return a + beta; });
      }
      case NodeOp::kActivation:
        return activation(job, place);
      case NodeOp::kGate:
        return gate(job, place);
      case NodeOp::kCopy:
        return pointwise(job, place, f[0], f[1], f[0], f[1], [](Vector a, Vector) { return a; });
      case NodeOp::kConstant:
        return constant(job, place);
    }
  }

  // body(to, channel, count) for the vectors of every item's channels.
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
  FASTVAE_INLINE void pointwise(const Job& job, const Place& place, int64_t a, int64_t a_offset, int64_t b,
                                int64_t b_offset, const Function& function) const {
    const T *x = at(a, place) + a_offset, *y = at(b, place) + b_offset;
    T* to = at(job.dst, place) + job.dst_offset;
    const int64_t x_step = step(a, place), y_step = step(b, place), to_step = step(job.dst, place);
    for (int64_t i = 0; i < place.items; ++i, x += x_step, y += y_step, to += to_step)
      each_vector(job.channels, [&](int64_t c, int64_t count) FASTVAE_INLINE_LAMBDA {
        store_up_to(to + c, function(load_up_to(x + c, count), load_up_to(y + c, count)), count);
      });
  }

  void activation(const Job& job, const Place& place) const {
    const int64_t *f = job.fields, chosen = f[2];
    const auto apply = [&](const auto& function) {
      pointwise(job, place, f[0], f[1], f[0], f[1], [&](Vector a, Vector) { return function(a); });
    };
    if (chosen == kSigmoid) return apply([](Vector a) { return sigmoid(a); });
    if (chosen == kLeakyRelu) {
      const T slope = static_cast<T>(plan_.scalars[f[3]]);
      return apply([=](Vector a) { return a > 0 ? a : a * slope; });
    }
    with_activation(static_cast<Activation>(chosen),
                    [&](auto a) { apply([](Vector v) { return activate<decltype(a)::value>(v); }); });
  }

  void gate(const Job& job, const Place& place) const {
    const int64_t *f = job.fields, channels = job.node_channels;
    const bool conditioned = f[2] >= 0;
    const T* x = at(f[0], place) + f[1];
    const T* condition = conditioned ? at(f[2], place) + f[3] : nullptr;
    T* to = at(job.dst, place) + job.dst_offset;
    const int64_t x_step = step(f[0], place), to_step = step(job.dst, place);
    const int64_t condition_step = conditioned ? step(f[2], place) : 0;
    with_gate(static_cast<Gate>(f[4]), [&](auto chosen) {
      for (int64_t i = 0; i < place.items; ++i, x += x_step, condition += condition_step, to += to_step)
        each_vector(job.channels, [&](int64_t c, int64_t count) FASTVAE_INLINE_LAMBDA {
          Vector a = load_up_to(x + c, count), b = load_up_to(x + channels + c, count);
          if (conditioned) {
            a += load_up_to(condition + c, count);
            b += load_up_to(condition + channels + c, count);
          }
          store_up_to(to + c, gated<chosen()>(a, b), count);
        });
    });
  }

  void constant(const Job& job, const Place& place) const {
    const int64_t *f = job.fields, channels = job.node_channels, area = plan_.height * plan_.width;
    const T* from = program_.address(f[0]) + (first_ + place.image) * channels * (f[1] ? area : 1);
    T* to = at(job.dst, place) + job.dst_offset;
    const int64_t to_step = step(job.dst, place);
    for (int64_t i = 0; i < place.items; ++i, to += to_step)
      for (int64_t c = 0; c < channels; ++c) to[c] = f[1] ? from[c * area + place.row * plan_.width + i] : from[c];
  }

  void convolve(const Job& job, const Place& place) const {
    const int64_t *f = job.fields, count = job.channels.count(), source_row = place.row % program_.buffers[f[0]].rows;
    const Conv<T>& conv = program_.convs[job.conv];
    const T* x = at(f[0], place) + f[1];
    T* to = at(job.dst, place) + job.dst_offset;
    const int64_t to_step = step(job.dst, place);
    const bool direct = job.channels.contiguous;
    T* out = direct ? to + job.channels.first() : scratch_.get();
    const int64_t out_step = direct ? to_step : count;
    for (size_t b = 0; b < conv.products.blocks.size(); ++b) {
      const auto& block = conv.products.blocks[b];
      multiply_block<T>(block, conv.offsets[b][source_row].data(), x, step(f[0], place), place.items, out + block.first,
                        out_step);
    }
    with_activation(static_cast<Activation>(f[7]), [&](auto a) {
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
  const PixelHead<T>& head_;
  T* images_;
  const uint8_t* given_;
  const T* uniforms_;
  T* parameters_;
  Scratch<T> memory_, scratch_;
  std::vector<T> values_;
  int64_t first_ = 0, count_ = 0;
};

template <class T>
void run(const SamplerPlan& plan, T* images, const uint8_t* given, const T* uniforms, T* parameters) {
  const SamplerProgram<T> program(plan);
  const PixelHead<T> head(plan.head, plan.channels, plan.scalars[0]);
  const int64_t threads = omp_get_max_threads();
  const int64_t each = std::clamp<int64_t>((plan.images + threads - 1) / threads, 1, kImagesAtOnce);
  const int64_t groups = (plan.images + each - 1) / each;
  parallel_tasks(groups, kParallelWork, [&](int64_t group) {
    const int64_t first = group * each, count = std::min(each, plan.images - first);
    Sampling<T>(program, head, images, given, uniforms, parameters, count).run(first, count);
  });
}

template <class T>
CausalSampler<T> kernels() {
  return {run<T>};
}

}  // namespace

namespace FASTVAE_ISA {
CausalSampler<float> causal_sampler_f32() { return kernels<float>(); }
CausalSampler<double> causal_sampler_f64() { return kernels<double>(); }
}  // namespace FASTVAE_ISA

}  // namespace fastvae
