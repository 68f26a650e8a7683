"""Log-likelihood of data under a decoder of dense layers, and its gradient to the decoder's input, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from ..backend import Route
from ..precision import compute_dtype
from ..reference import latent_gradient as reference
from . import _layout
from ._decoder import ARGUMENTS, CHOICES, Decoder, check_call, cpu_arguments, only_by_reference, prepare, recognise
from ._library import (
    Differentiable,
    apply,
    define,
    extension,
    keep_none,
    needs_grad,
    reference_gradients,
    with_reference,
)


def _fwd_cpu(z: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    log_p, gradient = extension().latent_gradient_fwd(*cpu_arguments((z,), *others))
    return log_p, _layout.cast(gradient, z.dtype)


def _fwd_fake(z: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return z.new_empty(z.shape[0], dtype=compute_dtype(z.dtype)), z.new_empty(z.shape)


def _bwd_cpu(d_log_p: Tensor | None, d_gradient: Tensor, z: Tensor, *others: Any) -> Tensor:
    d_z: Tensor = extension().latent_gradient_bwd(d_log_p, *cpu_arguments((d_gradient, z), *others))
    return _layout.cast(d_z, z.dtype)


def _bwd_fake(d_log_p: Any, d_gradient: Any, z: Tensor, *_: Any) -> Tensor:
    return z.new_empty(z.shape)


FWD = define(
    f"latent_gradient_fwd(Tensor z, {ARGUMENTS}) -> (Tensor log_p, Tensor gradient)",
    tensors="z[M,D]r x[N,P]rw", choices=CHOICES, more=check_call,
    module="latent_gradient", cpu=_fwd_cpu, fake=_fwd_fake,
)  # fmt: skip
BWD = define(
    f"latent_gradient_bwd(Tensor? d_log_p, Tensor d_gradient, Tensor z, {ARGUMENTS}) -> Tensor d_z",
    tensors="z[M,D]r d_gradient[M,D]c d_log_p?[M]cw x[N,P]rw", choices=CHOICES, more=check_call,
    module="latent_gradient", cpu=_bwd_cpu, fake=_bwd_fake,
)  # fmt: skip


def _as_function(decoder: Decoder) -> Any:
    """The reference, of the arguments of a Function's ``forward``."""

    def gradient(_: None, z: Tensor, x: Tensor, *layers: Tensor) -> tuple[Tensor, Tensor]:
        return reference.latent_gradient(z, *decoder.of_reference(layers, x))

    return gradient


def _rebuild_gradient(ctx: Any) -> Differentiable:
    z, x, _, *layers = ctx.saved_tensors
    return _as_function(ctx.decoder), (None, z, x, *layers)


class _LatentGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, decoder: Decoder, z: Tensor, x: Tensor, *layers: Tensor) -> tuple[Tensor, Tensor]:
        log_p, gradient = FWD.on(decoder.route)(z, *decoder.arguments(layers, x))
        ctx.save_for_backward(z, x, gradient, *layers)
        ctx.decoder, ctx.route = decoder, decoder.route
        keep_none(ctx)
        return log_p, gradient

    @staticmethod
    @with_reference(_rebuild_gradient)
    def backward(ctx: Any, route: Route, d_log_p: Tensor | None, d_gradient: Tensor | None) -> Any:
        if any(ctx.needs_input_grad[2:]):
            return reference_gradients(_rebuild_gradient, ctx, (d_log_p, d_gradient))
        z, x, gradient, *layers = ctx.saved_tensors
        d_z = None
        if d_gradient is not None:
            d_log_p = None if d_log_p is None else d_log_p.contiguous()
            d_z = BWD.on(route)(d_log_p, d_gradient.contiguous(), z, *ctx.decoder.arguments(layers, x))
        elif d_log_p is not None:
            d_z = (d_log_p.unsqueeze(-1) * gradient).to(z.dtype)
        return None, d_z, *[None] * (1 + len(layers))


def _rebuild_trained(ctx: Any) -> Differentiable:
    count = len(ctx.decoder.has_bias) + sum(ctx.decoder.has_bias)
    z, x, *saved = ctx.saved_tensors
    return _as_function(ctx.decoder), (None, z, x, *saved[:count])


class _TrainedLatentGradient(torch.autograd.Function):
    """As :class:`_LatentGradient` for a decoder that is trained: it keeps what the gradients of weights need."""

    @staticmethod
    def forward(ctx: Any, decoder: Decoder, z: Tensor, x: Tensor, *layers: Tensor) -> tuple[Tensor, Tensor]:
        log_p, gradient, tape = reference.record(z, *decoder.of_reference(layers, x))
        of_layers = (tape.inputs[1:], tape.adjoints, tape.pre, tape.upstream, tape.slopes)
        ctx.save_for_backward(z, x, *layers, tape.mean, *chain(*of_layers))
        ctx.counts = [len(tensors) for tensors in of_layers]
        ctx.decoder, ctx.route = decoder, decoder.route
        keep_none(ctx)
        return log_p, gradient

    @staticmethod
    @with_reference(_rebuild_trained)
    def backward(ctx: Any, route: Route, d_log_p: Tensor | None, d_gradient: Tensor | None) -> Any:
        if d_gradient is None:
            return reference_gradients(_rebuild_trained, ctx, (d_log_p, None))
        decoder, (z, _, *saved) = ctx.decoder, ctx.saved_tensors
        count = len(decoder.has_bias)
        weights, kept = saved[:count], iter(saved[count + sum(decoder.has_bias) :])
        mean = next(kept)
        inputs, *others = (list(islice(kept, number)) for number in ctx.counts)
        tape = reference.Tape(mean, [z, *inputs], *others)
        d_z, of_weights, of_biases = reference.differentiate(
            tape, weights, d_log_p, d_gradient, decoder.activation, decoder.likelihood
        )
        with_bias = [bias for bias, there in zip(of_biases, decoder.has_bias, strict=True) if there]
        return None, d_z, None, *of_weights, *with_bias


def latent_gradient(
    z: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    x: Tensor,
    *,
    activation: str | None = "relu",
    likelihood: str = "bernoulli",
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""Log-likelihood of data under a decoder of dense layers, and its gradient to the decoder's input, in one call.

    .. math::
        h_0 = z, \qquad h_i = \operatorname{act}(W_i h_{i-1} + b_i), \qquad l = W_n h_{n-1} + b_n, \qquad
        g = \frac{\partial \log p(x \mid z)}{\partial z}

    with :math:`\log p(x \mid z) = \sum_j x_j l_j - \operatorname{softplus}(l_j)` for ``"bernoulli"``, and
    :math:`-\frac{1}{2} \sum_j (x_j - l_j)^2` for ``"gaussian"``: unit variance, without the constant
    :math:`-\frac{P}{2} \log 2 \pi`.

    For gradient ascent in the latent space, Langevin dynamics and Hamiltonian inference. :func:`torch.autograd.grad`
    builds a graph and keeps every layer's activations for it; here they stay in the cache.

    Args:
        z: inputs of the decoder, ``(*sample_shape, *, D)``; float16, bfloat16, float32 or float64.
        weights: W, of each layer one: ``(H1, D)``, ``(H2, H1)``, ..., ``(P, Hn)``. One alone is a decoder without
            hidden layers.
        biases: b, of each layer ``(H,)`` or None.
        x: data, ``(*, P)``: bool, integer or floating point. Missing or unit batch dimensions broadcast against those
            of ``z`` and are not repeated in memory: ``(N, P)`` against ``(K, N, D)``.
        activation: of the hidden layers: None (the identity), ``"identity"``, ``"relu"``, ``"elu"``, ``"tanh"``,
            ``"softplus"``, ``"gelu"`` or ``"silu"``.
        likelihood: ``"bernoulli"`` or ``"gaussian"``.
        impl: ``"auto"``, ``"triton"``, ``"cpp"`` or ``"reference"``, see :mod:`fastvae.backend`.

    Returns:
        ``log_p_x``, nats, shape of ``z`` without its last dimension; float32 (float64 for float64 ``z``).
        ``gradient``, shape and dtype of ``z``.

    Raises:
        TypeError: an argument is no tensor of the right kind, or dtypes differ outside autocast.
        ValueError: shapes do not fit, devices differ, or a name is unknown.
        RuntimeError: ``impl`` cannot run here.

    Note:
        Both outputs are differentiable: call it under :func:`torch.no_grad` where only their numbers matter. A kernel
        computes the gradient of ``z``, with a product of the Hessian and a vector. Where weights or biases require
        gradients, PyTorch's products keep what every layer leaves, and all gradients are made of that. The reference
        computes, from the inputs and more slowly, gradients of data, and derivatives beyond. Where a compiler traces
        the call and one of those requires a gradient, the reference runs it all.
        Under autocast all layers run in its dtype. The values of ``x`` are not checked. Deterministic.

    Example:
        >>> z, x = torch.zeros(5, 2), torch.ones(5, 3)
        >>> weights, biases = [torch.ones(4, 2), torch.ones(3, 4)], [torch.ones(4), None]
        >>> log_p_x, gradient = latent_gradient(z, weights, biases, x, likelihood="gaussian")
        >>> log_p_x[0].item(), gradient[0].tolist()
        (-13.5, [-36.0, -36.0])
    """
    prepared = recognise(impl, (z,), weights, biases, x, activation, likelihood)
    if prepared is None:
        prepared = prepare(impl, {"z": z}, weights, biases, x, activation, likelihood)
    decoder, (points,), x, layers = prepared
    shape = z.shape
    of_decoder = needs_grad(x, *layers)
    if of_decoder and torch.compiler.is_compiling():
        decoder = only_by_reference(decoder, impl, "gradients of the decoder")
    route = decoder.route
    if route.impl == "reference":
        log_p, gradient = reference.latent_gradient(points, *decoder.of_reference(layers, x))
    elif needs_grad(*layers) and not needs_grad(x):
        log_p, gradient = apply(_TrainedLatentGradient, decoder, points, x, *layers)
    elif of_decoder or needs_grad(points):
        log_p, gradient = apply(_LatentGradient, decoder, points, x, *layers)
    else:
        log_p, gradient = FWD.on(route)(points, *decoder.arguments(layers, x))
    return _layout.to_shape(log_p, shape[:-1]), _layout.to_shape(gradient, shape)
