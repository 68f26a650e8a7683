#include "ops/dispatch.h"

#include <cstring>

namespace fastvae {

#define FASTVAE_DECLARE_TYPE(type, suffix)                                                            \
  DiagGaussian<type> diag_gaussian_##suffix();                                                        \
  TrilGaussian<type> tril_gaussian_##suffix();                                                        \
  MaskedLinear<type> masked_linear_##suffix();                                                        \
  AffineFlow<type> affine_flow_##suffix();                                                            \
  AutoregressiveFlow<type> autoregressive_flow_##suffix();                                            \
  MaskedConv2d<type> masked_conv2d_##suffix();                                                        \
  GatedActivation<type> gated_activation_##suffix();                                                  \
  LogisticMixture<type> logistic_mixture_##suffix();                                                  \
  LinearBernoulli<type> linear_bernoulli_##suffix();                                                  \
  LatentGradient<type> latent_gradient_##suffix();                                                    \
  CausalSampler<type> causal_sampler_##suffix();                                                      \
  MlpBernoulli<type> mlp_bernoulli_##suffix();                                                        \
  Bernoulli<type> bernoulli_##suffix();                                                               \
  static Kernels<type> kernels_##suffix() {                                                           \
    return {diag_gaussian_##suffix(),    tril_gaussian_##suffix(),       masked_linear_##suffix(),    \
            affine_flow_##suffix(),      autoregressive_flow_##suffix(), masked_conv2d_##suffix(),    \
            gated_activation_##suffix(), causal_sampler_##suffix(),      logistic_mixture_##suffix(), \
            linear_bernoulli_##suffix(), latent_gradient_##suffix(),     mlp_bernoulli_##suffix(),    \
            bernoulli_##suffix()};                                                                    \
  }

#define FASTVAE_DECLARE(isa)                                       \
  namespace isa {                                                  \
  FASTVAE_DECLARE_TYPE(float, f32)                                 \
  FASTVAE_DECLARE_TYPE(double, f64)                                \
  static const Table table = {#isa, kernels_f32(), kernels_f64()}; \
  }

#ifdef FASTVAE_HAS_baseline
FASTVAE_DECLARE(baseline)
#endif
#ifdef FASTVAE_HAS_avx2
FASTVAE_DECLARE(avx2)
#endif
#ifdef FASTVAE_HAS_avx512
FASTVAE_DECLARE(avx512)
#endif

int available(const Table** tables, int capacity) {
  int count = 0;
  const auto add = [&](const Table& table) {
    if (count < capacity) tables[count++] = &table;
  };
#ifdef FASTVAE_HAS_baseline
  add(baseline::table);
#endif
#ifdef FASTVAE_HAS_avx2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) add(avx2::table);
#endif
#ifdef FASTVAE_HAS_avx512
  if (__builtin_cpu_supports("fma") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    add(avx512::table);
#endif
  return count;
}

namespace {

const Table* best() {
  const Table* tables[4];
  return tables[available(tables, 4) - 1];
}

const Table*& chosen() {
  static const Table* table = best();
  return table;
}

}  // namespace

const Table& current() { return *chosen(); }

bool select(const char* isa) {
  const Table* tables[4];
  const int count = available(tables, 4);
  for (int i = 0; i < count; ++i) {
    if (std::strcmp(tables[i]->isa, isa) == 0) {
      chosen() = tables[i];
      return true;
    }
  }
  return false;
}

}  // namespace fastvae
