"""Log-likelihood of binary data under a decoder of dense layers, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backend import Route
from ..precision import compute_dtype
from ..reference import mlp_bernoulli as reference
from . import _layout
from ._contracts import Call
from ._decoder import CHOICES, Decoder, check_call, cpu_arguments, prepare, recognise
from ._layers import NEED_PRE
from ._library import Differentiable, apply, define, extension, needs_grad, with_reference
from ._network import LANES
from .linear_bernoulli import count_kept, linear_bernoulli_log_prob

# `kept` is what the backward pass reads: of each row its activations, what their derivatives are taken at where that is
# something else, and x - sigmoid(l), in blocks of rows.


def _fwd_cpu(
    z: Tensor,
    layers: Sequence[Tensor],
    has_bias: Sequence[bool],
    x: Tensor,
    inner: int,
    activation: str,
    keep: bool,
) -> tuple[Tensor, Tensor | None]:
    *arguments, _ = cpu_arguments((z,), layers, has_bias, x, inner, activation, "bernoulli")
    log_p, kept = extension().mlp_bernoulli_fwd(*arguments, keep)
    return log_p, kept


def _fwd_fake(
    z: Tensor,
    layers: Sequence[Tensor],
    has_bias: Sequence[bool],
    x: Tensor,
    inner: int,
    activation: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    log_p = z.new_empty(z.shape[0], dtype=compute_dtype(z.dtype))
    return log_p, log_p.new_empty(_count_kept(z, layers, has_bias, x, inner, activation) if keep else 0)


def _count_kept(
    z: Tensor, layers: Sequence[Tensor], has_bias: Sequence[bool], x: Tensor, inner: int, activation: str
) -> int:
    *hidden, last = (weight.shape[0] for weight in layers[: len(has_bias)])
    units = last + sum(hidden) * (2 if activation in NEED_PRE else 1)
    return count_kept(z.shape[0], x.shape[0], units, inner)


def _bwd_cpu(
    d_log_p: Tensor,
    z: Tensor,
    layers: Sequence[Tensor],
    has_bias: Sequence[bool],
    x: Tensor,
    kept: Tensor,
    inner: int,
    activation: str,
    of_z: bool,
    of_layers: bool,
) -> tuple[Tensor | None, list[Tensor]]:
    points, tensors, *_, number, _ = cpu_arguments((z,), layers, has_bias, x, inner, activation, "bernoulli")
    d_z, gradients = extension().mlp_bernoulli_bwd(
        d_log_p, points, tensors, has_bias, x, kept, inner, number, of_z, of_layers
    )
    return None if d_z is None else _layout.cast(d_z, z.dtype), [_layout.cast(g, z.dtype) for g in gradients]


def _bwd_fake(
    d_log_p: Any,
    z: Tensor,
    layers: Sequence[Tensor],
    has_bias: Any,
    x: Any,
    kept: Any,
    inner: Any,
    activation: Any,
    of_z: bool,
    of_layers: bool,
) -> tuple[Tensor, list[Tensor]]:
    return z.new_empty(z.shape if of_z else 0), [t.new_empty(t.shape) for t in layers] if of_layers else []


def _check_gradient(call: Call) -> None:
    check_call(call)
    tensors = (call[name] for name in ("z", "layers", "has_bias", "x", "inner", "activation"))
    call.tensor("kept", call["kept"], (str(_count_kept(*tensors)),), "cw")


_DECODER = "Tensor z, Tensor[] layers, bool[] has_bias, Tensor x"
_INSTEAD = "fastvae.functional.mlp_bernoulli_log_prob"
FWD = define(
    f"mlp_bernoulli_fwd({_DECODER}, SymInt inner, str activation, bool keep) -> (Tensor log_p, Tensor kept)",
    tensors="z[M,D]r x[N,P]rw", choices={"activation": CHOICES["activation"]}, more=check_call,
    module=None, cpu=_fwd_cpu, fake=_fwd_fake, instead=_INSTEAD,
)  # fmt: skip
BWD = define(
    f"mlp_bernoulli_bwd(Tensor d_log_p, {_DECODER}, Tensor kept, SymInt inner, str activation, bool of_z,"
    " bool of_layers) -> (Tensor d_z, Tensor[] d_layers)",
    tensors="z[M,D]r x[N,P]rw d_log_p[M]cw", choices={"activation": CHOICES["activation"]}, more=_check_gradient,
    module=None, cpu=_bwd_cpu, fake=_bwd_fake, instead=_INSTEAD,
)  # fmt: skip


def _rebuild_log_prob(ctx: Any) -> Differentiable:
    z, x, _, *layers = ctx.saved_tensors

    def log_prob(_: None, z: Tensor, __: None, *layers: Tensor) -> Tensor:
        *arguments, _likelihood = ctx.decoder.of_reference(layers, x)
        return reference.mlp_bernoulli_log_prob(z, *arguments)

    return log_prob, (None, z, None, *layers)


class _MlpBernoulliLogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, decoder: Decoder, z: Tensor, x: Tensor, *layers: Tensor) -> Tensor:
        *arguments, _likelihood = decoder.arguments(layers, x)
        log_p, kept = FWD.on(decoder.route)(z, *arguments, True)
        ctx.save_for_backward(z, x, kept, *layers)
        ctx.decoder, ctx.route = decoder, decoder.route
        return log_p

    @staticmethod
    @with_reference(_rebuild_log_prob)
    def backward(ctx: Any, route: Route, d_log_p: Tensor) -> Any:
        z, x, kept, *layers = ctx.saved_tensors
        _, of_z, _, *needs = ctx.needs_input_grad
        decoder = ctx.decoder
        d_z, found = BWD.on(route)(
            d_log_p.contiguous(), z, layers, decoder.has_bias, x, kept, decoder.inner, decoder.activation, of_z,
            any(needs),
        )  # fmt: skip
        d_layers = [g if need else None for g, need in zip(found, needs, strict=True)] if found else [None] * len(needs)
        return None, d_z if of_z else None, None, *d_layers


# With more rows, layers whose activations a compiler joins with their surroundings are faster.
_MOST_COMPILED_ROWS = 16 * LANES


def _is_one_call(rows: int) -> bool:
    """Whether blocks of rows are full enough for training in one call: elsewhere PyTorch's layers are as fast."""
    blocks = (rows + LANES - 1) // LANES
    if 8 * rows < 7 * blocks * LANES:
        return False
    return rows <= _MOST_COMPILED_ROWS or not torch.compiler.is_compiling()


def mlp_bernoulli_log_prob(
    z: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    x: Tensor,
    *,
    activation: str | None = "relu",
    impl: str = "auto",
) -> Tensor:
    r"""Log-likelihood of binary data under a decoder of dense layers, without its activations in memory.

    .. math::
        h_0 = z, \qquad h_i = \operatorname{act}(W_i h_{i-1} + b_i), \qquad l = W_n h_{n-1} + b_n, \qquad
        \log p(x \mid z) = \sum_j x_j l_j - \operatorname{softplus}(l_j)

    On a CPU the rows pass all layers in blocks of 64 that stay in the cache. Under gradients this takes rows that fill
    seven eighths of their blocks, and under a compiler no more than 1024. With other rows, on a GPU, and where ``x``
    requires a gradient, the hidden layers are those of PyTorch, and the last one is :func:`linear_bernoulli_log_prob`.

    Args:
        z: inputs of the decoder, ``(*sample_shape, *, D)``; float16, bfloat16, float32 or float64.
        weights: W, of each layer one: ``(H1, D)``, ``(H2, H1)``, ..., ``(P, Hn)``.
        biases: b, of each layer ``(H,)`` or None.
        x: data, ``(*, P)``: bool, integer or floating point, in [0, 1]. Missing or unit batch dimensions broadcast
            against those of ``z`` and are not repeated in memory: ``(N, P)`` against ``(K, N, D)``.
        activation: of the hidden layers: None (the identity), ``"identity"``, ``"relu"``, ``"elu"``, ``"tanh"``,
            ``"softplus"``, ``"gelu"`` or ``"silu"``.
        impl: ``"auto"``, ``"triton"``, ``"cpp"`` or ``"reference"``, see :mod:`fastvae.backend`.

    Returns:
        ``log_p_x``, nats, shape of ``z`` without its last dimension; float32 (float64 for float64 ``z``).

    Raises:
        TypeError: an argument is no tensor of the right kind, or dtypes differ outside autocast.
        ValueError: shapes do not fit, devices differ, or a name is unknown.
        RuntimeError: ``impl`` cannot run here.

    Note:
        Under autocast all layers run in its dtype. The values of ``x`` are not checked. Deterministic. Differentiable
        any number of times.

    Example:
        >>> z, x = torch.zeros(5, 2, 3), torch.tensor([[True, False], [False, False]])
        >>> weights, biases = [torch.ones(4, 3), torch.ones(2, 4)], [torch.zeros(4), None]
        >>> mlp_bernoulli_log_prob(z, weights, biases, x).shape
        torch.Size([5, 2])
    """
    prepared = recognise(impl, (z,), weights, biases, x, activation, "bernoulli")
    if prepared is None:
        prepared = prepare(impl, {"z": z}, weights, biases, x, activation, "bernoulli")
    decoder, (points,), rows, layers = prepared
    if decoder.route.impl == "cpp" and points.shape[0] >= LANES:
        differentiated = needs_grad(points, *layers)
        if differentiated and _is_one_call(points.shape[0]) and not needs_grad(rows):
            return _layout.to_shape(apply(_MlpBernoulliLogProb, decoder, points, rows, *layers), z.shape[:-1])
        if not differentiated and not needs_grad(rows):
            *arguments, _ = decoder.arguments(layers, rows)
            return _layout.to_shape(FWD.on(decoder.route)(points, *arguments, False)[0], z.shape[:-1])
    hidden = reference.hidden_layers(z, weights, biases, decoder.activation)
    return linear_bernoulli_log_prob(hidden, weights[-1], biases[-1], x, impl=impl)
