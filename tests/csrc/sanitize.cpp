// Every kernel of every instruction set on awkward shapes, each array a heap block of exactly its size, so that
// AddressSanitizer sees one number too far; and the instruction sets' results side by side.
#include "sanitize.h"

#include "base/uniform.h"

using namespace fastvae;

namespace {

template <class T>
struct Inputs {
  int64_t k, n, d, tril_size, row_stride;
  std::unique_ptr<T[]> mu, log_sigma, prior_mu, prior_log_sigma, tril, z, per_row, per_sample;

  Inputs(int64_t k_, int64_t n_, int64_t d_, bool dense)
      : k(k_), n(n_), d(d_), tril_size(dense ? d * d : d * (d - 1) / 2), row_stride(dense ? d : Tril<T>::kPacked) {
    mu = random_array<T>(n * d);
    log_sigma = random_array<T>(n * d);
    prior_mu = random_array<T>(n * d);
    prior_log_sigma = random_array<T>(n * d);
    // Solves stay well conditioned.
    tril = random_array<T>(n * tril_size, 0.3 / std::sqrt(static_cast<double>(d)));
    z = random_array<T>(k * n * d);
    per_row = random_array<T>(n);
    per_sample = random_array<T>(k * n);
  }
};

template <class T>
std::vector<T> run(const Kernels<T>& kernels, const Inputs<T>& in, bool given) {
  const int64_t k = in.k, n = in.n, d = in.d, seed = 0x123456789abcdef;
  const Extent e{k, n, d};
  const Matrix<T> mu{in.mu.get(), d}, log_sigma{in.log_sigma.get(), d};
  const Matrix<T> prior_mu{in.prior_mu.get(), d}, prior_log_sigma{in.prior_log_sigma.get(), d};
  const Tril<const T> tril{in.tril.get(), in.tril_size, in.row_stride};
  const NoiseSource<T> noise{given ? nullptr : &seed, given ? in.z.get() : nullptr, 3};
  Results<T> r;
  auto samples = r.array(k * n * d), density = r.array(k * n), rows = r.array(n);
  auto a = r.array(n * d), b = r.array(n * d), c = r.array(n * d), f = r.array(n * d), t = r.array(n * in.tril_size);
  const Tril<T> d_tril{t.get(), in.tril_size, in.row_stride};
  const auto keep = [&](bool with_samples, bool with_tril) {
    if (with_samples) {
      r.keep(samples, k * n * d);
      r.keep(density, k * n);
    }
    if (with_tril) r.keep(t, n * in.tril_size);
    r.keep(a, n * d);
    r.keep(b, n * d);
  };

  const auto& diag = kernels.diag_gaussian;
  auto kept = r.array(k * n * d);
  diag.fwd(mu, log_sigma, noise, samples.get(), density.get(), nullptr, {}, e);
  diag.fwd(mu, log_sigma, noise, samples.get(), density.get(), kept.get(), {}, e);
  diag.bwd(in.z.get(), in.per_sample.get(), kept.get(), {}, {}, {}, a.get(), b.get(), e);
  keep(true, false);
  if (k == 1) diag.bwd(in.z.get(), in.per_sample.get(), kept.get(), {}, {}, {}, nullptr, b.get(), e);
  // A divergence needs a sample. Of each dimension, any numbers serve as its gradient.
  for (int64_t each = 0; each < 2 && k > 0; ++each) {
    diag.fwd(mu, log_sigma, noise, samples.get(), density.get(), kept.get(), {each ? c.get() : rows.get(), each == 1},
             e);
    diag.bwd(in.z.get(), each ? nullptr : in.per_sample.get(), kept.get(),
             {each ? in.mu.get() : in.per_row.get(), each == 1}, mu, log_sigma, a.get(), b.get(), e);
    r.keep(each ? c : rows, each ? n * d : n);
    keep(true, false);
  }
  diag.log_prob_fwd(in.z.get(), mu, log_sigma, density.get(), e);
  diag.log_prob_bwd(in.per_sample.get(), in.z.get(), mu, log_sigma, samples.get(), a.get(), b.get(), e);
  keep(true, false);
  diag.kl_fwd(mu, log_sigma, rows.get(), n, d);
  diag.kl_bwd(in.per_row.get(), mu, log_sigma, a.get(), b.get(), n, d);
  r.keep(rows, n);
  keep(false, false);
  diag.kl_prior_fwd(mu, log_sigma, prior_mu, prior_log_sigma, rows.get(), n, d);
  diag.kl_prior_bwd(in.per_row.get(), mu, log_sigma, prior_mu, prior_log_sigma, a.get(), b.get(), c.get(), f.get(), n,
                    d);
  r.keep(rows, n);
  r.keep(c, n * d);
  r.keep(f, n * d);
  keep(false, false);
  // Any numbers serve as a prior of every sample, as the noise of the gradients, and as their upstream gradients.
  const MergedGaussians<T> both{mu, log_sigma, {in.z.get(), d}, {in.z.get(), d}};
  auto log_p = r.array(k * n), kl = r.array(k * n * d);
  std::unique_ptr<T[]> to[4];
  for (auto& gradient : to) gradient = r.array(k * n * d);
  for (int64_t each = 0; each < 2 && k > 0; ++each) {
    kernels.gaussian_merge.fwd(both, noise, samples.get(), density.get(), log_p.get(), {kl.get(), each == 1},
                               given ? nullptr : kept.get(), e);
    kernels.gaussian_merge.bwd(in.z.get(), in.per_sample.get(), in.per_sample.get(),
                               {each ? in.z.get() : in.per_sample.get(), each == 1}, both, in.z.get(),
                               {to[0].get(), to[1].get(), to[2].get(), to[3].get()}, e);
    r.keep(samples, k * n * d);
    r.keep(density, k * n);
    r.keep(log_p, k * n);
    r.keep(kl, each ? k * n * d : k * n);
    for (const auto& gradient : to) r.keep(gradient, k * n * d);
  }

  const auto& units = kernels.bernoulli;
  auto of_units = r.array(2 * k * n * d), log_probs = r.array(2 * k * n);
  for (int64_t pairs = 0; pairs < 2; ++pairs) {
    const int64_t count = pairs ? 2 * k : k;
    units.fwd(mu, noise, pairs == 1, of_units.get(), log_probs.get(), e);
    r.keep(of_units, count * n * d);
    r.keep(log_probs, count * n);
    units.bwd(log_probs.get(), of_units.get(), mu, a.get(), {count, n, d});
    r.keep(a, n * d);
  }

  const auto& full = kernels.tril_gaussian;
  auto eps = r.array(k * n * d);
  full.fwd(mu, log_sigma, tril, noise, samples.get(), density.get(), nullptr, {}, e);
  full.fwd(mu, log_sigma, tril, noise, samples.get(), density.get(), eps.get(), {}, e);
  full.bwd(in.z.get(), in.per_sample.get(), {}, {}, log_sigma, {}, eps.get(), a.get(), b.get(), d_tril, e);
  keep(true, true);
  for (int64_t each = 0; each < 2 && k > 0; ++each) {
    full.fwd(mu, log_sigma, tril, noise, samples.get(), density.get(), eps.get(),
             {each ? c.get() : rows.get(), each == 1}, e);
    full.bwd(in.z.get(), each ? nullptr : in.per_sample.get(), {each ? in.mu.get() : in.per_row.get(), each == 1}, mu,
             log_sigma, tril, eps.get(), a.get(), b.get(), d_tril, e);
    r.keep(each ? c : rows, each ? n * d : n);
    keep(true, true);
  }
  full.log_prob_fwd(in.z.get(), mu, log_sigma, tril, density.get(), eps.get(), e);
  full.log_prob_bwd(in.per_sample.get(), eps.get(), log_sigma, tril, samples.get(), a.get(), b.get(), d_tril, e);
  keep(true, true);
  full.kl_fwd(mu, log_sigma, tril, rows.get(), n, d);
  full.kl_bwd(in.per_row.get(), mu, log_sigma, tril, a.get(), b.get(), d_tril, n, d);
  r.keep(rows, n);
  keep(false, true);
  return r.values;
}

// A random masked network: arrays of exactly their size, weights NaN where the mask is.
template <class T>
struct NetworkInputs {
  std::vector<std::unique_ptr<T[]>> arrays;
  std::vector<std::unique_ptr<int64_t[]>> degrees;
  std::vector<int64_t> sizes;
  NetworkSpec<T> spec;

  std::unique_ptr<int64_t[]> random_degrees(int64_t count, int64_t most, bool sorted) {
    std::unique_ptr<int64_t[]> d(new int64_t[count]);
    for (int64_t i = 0; i < count; ++i) d[i] = static_cast<int64_t>(engine() % static_cast<uint64_t>(most + 1));
    if (sorted) std::sort(d.get(), d.get() + count);
    return d;
  }

  static std::unique_ptr<T[]> norms_of(const T* weight, int64_t in, int64_t out, const int64_t* in_degrees,
                                       const int64_t* out_degrees) {
    std::unique_ptr<T[]> norms(new T[out]);
    for (int64_t o = 0; o < out; ++o) {
      double total = 0;
      for (int64_t i = 0; i < in; ++i)
        if (in_degrees[i] <= out_degrees[o]) total += static_cast<double>(weight[o * in + i]) * weight[o * in + i];
      norms[o] = static_cast<T>(std::sqrt(total));
    }
    return norms;
  }

  const T* keep(std::unique_ptr<T[]> array) {
    arrays.push_back(std::move(array));
    return arrays.back().get();
  }

  NetworkInputs(int64_t features, int64_t width, int64_t hidden, bool residual, bool sorted, int64_t kind,
                int64_t activation, bool scaled)
      : spec{{}, features, kind == 6 ? 1 : 2, activation, kind, residual, !sorted} {
    const int64_t params = spec.params_per_feature;
    sizes.push_back(features);
    degrees.emplace_back(new int64_t[features]);
    for (int64_t i = 0; i < features; ++i) degrees[0][i] = sorted ? i + 1 : features - i;
    for (int64_t l = 0; l < hidden; ++l) {
      sizes.push_back(width);
      if (residual && l > 0) {
        degrees.emplace_back(new int64_t[width]);
        std::copy_n(degrees[1].get(), width, degrees.back().get());
      } else {
        degrees.push_back(random_degrees(width, features, sorted));
      }
    }
    sizes.push_back(features * params);
    degrees.emplace_back(new int64_t[features * params]);
    for (int64_t i = 0; i < features; ++i)
      for (int64_t q = 0; q < params; ++q)
        degrees.back()[spec.interleaved ? i * params + q : q * features + i] = degrees[0][i] - 1;
    for (size_t l = 0; l + 1 < sizes.size(); ++l) {
      const int64_t in = sizes[l], out = sizes[l + 1];
      auto weight = random_array<T>(in * out, 0.5 / std::sqrt(static_cast<double>(in)));
      for (int64_t o = 0; o < out; ++o)
        for (int64_t i = 0; i < in; ++i)
          if (degrees[l][i] > degrees[l + 1][o]) weight[o * in + i] = std::nan("");
      const T *w = keep(std::move(weight)), *bias = keep(random_array<T>(out));
      const T* scale = scaled ? keep(random_array<T>(out, 1.0)) : nullptr;
      const T* norm = scaled && residual ? keep(norms_of(w, in, out, degrees[l].get(), degrees[l + 1].get())) : nullptr;
      spec.layers.push_back({w, bias, scale, norm, degrees[l].get(), degrees[l + 1].get(), in, out, in});
    }
  }
};

template <class T>
std::vector<T> run_network(const Kernels<T>& kernels, const NetworkInputs<T>& in, const T* points, const T* context,
                           const T* upstream, int64_t n) {
  const auto& spec = in.spec;
  const int64_t d = spec.features, outputs = in.sizes.back(), width = in.sizes[1];
  const bool alone = spec.kind == 0;
  Results<T> r;
  const int64_t out_size = n * (alone ? outputs : d),
                saved_size = (n + 63) / 64 * kernels.autoregressive_flow.saved_rows(spec) * 64;
  auto out = r.array(out_size), log_det = r.array(n), d_x = r.array(n * d), d_context = r.array(n * width);
  auto saved = r.array(saved_size);
  std::vector<std::unique_ptr<T[]>> gradients;
  std::vector<LayerGradients<T>> to;
  for (size_t l = 0; l + 1 < in.sizes.size(); ++l) {
    const int64_t out_l = in.sizes[l + 1];
    for (int64_t size : {in.sizes[l] * out_l, out_l, out_l}) gradients.push_back(r.array(size));
    const size_t at = gradients.size();
    to.push_back(
        {gradients[at - 3].get(), gradients[at - 2].get(), spec.layers[l].scale ? gradients[at - 1].get() : nullptr});
  }
  const auto keep_gradients = [&] {
    r.keep(d_x, n * d);
    r.keep(d_context, n * width);
    for (size_t l = 0; l + 1 < in.sizes.size(); ++l) {
      r.keep(gradients[3 * l], in.sizes[l] * in.sizes[l + 1]);
      r.keep(gradients[3 * l + 1], in.sizes[l + 1]);
      if (spec.layers[l].scale) r.keep(gradients[3 * l + 2], in.sizes[l + 1]);
    }
  };
  const auto& flow = kernels.autoregressive_flow;
  const Matrix<T> x{points, d};
  auto shares = r.array(n * d);
  for (bool by_dimension : {false, true}) {
    const LogDet<T> to_log_det{(by_dimension ? shares : log_det).get(), by_dimension};
    const LogDet<const T> d_log_det{upstream, by_dimension};
    const auto keep_log_det = [&] { by_dimension ? r.keep(shares, n * d) : r.keep(log_det, n); };
    flow.fwd(spec, x, context, out.get(), to_log_det, nullptr, n);
    flow.fwd(spec, x, context, out.get(), to_log_det, saved.get(), n);
    r.keep(out, out_size);
    flow.bwd(spec, upstream, d_log_det, saved.get(), d_x.get(), d_context.get(), to, n);
    keep_gradients();
    if (alone) break;
    keep_log_det();
    flow.inverse(spec, x, context, out.get(), to_log_det, saved.get(), n);
    r.keep(out, out_size);
    keep_log_det();
    flow.inverse_bwd(spec, upstream, d_log_det, saved.get(), d_x.get(), n);
    r.keep(d_x, n * d);
  }
  const auto& linear = kernels.masked_linear;
  const auto& layer = spec.layers.front();
  auto y = r.array(n * width), pre = r.array(n * width), norm = r.array(width);
  linear.fwd(layer, spec.activation, x, y.get(), pre.get(), n);
  r.keep(y, n * width);
  linear.bwd(layer, spec.activation, context, spec.activation >= 5 ? pre.get() : y.get(), x, d_x.get(), to[0], n);
  r.keep(d_x, n * d);
  r.keep(gradients[0], d * width);
  linear.norm_fwd(layer, norm.get());
  linear.norm_bwd(layer, context, norm.get(), gradients[0].get());
  r.keep(norm, width);
  r.keep(gradients[0], d * width);
  if (alone) return r.values;
  auto d_shift = r.array(n * d), d_logit = r.array(n * d);
  for (int options = 0; options < 4; ++options) {
    const bool inverse = options & 1, by_dimension = options & 2;
    const auto& affine = kernels.affine_flow;
    affine.fwd(spec.kind, inverse, x, x, x, out.get(), {(by_dimension ? shares : log_det).get(), by_dimension}, n, d);
    affine.bwd(spec.kind, inverse, upstream, {upstream, by_dimension}, x, x, x, d_x.get(), d_shift.get(), d_logit.get(),
               n, d);
    r.keep(out, n * d);
    by_dimension ? r.keep(shares, n * d) : r.keep(log_det, n);
    r.keep(d_x, n * d);
    r.keep(d_shift, n * d);
    if (spec.kind != 6) r.keep(d_logit, n * d);
  }
  return r.values;
}

// How many results of an instruction set differ from the baseline's.
template <class T>
int check_gaussians(const char* type, double tolerance) {
  int failures = 0;
  for (int64_t d : {1, 2, 3, 5, 8, 15, 16, 17, 31, 64, 65, 260, 1030})
    for (int64_t n : {0, 1, 3})
      for (int64_t k : {0, 1, 2, 70})
        for (bool dense : {false, true})
          for (bool given : {false, true}) {
            if (d > 100 && (k != 1 || n > 1)) continue;
            const Inputs<T> in(k, n, d, dense);
            char name[96];
            std::snprintf(name, sizeof(name), "%s k=%ld n=%ld d=%ld dense=%d given=%d", type, k, n, d, dense, given);
            failures += compare<T>(name, tolerance, [&](const Kernels<T>& kernels) { return run(kernels, in, given); });
          }
  return failures;
}

template <class T>
int check_networks(const char* type, double tolerance) {
  int failures = 0;
  for (int64_t kind = 0; kind <= 7; ++kind)
    for (int64_t activation = 0; activation <= 6; ++activation)
      for (bool residual : {false, true})
        for (bool plain : {false, true}) {
          const int64_t d = plain ? 5 : 19, width = plain ? 7 : 37, hidden = residual ? 3 : 2;
          const NetworkInputs<T> in(d, width, hidden, residual, plain, kind, activation, !plain);
          const int64_t n = plain ? 3 : 67;
          const auto points = random_array<T>(n * d), context = random_array<T>(n * width);
          const auto upstream = random_array<T>(n * std::max(in.sizes.back(), d));
          char name[96];
          std::snprintf(name, sizeof(name), "%s network kind=%ld activation=%ld residual=%d plain=%d", type, kind,
                        activation, residual, plain);
          failures += compare<T>(name, tolerance, [&](const Kernels<T>& kernels) {
            return run_network(kernels, in, points.get(), context.get(), upstream.get(), n);
          });
        }
  return failures;
}

// Uniform numbers have no table of kernels: only their reach is checked.
void run_uniforms() {
  for (int64_t rows : {0, 1, 300})
    for (int64_t columns : {1, 4, 7, 785}) {
      const auto out = std::make_unique<float[]>(rows * columns);
      draw_uniforms(7, rows, columns, 5, out.get());
    }
}

}  // namespace

int main() {
  const Table* tables[4];
  const int count = available(tables, 4);
  if (count == 0) {
    std::printf("this machine runs none of the instruction sets that were compiled\n");
    return 1;
  }
  for (int i = 0; i < count; ++i) std::printf("%s ", tables[i]->isa);
  run_uniforms();
  const int failures = check_gaussians<float>("float", 2e-3) + check_gaussians<double>("double", 1e-5) +
                       check_networks<float>("float", 2e-3) + check_networks<double>("double", 1e-5) +
                       check_decoders() + check_images() + check_samplers();
  std::printf(": %d failures\n", failures);
  return failures != 0;
}
