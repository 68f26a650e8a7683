// The likelihood or the Gaussian behind a dense layer, and a decoder's derivatives to its input.
#include <array>

#include "base/codes.h"
#include "sanitize.h"

namespace fastvae {
namespace {

template <class T>
std::vector<T> run_bernoulli(const Kernels<T>& kernels, const MaskedLayer<T>& layer, const T* h, const T* x,
                             const T* upstream, BernoulliSizes sizes) {
  Results<T> r;
  const auto& bernoulli = kernels.linear_bernoulli;
  const int64_t rows = sizes.rows();
  auto log_p = r.array(rows), kept = r.array(bernoulli.kept_count(layer.out, sizes)), d_h = r.array(rows * layer.in),
       d_weight = r.array(layer.out * layer.in), d_bias = r.array(layer.out);
  for (T* saved : {kept.get(), static_cast<T*>(nullptr)}) {
    bernoulli.fwd(layer, {h, layer.in}, {x, layer.out}, log_p.get(), saved, sizes);
    bernoulli.bwd(layer, upstream, {h, layer.in}, {x, layer.out}, saved, d_h.get(), d_weight.get(), d_bias.get(),
                  sizes);
    r.keep(log_p, rows);
    r.keep(d_h, rows * layer.in);
    r.keep(d_weight, layer.out * layer.in);
    r.keep(d_bias, layer.out);
  }
  return r.values;
}

template <class T>
int check_bernoulli(const char* type, double tolerance) {
  int failures = 0;
  for (const BernoulliSizes sizes : {BernoulliSizes{3, 70, 1}, {5, 7, 3}, {2100, 1, 1}, {1, 1, 1}, {2, 0, 1}})
    for (int64_t in : {1, 19})
      for (int64_t out : {1, 17, 40}) {
        const auto h = random_array<T>(sizes.rows() * in), x = random_array<T>(sizes.points * out);
        const auto weight = random_array<T>(in * out), bias = random_array<T>(out);
        const auto upstream = random_array<T>(sizes.rows());
        const MaskedLayer<T> layer{weight.get(), bias.get(), nullptr, nullptr, nullptr, nullptr, in, out, in};
        char name[96];
        std::snprintf(name, sizeof(name), "%s bernoulli %ld x %ld x %ld, %ld to %ld", type, sizes.samples, sizes.points,
                      sizes.inner, in, out);
        failures += compare<T>(name, tolerance, [&](const Kernels<T>& kernels) {
          return run_bernoulli(kernels, layer, h.get(), x.get(), upstream.get(), sizes);
        });
      }
  return failures;
}

// With a seed or normals; of which gradients there are, each gets its turn.
template <class T>
std::vector<T> run_head(const Kernels<T>& kernels, const GaussianHead<T>& head, const T* h, const T* eps,
                        const T* upstream, int64_t rows) {
  Results<T> r;
  const auto& gaussian = kernels.linear_tril_gaussian;
  const int64_t d = head.latents, in = head.layer.in, out = head.layer.out, seed = 5;
  auto z = r.array(rows * d), log_q = r.array(rows), kl = r.array(rows * d), d_h = r.array(rows * in);
  auto d_weight = r.array(out * in), d_bias = r.array(out), kept = r.array(gaussian.kept_count(rows, d));
  for (bool each : {false, true})
    for (bool given : {false, true}) {
      const NoiseSource<T> noise{given ? nullptr : &seed, given ? eps : nullptr, 3};
      gaussian.fwd(head, {h, in}, noise, z.get(), log_q.get(), {kl.get(), each}, nullptr, rows);
      gaussian.fwd(head, {h, in}, noise, z.get(), log_q.get(), {kl.get(), each}, kept.get(), rows);
      r.keep(z, rows * d);
      r.keep(log_q, rows);
      r.keep(kl, each ? rows * d : rows);
      gaussian.bwd(head, {h, in}, kept.get(), upstream, given ? upstream : nullptr, {each ? upstream : nullptr, each},
                   each ? d_h.get() : nullptr, {given ? d_weight.get() : nullptr, d_bias.get(), nullptr}, rows);
      if (each) r.keep(d_h, rows * in);
      if (given) r.keep(d_weight, out * in);
      r.keep(d_bias, out);
    }
  return r.values;
}

template <class T>
int check_heads(const char* type, double tolerance) {
  int failures = 0;
  for (int64_t rows : {0, 1, 16, 65, 600})
    for (int64_t in : {1, 19})
      for (int64_t d : {1, 2, 17, 70}) {
        if (rows > 65 && d > 17) continue;
        const int64_t out = d * (d + 3) / 2;
        const auto h = random_array<T>(rows * in), weight = random_array<T>(in * out), bias = random_array<T>(out);
        const auto eps = random_array<T>(rows * d), upstream = random_array<T>(rows * d);
        const T* const of_bias = d == 2 ? nullptr : bias.get();
        const GaussianHead<T> head{
            {weight.get(), of_bias, nullptr, nullptr, nullptr, nullptr, in, out, in}, d, T(-0.2), T(0.3), T(0.5)};
        char name[96];
        std::snprintf(name, sizeof(name), "%s head %ld x %ld, %ld dimensions", type, rows, in, d);
        failures += compare<T>(name, tolerance, [&](const Kernels<T>& kernels) {
          return run_head(kernels, head, h.get(), eps.get(), upstream.get(), rows);
        });
      }
  return failures;
}

template <class T>
int check_classes(const char* type, double tolerance) {
  int failures = 0;
  for (const ClassExtent extent : {ClassExtent{3, 4, 17}, {300, 2, 5}, {1, 300, 1}, {0, 2, 3}})
    for (int terms : {0b101, 0b110, 0b111, 0b010})
      for (const Activation activation : {Activation::kSoftplus, Activation::kSilu}) {
        const auto code = static_cast<int64_t>(activation);
        const int64_t cells = extent.rows * extent.classes, count = cells * extent.columns;
        const int64_t rows = extent.rows * extent.columns, classes = extent.classes * extent.columns;
        const auto of_rows = random_array<T>(rows), own = random_array<T>(count), of_classes = random_array<T>(classes);
        const auto upstream = random_array<T>(count);
        const auto given = [&](int bit, const T* data) {
          return Matrix<T>{terms >> bit & 1 ? data : nullptr, extent.columns};
        };
        char name[96];
        std::snprintf(name, sizeof(name), "%s classes %ld x %ld x %ld, terms %d", type, extent.rows, extent.classes,
                      extent.columns, terms);
        failures += compare<T>(name, tolerance, [&](const Kernels<T>& kernels) {
          Results<T> r;
          auto y = r.array(count), pre = r.array(count), d_rows = r.array(rows), d_cells = r.array(count);
          auto d_classes = r.array(classes);
          const auto wanted = [&](int bit, T* data) { return terms >> bit & 1 ? data : nullptr; };
          kernels.class_linear.fwd(code, extent,
                                   {given(2, of_rows.get()), given(1, own.get()), given(0, of_classes.get())}, y.get(),
                                   pre.get());
          kernels.class_linear.bwd(code, extent, upstream.get(), (activation == Activation::kSilu ? pre : y).get(),
                                   {wanted(2, d_rows.get()), wanted(1, d_cells.get()), wanted(0, d_classes.get())});
          r.keep(y, count);
          r.keep(pre, count);
          if (terms & 4) r.keep(d_rows, rows);
          if (terms & 2) r.keep(d_cells, count);
          if (terms & 1) r.keep(d_classes, classes);
          return r.values;
        });
      }
  return failures;
}

// A decoder with arrays of exactly their size; every second layer has no bias.
template <class T>
struct DecoderInputs {
  std::vector<std::unique_ptr<T[]>> arrays;
  LatentProblem<T> problem;

  const T* keep(int64_t count, double scale = 0.3) {
    arrays.push_back(random_array<T>(count, scale));
    return arrays.back().get();
  }

  DecoderInputs(const std::vector<int64_t>& widths, int64_t activation, int64_t likelihood, int64_t rows,
                int64_t points, int64_t inner)
      : problem{{}, activation, likelihood, {}, {}, {}, nullptr, rows, points, inner} {
    for (size_t l = 0; l + 1 < widths.size(); ++l) {
      const int64_t in = widths[l], out = widths[l + 1];
      const T* weight = keep(in * out, 1 / std::sqrt(static_cast<double>(in)));
      const T* bias = l % 2 ? nullptr : keep(out);
      problem.layers.push_back({weight, bias, nullptr, nullptr, nullptr, nullptr, in, out, in});
    }
    problem.z = {keep(rows * widths.front()), widths.front()};
    problem.v = {keep(rows * widths.front()), widths.front()};
    problem.x = {keep(points * widths.back()), widths.back()};
    problem.d_log_p = keep(rows);
  }
};

template <class T>
std::vector<T> run_latent(const Kernels<T>& kernels, const LatentProblem<T>& given) {
  const int64_t rows = given.rows, count = rows * given.layers.front().in;
  Results<T> r;
  auto log_p = r.array(rows), gradient = r.array(count), product = r.array(count);
  LatentProblem<T> problem = given;
  kernels.latent_gradient.run(problem, {nullptr, nullptr, product.get()});
  r.keep(product, count);
  problem.d_log_p = nullptr;
  kernels.latent_gradient.run(problem, {log_p.get(), gradient.get(), product.get()});
  r.keep(product, count);
  problem.v = {};
  kernels.latent_gradient.run(problem, {log_p.get(), gradient.get(), nullptr});
  r.keep(log_p, rows);
  r.keep(gradient, count);
  if (static_cast<Likelihood>(problem.likelihood) == Likelihood::kBernoulli) {
    const BernoulliSizes sizes{rows / (problem.points * problem.inner), problem.points, problem.inner};
    kernels.mlp_bernoulli.fwd(problem.layers, problem.activation, problem.z, problem.x, log_p.get(), nullptr, sizes);
    r.keep(log_p, rows);
    const int64_t kept_count = kernels.mlp_bernoulli.kept_count(problem.layers, problem.activation, sizes);
    auto kept = r.array(kept_count);
    kernels.mlp_bernoulli.fwd(problem.layers, problem.activation, problem.z, problem.x, log_p.get(), kept.get(), sizes);
    r.keep(log_p, rows);
    std::vector<std::unique_ptr<T[]>> d_weights, d_biases;
    std::vector<LayerGradients<T>> gradients;
    for (const MaskedLayer<T>& layer : problem.layers) {
      d_weights.push_back(r.array(layer.out * layer.in));
      d_biases.push_back(layer.bias ? r.array(layer.out) : nullptr);
      gradients.push_back({d_weights.back().get(), d_biases.back().get(), nullptr});
    }
    kernels.mlp_bernoulli.bwd(problem.layers, problem.activation, given.d_log_p, problem.z, kept.get(), gradient.get(),
                              gradients, sizes);
    r.keep(gradient, count);
    kernels.mlp_bernoulli.bwd(problem.layers, problem.activation, given.d_log_p, problem.z, kept.get(), nullptr,
                              gradients, sizes);
    kernels.mlp_bernoulli.bwd(problem.layers, problem.activation, given.d_log_p, problem.z, kept.get(), gradient.get(),
                              {}, sizes);
    r.keep(gradient, count);
    for (size_t l = 0; l < problem.layers.size(); ++l) {
      const MaskedLayer<T>& layer = problem.layers[l];
      r.keep(d_weights[l], layer.out * layer.in);
      if (layer.bias) r.keep(d_biases[l], layer.out);
    }
  }
  return r.values;
}

template <class T>
int check_latent(const char* type, double tolerance) {
  int failures = 0;
  const std::vector<std::vector<int64_t>> decoders = {{5, 40}, {3, 17, 33, 70}, {1, 1, 1}, {19, 530, 9}};
  for (const auto& widths : decoders)
    for (int64_t activation = 0; activation <= 6; ++activation)
      for (const auto& [rows, points, inner] : {std::array<int64_t, 3>{1, 1, 1}, {7, 7, 1}, {30, 5, 3}, {300, 100, 1}})
        for (int64_t likelihood : {0, 1}) {
          if (likelihood != activation % 2) continue;
          const DecoderInputs<T> in(widths, activation, likelihood, rows, points, inner);
          char name[96];
          std::snprintf(name, sizeof(name), "%s decoder of %zu layers, activation=%ld likelihood=%ld rows=%ld", type,
                        widths.size() - 1, activation, likelihood, rows);
          failures +=
              compare<T>(name, tolerance, [&](const Kernels<T>& kernels) { return run_latent(kernels, in.problem); });
        }
  return failures;
}

}  // namespace

int check_decoders() {
  return check_bernoulli<float>("float", 2e-3) + check_bernoulli<double>("double", 1e-5) +
         check_latent<float>("float", 2e-3) + check_latent<double>("double", 1e-5) + check_heads<float>("float", 2e-3) +
         check_heads<double>("double", 1e-5) + check_classes<float>("float", 2e-3) +
         check_classes<double>("double", 1e-5);
}

}  // namespace fastvae
