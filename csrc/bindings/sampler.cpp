// The cached sampler takes records, addresses and numbers, and returns nothing. Python can also ask for the uniform
// numbers that it takes, and for the codes and the records' fields: a test compares them with its own.
#include <vector>

#include "base/codes.h"
#include "base/uniform.h"
#include "bindings/bindings.h"
#include "bindings/tensors.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace fastvae {
namespace {

void causal_sampler(bool is_double, const Integers& sizes, const Integers& head, const Integers& buffers,
                    const Integers& nodes, const Integers& taps, const std::vector<uint64_t>& addresses,
                    const std::vector<double>& scalars, double temperature, Address images, Address given,
                    Address uniforms, Address parameters) {
  if (sizes.size() != fields_of<SamplerSizes> || head.size() != fields_of<SamplerHead>)
    throw nb::value_error("sizes or head does not hold one whole record");
  const SamplerPlan plan{record<SamplerSizes>(sizes.data()),
                         record<SamplerHead>(head.data()),
                         records<SamplerBuffer>(buffers),
                         records<SamplerNode>(nodes),
                         records<SamplerTap>(taps),
                         addresses,
                         scalars,
                         temperature,
                         uniforms == 0};
  with_type(is_double, [&]<class T>(T) {
    current().of<T>().causal_sampler.run(plan, at<T>(images), at<const uint8_t>(given), at<const T>(uniforms),
                                         at<T>(parameters));
  });
}

// out: float32 (rows, columns), which receives the numbers.
void philox_uniform(nb::handle seed, int64_t row_offset, nb::handle out) {
  const TensorView numbers = view(out);
  const uint64_t number = static_cast<uint64_t>(*flat_view(seed).as<const int64_t>());
  const nb::gil_scoped_release release;
  draw_uniforms(number, numbers.shape[0], numbers.shape[1], row_offset, numbers.as<float>());
}

template <class Code>
void add_code(nb::dict& codes, const char* name, Code code) {
  codes[name] = static_cast<int64_t>(code);
}

// Names and numbers of the enums in base/codes.h.
nb::dict codes() {
  nb::dict activation, flow, gate, head, likelihood, op, all;
  add_code(activation, "identity", Activation::kIdentity);
  add_code(activation, "relu", Activation::kRelu);
  add_code(activation, "elu", Activation::kElu);
  add_code(activation, "tanh", Activation::kTanh);
  add_code(activation, "softplus", Activation::kSoftplus);
  add_code(activation, "gelu", Activation::kGelu);
  add_code(activation, "silu", Activation::kSilu);
  add_code(activation, "sigmoid", Activation::kSigmoid);
  add_code(activation, "leaky_relu", Activation::kLeakyRelu);
  add_code(flow, "gated", FlowKind::kGated);
  add_code(flow, "exp", FlowKind::kExp);
  add_code(flow, "clamped_exp", FlowKind::kClampedExp);
  add_code(flow, "softplus", FlowKind::kSoftplus);
  add_code(flow, "sigmoid", FlowKind::kSigmoid);
  add_code(flow, "location_only", FlowKind::kLocationOnly);
  add_code(flow, "iaf_release", FlowKind::kIafRelease);
  add_code(gate, "tanh", Gate::kTanh);
  add_code(gate, "linear", Gate::kLinear);
  add_code(head, "bernoulli", Head::kBernoulli);
  add_code(head, "categorical", Head::kCategorical);
  add_code(head, "logistic_mixture", Head::kLogisticMixture);
  add_code(likelihood, "bernoulli", Likelihood::kBernoulli);
  add_code(likelihood, "gaussian", Likelihood::kGaussian);
  add_code(op, "conv", SamplerOp::kConv);
  add_code(op, "add", SamplerOp::kAdd);
  add_code(op, "sub", SamplerOp::kSub);
  add_code(op, "mul", SamplerOp::kMul);
  add_code(op, "affine", SamplerOp::kAffine);
  add_code(op, "activation", SamplerOp::kActivation);
  add_code(op, "gate", SamplerOp::kGate);
  add_code(op, "copy", SamplerOp::kCopy);
  add_code(op, "constant", SamplerOp::kConstant);
  all["activation"] = activation;
  all["flow"] = flow;
  all["gate"] = gate;
  all["head"] = head;
  all["likelihood"] = likelihood;
  all["op"] = op;
  return all;
}

// The fields of the records in images/sampler_plan.h, in their order.
nb::dict record_fields() {
  nb::dict all;
  all["sizes"] = SamplerSizes::kFields;
  all["head"] = SamplerHead::kFields;
  all["buffer"] = SamplerBuffer::kFields;
  all["tap"] = SamplerTap::kFields;
  all["node"] = SamplerNode::kFields;
  return all;
}

}  // namespace

void bind_sampler(nb::module_& m) {
  m.def("causal_sampler", causal_sampler, "is_double"_a, "sizes"_a, "head"_a, "buffers"_a, "nodes"_a, "taps"_a,
        "addresses"_a, "scalars"_a, "temperature"_a, "images"_a, "given"_a, "uniforms"_a, "parameters"_a);
  m.def("philox_uniform", philox_uniform, "seed"_a, "row_offset"_a, "out"_a);
  m.def("codes", codes);
  m.def("record_fields", record_fields);
}

}  // namespace fastvae
