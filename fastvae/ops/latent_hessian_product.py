"""Log-likelihood under a decoder of dense layers, its gradient, and the product of its Hessian and a vector."""

from __future__ import annotations

from collections.abc import Sequence
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


def _fwd_cpu(z: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    log_p, gradient, product = extension().latent_hessian_product_fwd(*cpu_arguments((z, v), *others))
    return log_p, _layout.cast(gradient, z.dtype), _layout.cast(product, z.dtype)


def _fwd_fake(z: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return z.new_empty(z.shape[0], dtype=compute_dtype(z.dtype)), z.new_empty(z.shape), z.new_empty(z.shape)


FWD = define(
    f"latent_hessian_product_fwd(Tensor z, Tensor v, {ARGUMENTS}) -> (Tensor log_p, Tensor gradient, Tensor product)",
    tensors="z[M,D]r v[M,D]r x[N,P]rw", choices=CHOICES, more=check_call,
    module="latent_gradient", cpu=_fwd_cpu, fake=_fwd_fake,
)  # fmt: skip


def _rebuild_product(ctx: Any) -> Differentiable:
    def product(_: None, z: Tensor, v: Tensor, x: Tensor, *layers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return reference.latent_hessian_product(z, v, *ctx.decoder.of_reference(layers, x))

    return product, (None, *ctx.saved_tensors)


class _LatentHessianProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, decoder: Decoder, z: Tensor, v: Tensor, x: Tensor, *layers: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(z, v, x, *layers)
        ctx.decoder, ctx.route = decoder, decoder.route
        keep_none(ctx)
        found: tuple[Tensor, Tensor, Tensor] = FWD.on(decoder.route)(z, v, *decoder.arguments(layers, x))
        return found

    @staticmethod
    @with_reference(_rebuild_product)
    def backward(ctx: Any, route: Route, *d_outputs: Tensor | None) -> Any:
        return reference_gradients(_rebuild_product, ctx, d_outputs)


def latent_hessian_product(
    z: Tensor,
    v: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    x: Tensor,
    *,
    activation: str | None = "relu",
    likelihood: str = "bernoulli",
    impl: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    r"""As :func:`latent_gradient`, with the product of the Hessian and a vector for each row, in one call.

    .. math::
        \text{product} = \frac{\partial^2 \log p(x \mid z)}{\partial z\, \partial z^T}\, v

    One pass forward carries values and tangents along v, and one back carries the gradient and its tangent.

    Args:
        z: inputs of the decoder, ``(*sample_shape, *, D)``; float16, bfloat16, float32 or float64.
        v: vectors, shape and dtype of ``z``.
        weights: as for :func:`latent_gradient`.
        biases: as for :func:`latent_gradient`.
        x: data, as for :func:`latent_gradient`.
        activation: of the hidden layers. The curvature of ``"relu"`` is 0.
        likelihood: ``"bernoulli"`` or ``"gaussian"``, as for :func:`latent_gradient`.
        impl: ``"auto"``, ``"triton"``, ``"cpp"`` or ``"reference"``, see :mod:`fastvae.backend`.

    Returns:
        ``log_p_x``, nats, shape of ``z`` without its last dimension; float32 (float64 for float64 ``z``).
        ``gradient`` and ``product``, shape and dtype of ``z``.

    Raises:
        TypeError: an argument is no tensor of the right kind, or dtypes differ outside autocast.
        ValueError: shapes do not fit, devices differ, or a name is unknown.
        RuntimeError: ``impl`` cannot run here.

    Note:
        All outputs are differentiable, by the reference: call it under :func:`torch.no_grad` where only their numbers
        matter. Where a compiler traces the call and an input requires a gradient, the reference runs it all.
        Otherwise as :func:`latent_gradient`.

    Example:
        >>> z, v, x = torch.zeros(5, 2), torch.ones(5, 2), torch.ones(5, 3)
        >>> log_p_x, gradient, product = latent_hessian_product(
        ...     z, v, [torch.ones(3, 2)], [None], x, likelihood="gaussian"
        ... )
        >>> gradient[0].tolist(), product[0].tolist()
        ([3.0, 3.0], [-6.0, -6.0])
    """
    prepared = recognise(impl, (z, v), weights, biases, x, activation, likelihood)
    if prepared is None:
        prepared = prepare(impl, {"z": z, "v": v}, weights, biases, x, activation, likelihood)
    decoder, points, x, layers = prepared
    shape = z.shape
    differentiable = needs_grad(*points, x, *layers)
    if differentiable and torch.compiler.is_compiling():
        decoder = only_by_reference(decoder, impl, "gradients of a Hessian product")
    route: Route = decoder.route
    if route.impl == "reference":
        found = reference.latent_hessian_product(points[0], points[1], *decoder.of_reference(layers, x))
    elif differentiable:
        found = apply(_LatentHessianProduct, decoder, *points, x, *layers)
    else:
        found = FWD.on(route)(*points, *decoder.arguments(layers, x))
    log_p, gradient, product = found
    return (
        _layout.to_shape(log_p, shape[:-1]),
        _layout.to_shape(gradient, shape),
        _layout.to_shape(product, shape),
    )
