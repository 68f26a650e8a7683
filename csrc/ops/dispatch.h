// The table of kernels, one for each instruction set. The best one that the processor can run is chosen at load.
#pragma once

#include "ops/affine_flow.h"
#include "ops/attention_window.h"
#include "ops/autoregressive_flow.h"
#include "ops/bernoulli.h"
#include "ops/causal_sampler.h"
#include "ops/class_linear.h"
#include "ops/diag_gaussian.h"
#include "ops/gated_activation.h"
#include "ops/gaussian_merge.h"
#include "ops/latent_gradient.h"
#include "ops/linear_bernoulli.h"
#include "ops/linear_tril_gaussian.h"
#include "ops/logistic_mixture.h"
#include "ops/masked_conv2d.h"
#include "ops/masked_linear.h"
#include "ops/mlp_bernoulli.h"
#include "ops/tril_gaussian.h"

namespace fastvae {

// Every op that has kernels: the structure of its functions, and its stem.
#define FASTVAE_OPS(OP)                        \
  OP(AffineFlow, affine_flow)                  \
  OP(AttentionWindow, attention_window)        \
  OP(AutoregressiveFlow, autoregressive_flow)  \
  OP(Bernoulli, bernoulli)                     \
  OP(CausalSampler, causal_sampler)            \
  OP(ClassLinear, class_linear)                \
  OP(DiagGaussian, diag_gaussian)              \
  OP(GatedActivation, gated_activation)        \
  OP(GaussianMerge, gaussian_merge)            \
  OP(LatentGradient, latent_gradient)          \
  OP(LinearBernoulli, linear_bernoulli)        \
  OP(LinearTrilGaussian, linear_tril_gaussian) \
  OP(LogisticMixture, logistic_mixture)        \
  OP(MaskedConv2d, masked_conv2d)              \
  OP(MaskedLinear, masked_linear)              \
  OP(MlpBernoulli, mlp_bernoulli)              \
  OP(TrilGaussian, tril_gaussian)

template <class T>
struct Kernels {
#define FASTVAE_MEMBER(Functions, stem) Functions<T> stem;
  FASTVAE_OPS(FASTVAE_MEMBER)
#undef FASTVAE_MEMBER
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
