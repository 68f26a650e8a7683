"""Log-likelihood of binary data under a decoder of dense layers: where nothing is differentiated, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..precision import compute_dtype
from ..reference import mlp_bernoulli as reference
from . import _layout
from ._decoder import CHOICES, check_call, cpu_arguments, prepare, recognise
from ._library import define, extension, needs_grad
from ._network import LANES
from .linear_bernoulli import linear_bernoulli_log_prob


def _fwd_cpu(
    z: Tensor, layers: Sequence[Tensor], has_bias: Sequence[bool], x: Tensor, inner: int, activation: str
) -> Tensor:
    *arguments, _ = cpu_arguments((z,), layers, has_bias, x, inner, activation, "bernoulli")
    log_p: Tensor = extension().mlp_bernoulli_fwd(*arguments)
    return log_p


def _fwd_fake(z: Tensor, *_: Any) -> Tensor:
    return z.new_empty(z.shape[0], dtype=compute_dtype(z.dtype))


FWD = define(
    "mlp_bernoulli_fwd(Tensor z, Tensor[] layers, bool[] has_bias, Tensor x, SymInt inner, str activation)"
    " -> Tensor log_p",
    tensors="z[M,D]r x[N,P]rw", choices={"activation": CHOICES["activation"]}, more=check_call,
    module=None, cpu=_fwd_cpu, fake=_fwd_fake, instead="fastvae.functional.mlp_bernoulli_log_prob",
)  # fmt: skip


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

    For importance sampling, annealing and other estimates with many samples of each data point. On a CPU, where
    nothing is differentiated, the rows pass all layers in blocks that stay in the cache. Otherwise the hidden layers
    are those of PyTorch, and the last one is :func:`linear_bernoulli_log_prob`.

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
        >>> import torch
        >>> z, x = torch.zeros(5, 2, 3), torch.tensor([[True, False], [False, False]])
        >>> weights, biases = [torch.ones(4, 3), torch.ones(2, 4)], [torch.zeros(4), None]
        >>> mlp_bernoulli_log_prob(z, weights, biases, x).shape
        torch.Size([5, 2])
    """
    prepared = recognise(impl, (z,), weights, biases, x, activation, "bernoulli")
    if prepared is None:
        prepared = prepare(impl, {"z": z}, weights, biases, x, activation, "bernoulli")
    decoder, (points,), rows, layers = prepared
    in_blocks = decoder.route.impl == "cpp" and points.shape[0] >= LANES
    if in_blocks and not needs_grad(points, rows, *layers):
        *arguments, _ = decoder.arguments(layers, rows)
        return _layout.to_shape(FWD.on(decoder.route)(points, *arguments), z.shape[:-1])
    hidden = reference.hidden_layers(z, weights, biases, decoder.activation)
    return linear_bernoulli_log_prob(hidden, weights[-1], biases[-1], x, impl=impl)
