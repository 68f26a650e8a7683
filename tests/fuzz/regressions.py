"""Cases that failed once: each found a fault that is mended, or a bound that the fuzzer did not know."""

CASES = (
    # Operators that read or wrote beyond their arguments.
    "operator.affine_flow_fwd.0",
    "operator.autoregressive_inverse_bwd.6",
    "operator.autoregressive_inverse_fwd.2",
    "operator.diag_gaussian_kl_bwd.3",
    "operator.diag_gaussian_kl_prior_bwd.2",
    "operator.diag_gaussian_log_prob_bwd.12",
    "operator.masked_conv2d_fwd.10",
    "operator.masked_linear_fwd.6",
    "operator.masked_norm_bwd.3",
    "operator.masked_norm_fwd.0",
    "operator.tril_gaussian_bwd.8",
    "operator.tril_gaussian_fwd.4",
    "operator.tril_gaussian_kl_bwd.6",
    "operator.tril_gaussian_kl_fwd.2",
    "operator.tril_gaussian_log_prob_bwd.9",
    # A dense triangle with a stride of 0, read as packed.
    "surface.tril_gaussian_kl.21",
    "surface.tril_gaussian_log_prob.26",
    "surface.tril_gaussian_rsample.50011",
    # What is infinite: a closed relu, factors of rows, digits beside a large logit, a product with a gradient of 0.
    "surface.InverseAutoregressiveFlow.29",
    "surface.masked_linear.45",
    "surface.logistic_mixture_log_prob.66",
    "surface.logistic_mixture_log_prob.108",
    "surface.affine_flow.100",
    # A clamped logit beside an infinite shift; a row of one weight, whose square is 0.
    "surface.affine_flow.20031",
    "surface.MaskedLinear.20037",
    # What the reference leaves to chance: an infinite sigma without samples, infinite noise beside the zeros of the
    # triangle, the roundings of a row of one weight, sums that overflow.
    "surface.diag_gaussian_rsample.20018",
    "surface.tril_gaussian_rsample.20028",
    "surface.MADE.20032",
    "surface.ConvInverseAutoregressiveFlow.20038",
    "surface.MaskedAutoregressiveFlow.20015",
    # Layers without inputs, images without pixels.
    "surface.masked_linear.11",
    "surface.masked_linear.50012",
    "surface.MaskedConv2d.63",
    # The header of an array that is no Python; a configuration of nested brackets.
    "file.images.122",
    "file.configuration.107",
    # Bits of weights that flipped in a checkpoint.
    "file.checkpoint.7",
    "file.checkpoint.11",
)
