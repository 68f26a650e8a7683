"""Calls every op of ``torch.ops.fastvae`` with arguments that do not fit, and prints what is let through.

It runs in a process of its own: what an op does not check may end it.
"""

import torch

from tests.support.op_arguments import op_arguments

HUGE = 2**62


def wrong_tensors(t):
    """Tensors that do not fit where ``t`` does; ``t`` has two rows or more."""
    yield "None", None
    yield "of another device", t.to("meta")
    yield "of another dtype", t.double() if t.dtype == torch.float32 else t.float()
    yield "of complex numbers", t.to(torch.complex64)
    yield "of one dimension more", t[None]
    if t.dim():
        yield "without its last row", t[:-1]
        yield "twice as long", torch.cat([t, t])
        yield "without its last column", t[..., :-1]
    if t.dim() > 1 and t.shape[-1] > 1:
        yield "of rows that are not contiguous", t.mT.contiguous().mT


def wrong(name, argument, value):
    """What to put in place of ``value``, with a name."""
    if isinstance(value, torch.Tensor):
        yield from wrong_tensors(value)
    elif isinstance(value, (bool, float)) or value is None:
        return
    elif isinstance(value, int):
        numbers = (-1, -HUGE) if argument in ("row_offset", "origin_tap") else (-1, 0, HUGE, -HUGE)
        yield from ((str(number), number) for number in numbers if not (argument == "origin_tap" and number == -1))
    elif isinstance(value, str):
        yield "an unknown name", "unknown"
    else:
        value = list(value)
        yield "empty", []
        yield "longer", [*value, value[-1]]
        yield "shorter", value[:-1]
        for i, item in enumerate(value):
            for what, other in wrong(name, argument, item):
                yield f"[{i}] {what}", [*value[:i], other, *value[i + 1 :]]


# What need not fit: a CPU's pass does not read it.
UNREAD = {
    "diag_gaussian_bwd": {"log_sigma", "noise"},
    "diag_gaussian_bwd_samples": {"log_sigma", "noise"},
    "diag_gaussian_with_kl_bwd": {"noise"},
    "tril_gaussian_bwd": {"noise"},
    "tril_gaussian_with_kl_bwd": {"noise"},
    "logistic_mixture_bwd": {"x", "params", "levels"},
}
_SAMPLES = {"z of one dimension more", "z without its last row", "z twice as long"}
# Other calls that are as good: another number of samples, images of another size, fewer taps, another network.
AS_GOOD = {
    "bernoulli_fwd": {
        *("shape longer", "shape [0] 0", "shape [1] 0", "shape [2] 0"),
        *(f"logits {what}" for what in ("of another dtype", "without its last row", "twice as long")),
    },
    "bernoulli_bwd": {"logits without its last row", "logits twice as long"},
    "diag_gaussian_fwd": {"shape longer", "shape [0] 0", "shape [1] 0"},
    "tril_gaussian_fwd": {"shape longer", "shape [0] 0", "shape [1] 0"},
    "diag_gaussian_with_kl_fwd": {"shape longer"},
    "tril_gaussian_with_kl_fwd": {"shape longer"},
    "diag_gaussian_log_prob_fwd": _SAMPLES,
    "tril_gaussian_log_prob_fwd": _SAMPLES,
    "tril_gaussian_bwd": {"log_sigma without its last row", "log_sigma twice as long"},
    "linear_bernoulli_fwd": {"h twice as long", "x without its last row"},
    "linear_bernoulli_bwd": {"x without its last row"},
    "linear_tril_gaussian_fwd": {"h without its last row", "h twice as long"},
    "mlp_bernoulli_fwd": {"z twice as long", "x without its last row"},
    "mlp_bernoulli_bwd": {"x without its last row"},
    "latent_gradient_fwd": {"z twice as long", "x without its last row"},
    "latent_gradient_bwd": {"x without its last row"},
    "latent_hessian_product_fwd": {"x without its last row"},
    "class_linear_fwd": {
        *(f"{name} {what}" for name in ("rows", "classes") for what in ("without its last row", "twice as long")),
    },
    "masked_linear_fwd": {"x without its last row", "x twice as long"},
    "masked_norm_fwd": {"weight of another dtype"},
    "autoregressive_flow_fwd": {f"structure [{i}] 0" for i in (2, 3, 4, 5)},
    "autoregressive_flow_bwd": {"structure [4] 0", "structure [5] 0", "saved of one dimension more"},
    "autoregressive_inverse_fwd": {"structure [2] 0", "structure [4] 0", "structure [5] 0"},
    "autoregressive_inverse_bwd": {"structure [4] 0", "structure [5] 0", "saved of one dimension more"},
    "gated_activation_fwd": {"x without its last column", "condition without its last row"},
    "gated_activation_bwd": {"condition without its last row"},
    "masked_conv2d_fwd": {
        *(f"x {what}" for what in ("without its last row", "twice as long", "without its last column")),
        *(f"taps {what}" for what in ("empty", "shorter", "[0] 0")), *(f"padding [{i}] 0" for i in range(4)),
        "weight without its last column",
    },
    "masked_conv2d_bwd": {*(f"taps {what}" for what in ("empty", "shorter", "[0] 0"))},
}  # fmt: skip
ANY_STRIDES = {"gated_activation", "masked_conv2d", "logistic_mixture"}


def main():
    torch.manual_seed(0)
    count = 0
    for case, arguments in op_arguments().items():
        name = case.split()[0]
        op = getattr(torch.ops.fastvae, name).default
        for i, (argument, value) in enumerate(zip(op._schema.arguments, arguments, strict=True)):
            if argument.name in UNREAD.get(name, ()):
                continue
            for what, other in wrong(name, argument.name, value):
                images = name.rsplit("_", 1)[0] in ANY_STRIDES
                absent = what.endswith("None") and "Optional" in str(argument.type)
                if (images and "contiguous" in what) or absent or f"{argument.name} {what}" in AS_GOOD.get(name, ()):
                    continue
                count += 1
                try:
                    op(*arguments[:i], other, *arguments[i + 1 :])
                except (ValueError, TypeError, RuntimeError, NotImplementedError):
                    continue
                print(f"{case}: {argument.name} {what}", flush=True)
    print(count)


if __name__ == "__main__":
    main()
