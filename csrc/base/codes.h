// The numbers by which Python names what a kernel does. fastvae/ops/_network.py numbers the kinds of a flow's step,
// fastvae/structure/sampling_records.py the rest; the extension exports them all, and a test compares both sides.
#pragma once

#include <cstdint>

namespace fastvae {

// Masked layers have those up to kSilu; only samplers have the others.
enum class Activation : int64_t { kIdentity, kRelu, kElu, kTanh, kSoftplus, kGelu, kSilu, kSigmoid, kLeakyRelu };

// kNone is that of a network without a flow step.
enum class FlowKind : int64_t { kNone, kGated, kExp, kClampedExp, kSoftplus, kSigmoid, kLocationOnly, kIafRelease };

// Of the data under a decoder's outputs: logits, or means of unit variance.
enum class Likelihood : int64_t { kBernoulli, kGaussian };

enum class Gate : int64_t { kTanh, kLinear };

// What a pixel is drawn from.
enum class Head : int64_t { kBernoulli, kCategorical, kLogisticMixture };

// What a node of a sampler's plan computes.
enum class SamplerOp : int64_t { kConv, kAdd, kSub, kMul, kAffine, kActivation, kGate, kCopy, kConstant };

}  // namespace fastvae
