r"""Log-likelihood of data under a decoder of dense layers, with derivatives to the decoder's input, in plain PyTorch.

.. math::
    p_l = W_l h_{l-1} + b_l, \qquad h_l = \operatorname{act}(p_l), \qquad
    \delta_{l-1} = W_l^T \left(\operatorname{act}'(p_l) \odot \delta_l\right)

The tangent of :math:`h_l` along a vector, and that of :math:`\delta_l`, give the product of the Hessian and the vector.
All formulas are explicit, and autograd differentiates them further.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as TF
from torch import Tensor

from ..precision import compute_dtype
from .masked_linear import ACTIVATIONS

LIKELIHOODS = ("bernoulli", "gaussian")

# Above it softplus(l) = l to the last bit of float64; torch's default, 20, leaves an error of 2e-9.
_SOFTPLUS_THRESHOLD = 40.0


def _elu_slope(pre: Tensor) -> Tensor:
    return torch.where(pre > 0, 1.0, pre.clamp(max=0.0).exp())


def _elu_curvature(pre: Tensor) -> Tensor:
    return torch.where(pre > 0, 0.0, pre.clamp(max=0.0).exp())


def _tanh_slope(pre: Tensor) -> Tensor:
    return 1.0 - pre.tanh().square()


def _tanh_curvature(pre: Tensor) -> Tensor:
    value = pre.tanh()
    return -2.0 * value * (1.0 - value.square())


def _logistic_density(pre: Tensor) -> Tensor:
    return torch.sigmoid(pre) * torch.sigmoid(-pre)


def _normal_density(pre: Tensor) -> Tensor:
    # Beyond 40 it is 0 in float64, too, and so are its derivatives: without the clamp they could be 0 times infinity.
    return (-0.5 * pre.clamp(-40.0, 40.0).square()).exp() / math.sqrt(2.0 * math.pi)


def _gelu_slope(pre: Tensor) -> Tensor:
    return 0.5 * torch.special.erfc(-pre / math.sqrt(2.0)) + pre * _normal_density(pre)


def _gelu_curvature(pre: Tensor) -> Tensor:
    density = _normal_density(pre)
    return 2.0 * density - density * pre * pre


def _silu_slope(pre: Tensor) -> Tensor:
    s = torch.sigmoid(pre)
    return s + pre * s * (1.0 - s)


def _silu_curvature(pre: Tensor) -> Tensor:
    s = torch.sigmoid(pre)
    return s * (1.0 - s) * (2.0 + pre * (1.0 - 2.0 * s))


# The first derivatives of the activations, and the second ones. Relu selects; the identity has neither.
_SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": _elu_slope,
    "tanh": _tanh_slope,
    "softplus": torch.sigmoid,
    "gelu": _gelu_slope,
    "silu": _silu_slope,
}
_CURVATURES: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": _elu_curvature,
    "tanh": _tanh_curvature,
    "softplus": _logistic_density,
    "gelu": _gelu_curvature,
    "silu": _silu_curvature,
}


def activate(activation: str, pre: Tensor) -> Tensor:
    if activation == "softplus":
        return TF.softplus(pre, threshold=_SOFTPLUS_THRESHOLD)
    return ACTIVATIONS[activation](pre)


def _through(activation: str, pre: Tensor, change: Tensor) -> Tensor:
    """``change`` times the activation's slope. Where relu is closed, an infinite change becomes 0, as in PyTorch."""
    if activation == "relu":
        return torch.where(pre <= 0, 0.0, change)
    return change * _SLOPES[activation](pre) if activation in _SLOPES else change


def _likelihood(logits: Tensor, x: Tensor, inner: int, likelihood: str) -> tuple[Tensor, Tensor, Tensor]:
    """log p (M,), its gradient to the logits and the means, (M, P): row m belongs to row m // inner % N of x (N, P)."""
    rows, points = logits.shape[0], x.shape[0]
    of_points = logits.view(rows // (points * inner) if points else 0, points, inner, logits.shape[1])
    x = x[:, None].to(logits.dtype)
    if likelihood == "gaussian":
        mean = of_points
        residual = x - mean
        terms = -0.5 * residual.square()
    else:
        mean = torch.sigmoid(of_points)
        residual = x - mean
        terms = x * of_points - TF.softplus(of_points, threshold=_SOFTPLUS_THRESHOLD)
    return terms.sum(-1).view(rows), residual.view(logits.shape), mean.view(logits.shape)


def latent_gradient(
    z: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    x: Tensor,
    inner: int,
    activation: str,
    likelihood: str,
) -> tuple[Tensor, Tensor]:
    """``z`` (M, D), ``x`` (N, P): row m of ``z`` belongs to row m // inner % N of ``x``.

    Returns:
        log p(x | z) (M,), and its gradient to z (M, D).
    """
    log_p, gradient, _ = record(z, weights, biases, x, inner, activation, likelihood)
    return log_p, gradient


class Tape(NamedTuple):
    """What :func:`record` leaves for :func:`differentiate`.

    ``mean``: of p(x | z) (M, P). Of each layer ``inputs`` (M, in) and ``adjoints`` (M, out), the gradients of log p to
    W h + b. Of each hidden layer ``pre``, W h + b; ``upstream``, the gradients to its outputs; and ``slopes`` of the
    activation, where they are no selection.
    """

    mean: Tensor
    inputs: Sequence[Tensor]
    adjoints: Sequence[Tensor]
    pre: Sequence[Tensor]
    upstream: Sequence[Tensor]
    slopes: Sequence[Tensor]


def record(
    z: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    x: Tensor,
    inner: int,
    activation: str,
    likelihood: str,
) -> tuple[Tensor, Tensor, Tape]:
    """As :func:`latent_gradient`, with what the layers leave."""
    inputs: list[Tensor] = [z]
    pre: list[Tensor] = []
    for weight, bias in zip(weights, biases, strict=True):
        if pre:
            inputs.append(activate(activation, pre[-1]))
        pre.append(TF.linear(inputs[-1], weight, bias))
    log_p, residual, mean = _likelihood(pre.pop().to(compute_dtype(z.dtype)), x, inner, likelihood)
    slopes = [_SLOPES[activation](at) for at in pre] if activation in _SLOPES else []
    adjoints: list[Tensor] = [residual.to(z.dtype)]
    upstream: list[Tensor] = []
    for layer in range(len(pre), 0, -1):
        upstream.append(adjoints[-1] @ weights[layer])
        adjoints.append(_select(activation, pre, slopes, layer - 1, upstream[-1]))
    return log_p, adjoints[-1] @ weights[0], Tape(mean, inputs, adjoints[::-1], pre, upstream[::-1], slopes)


def _select(activation: str, pre: Sequence[Tensor], slopes: Sequence[Tensor], layer: int, change: Tensor) -> Tensor:
    """As :func:`_through`, of a hidden layer whose slopes are known."""
    return change * slopes[layer] if slopes else _through(activation, pre[layer], change)


def differentiate(
    tape: Tape,
    weights: Sequence[Tensor],
    d_log_p: Tensor | None,
    d_gradient: Tensor,
    activation: str,
    likelihood: str,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The gradients of ``d_log_p`` log p + ``d_gradient`` . gradient to z, to the weights, and to the biases.

    The tangents along ``d_gradient`` pass forward, then the tangents of the adjoints back.
    """
    last, dtype = len(weights) - 1, tape.adjoints[-1].dtype
    tangents, of_pre = [d_gradient], []
    for layer, weight in enumerate(weights):
        of_pre.append(tangents[-1] @ weight.mT)
        if layer < last:
            tangents.append(_select(activation, tape.pre, tape.slopes, layer, of_pre[-1]))
    change = of_pre[-1].to(tape.mean.dtype)
    if likelihood == "bernoulli":
        change = torch.ops.aten.sigmoid_backward(change, tape.mean)
    if d_log_p is not None:
        change = torch.addcmul(-change, d_log_p[:, None], tape.adjoints[-1].to(change.dtype))
    else:
        change = -change
    change, of_weights, of_biases = change.to(dtype), [], []
    for layer in range(last, -1, -1):
        straight = change.mT @ tape.inputs[layer]
        of_weights.append(torch.addmm(straight, tape.adjoints[layer].mT, tangents[layer]))
        of_biases.append(change.sum(0))
        back = change @ weights[layer]
        if layer:
            change = _select(activation, tape.pre, tape.slopes, layer - 1, back)
            if activation in _CURVATURES:
                curvature = _CURVATURES[activation](tape.pre[layer - 1])
                change.addcmul_(curvature.mul_(tape.upstream[layer - 1]), of_pre[layer - 1])
    return back, of_weights[::-1], of_biases[::-1]


def latent_hessian_product(
    z: Tensor,
    v: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    x: Tensor,
    inner: int,
    activation: str,
    likelihood: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`latent_gradient`, with the product (M, D) of the Hessian and ``v`` (M, D) behind."""
    pre: list[Tensor] = []
    tangents: list[Tensor] = []
    hidden, tangent = z, v
    for weight, bias in zip(weights, biases, strict=True):
        if pre:
            hidden, tangent = activate(activation, pre[-1]), _through(activation, pre[-1], tangents[-1])
        pre.append(TF.linear(hidden, weight, bias))
        tangents.append(TF.linear(tangent, weight))
    logits = pre[-1].to(compute_dtype(z.dtype))
    log_p, residual, _ = _likelihood(logits, x, inner, likelihood)
    change = -tangents[-1].to(logits.dtype)
    if likelihood == "bernoulli":
        change = change * _logistic_density(logits)
    adjoint, adjoint_tangent = residual.to(z.dtype), change.to(z.dtype)
    for layer in range(len(pre) - 1, 0, -1):
        before, at = adjoint @ weights[layer], pre[layer - 1]
        adjoint_tangent = _through(activation, at, adjoint_tangent @ weights[layer])
        if activation in _CURVATURES:
            adjoint_tangent = adjoint_tangent + before * _CURVATURES[activation](at) * tangents[layer - 1]
        adjoint = _through(activation, at, before)
    return log_p, adjoint @ weights[0], adjoint_tangent @ weights[0]
