// The table of kernels, one for each instruction set. The best one that the processor can run is chosen at load.
#pragma once

#include "ops/affine_flow.h"
#include "ops/autoregressive_flow.h"
#include "ops/bernoulli.h"
#include "ops/causal_sampler.h"
#include "ops/diag_gaussian.h"
#include "ops/gated_activation.h"
#include "ops/latent_gradient.h"
#include "ops/linear_bernoulli.h"
#include "ops/logistic_mixture.h"
#include "ops/masked_conv2d.h"
#include "ops/masked_linear.h"
#include "ops/mlp_bernoulli.h"
#include "ops/tril_gaussian.h"

namespace fastvae {

template <class T>
struct Kernels {
  DiagGaussian<T> diag_gaussian;
  TrilGaussian<T> tril_gaussian;
  MaskedLinear<T> masked_linear;
  AffineFlow<T> affine_flow;
  AutoregressiveFlow<T> autoregressive_flow;
  MaskedConv2d<T> masked_conv2d;
  GatedActivation<T> gated_activation;
  CausalSampler<T> causal_sampler;
  LogisticMixture<T> logistic_mixture;
  LinearBernoulli<T> linear_bernoulli;
  LatentGradient<T> latent_gradient;
  MlpBernoulli<T> mlp_bernoulli;
  Bernoulli<T> bernoulli;
};

struct Table {
  const char* isa;
  Kernels<float> f32;
  Kernels<double> f64;

  template <class T>
  const Kernels<T>& of() const;
};

template <>
inline const Kernels<float>& Table::of() const {
  return f32;
}
template <>
inline const Kernels<double>& Table::of() const {
  return f64;
}

// Tables that this processor can run, slowest first.
int available(const Table** tables, int capacity);
const Table& current();
// Chooses a table by name. False when no available table has this name.
bool select(const char* isa);

}  // namespace fastvae
