"""Full-covariance Gaussian with a triangular factor: reparameterised sample and its log-density in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backend, rng
from ..backend import Route
from ..precision import compute_dtype
from ..reference import tril_gaussian as reference
from . import _checks, _layout
from ._contracts import Call, check_sample, check_sample_gradient
from ._library import Differentiable, apply, define, extension, keep_none, needs_grad, with_reference
from ._small import draw_eps, is_left_to_compiler
from .diag_gaussian import density_alone

# `noise` is a 0-d int64 seed or the normals themselves; `kept` are the normals: the backward pass on a CPU reads them,
# and does not draw them again.


def tril_shape(n: int, d: int, dense: bool) -> tuple[int, ...]:
    return (n, d, d) if dense else (n, d * (d - 1) // 2)


def check_tril(call: Call) -> None:
    """The factor of a dispatched call: packed, or dense."""
    tril, n, d = call.get_tensor("tril"), call.sizes["N"], call.sizes["D"]
    call.require(d > 0, "log_sigma", "have one feature or more", 0)
    call.tensor("tril", tril, [str(size) for size in tril_shape(n, d, tril.dim() == 3)], "r")


def _check_forward(call: Call) -> None:
    check_tril(call)
    check_sample(call)


def _fwd_cpu(
    mu: Tensor, log_sigma: Tensor, tril: Tensor, noise: Tensor, shape: Sequence[int], row_offset: int, keep: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    x, log_s, t = _layout.all_to_compute_dtype((mu, log_sigma, tril), mu.dtype)
    if noise.dim() > 0:
        noise = _layout.cast(noise, x.dtype)
    z, log_q, kept = extension().tril_gaussian_fwd(x, log_s, t, noise, shape, row_offset, keep)
    return _layout.cast(z, mu.dtype), log_q, kept


def _fwd_triton(
    launcher: Any,
    mu: Tensor,
    log_sigma: Tensor,
    tril: Tensor,
    noise: Tensor,
    shape: Sequence[int],
    row_offset: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    n, d = mu.shape
    if noise.dim() > 0:
        noise = _layout.stack_samples(noise, n, d)
    samples = _layout.count_samples(_layout.product(shape), n, d)
    z, log_q = launcher(mu, log_sigma, tril, noise, samples, row_offset)
    return z.view(shape), log_q.view(shape[:-1]), mu.new_empty(0)


def _fwd_fake(
    mu: Tensor, log_sigma: Tensor, tril: Tensor, noise: Tensor, shape: Sequence[int], row_offset: int, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    log_q = mu.new_empty(shape[:-1], dtype=compute_dtype(mu.dtype))
    kept = log_q.new_empty(shape) if keep and mu.device.type == "cpu" else mu.new_empty(0)
    return mu.new_empty(shape), log_q, kept


def _bwd_cpu(
    d_z: Tensor,
    d_log_q: Tensor,
    log_sigma: Tensor,
    noise: Any,
    kept: Tensor,
    row_offset: int,
    dense: bool,
    with_mu: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    g, log_s = _layout.all_to_compute_dtype((d_z, log_sigma), log_sigma.dtype)
    d_mu, d_log_sigma, d_tril = extension().tril_gaussian_bwd(g, d_log_q, log_s, kept, dense, with_mu)
    dtype = log_sigma.dtype
    d_mu = None if d_mu is None else _layout.cast(d_mu, dtype)
    return d_mu, _layout.cast(d_log_sigma, dtype), _layout.cast(d_tril, dtype)


def _bwd_triton(
    launcher: Any,
    d_z: Tensor,
    d_log_q: Tensor,
    log_sigma: Tensor,
    noise: Tensor,
    kept: Any,
    row_offset: int,
    dense: bool,
    with_mu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    n, d = log_sigma.shape
    d_z = _layout.stack_samples(d_z, n, d)
    if noise.dim() > 0:
        noise = _layout.stack_samples(noise, n, d)
    d_mu, d_log_sigma, d_tril = launcher(d_z, d_log_q.view(d_z.shape[:-1]), log_sigma, noise, row_offset, dense)
    return d_mu if with_mu else d_mu.new_empty(0), d_log_sigma, d_tril


def _bwd_fake(
    d_z: Tensor, d_log_q: Tensor, log_sigma: Tensor, noise: Any, kept: Any, row_offset: int, dense: bool, with_mu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    n, d = log_sigma.shape
    return (
        log_sigma.new_empty((n, d) if with_mu else 0),
        log_sigma.new_empty((n, d)),
        log_sigma.new_empty(tril_shape(n, d, dense)),
    )


FWD = define(
    "tril_gaussian_fwd(Tensor mu, Tensor log_sigma, Tensor tril, Tensor noise, SymInt[] shape, SymInt row_offset,"
    " bool keep) -> (Tensor z, Tensor log_q, Tensor kept)",
    tensors="mu[N,D]r log_sigma[N,D]r", more=_check_forward,
    module="tril_gaussian", cpu=_fwd_cpu, fake=_fwd_fake, adapt=_fwd_triton,
)  # fmt: skip
# The gradient of the factor is an outer product: only the layout of the factor is kept, not its values. The gradient of
# mu is the sum of d_z over samples; it is empty without with_mu.
BWD = define(
    "tril_gaussian_bwd(Tensor d_z, Tensor d_log_q, Tensor log_sigma, Tensor? noise, Tensor? kept, SymInt row_offset,"
    " bool dense, bool with_mu) -> (Tensor d_mu, Tensor d_log_sigma, Tensor d_tril)",
    tensors="log_sigma[N,D]r d_z[S,D]c d_log_q[S]cw kept?[S,D]cw", more=check_sample_gradient,
    module="tril_gaussian", cpu=_bwd_cpu, fake=_bwd_fake, adapt=_bwd_triton,
)  # fmt: skip


# The shape of the sample, the number of its first row, and whether the factor is dense.
SampleCall = tuple[tuple[int, ...], int, bool]


def rebuild_sample(route: Route, call: SampleCall, like: Tensor, eps: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
    """The sample as a function of its parameters, with the noise as it was drawn; ``like`` is as mu."""
    shape, row_offset, dense = call
    n, d = like.shape
    if route.impl != "cpp":
        zero = torch.zeros_like(like, dtype=compute_dtype(like.dtype))
        no_tril = zero.new_zeros(tril_shape(n, d, dense))
        eps = FWD.on(backend.route_of(route.impl, zero))(zero, zero, no_tril, eps, shape, row_offset, False)[0]
    stacked = eps.view(_layout.count_samples(eps.numel(), n, d), n, d)

    def sample(mu: Tensor, log_sigma: Tensor, tril: Tensor, *_: None) -> tuple[Tensor, Tensor]:
        z, log_q = reference.rsample(mu, log_sigma, tril, not dense, stacked.shape[:1], stacked, None)
        return z.reshape(shape), log_q.reshape(shape[:-1])

    return sample


def _rebuild_sample(ctx: Any) -> Differentiable:
    log_sigma, eps = ctx.saved_tensors
    n, d = log_sigma.shape
    # mu and the factor move the sample linearly: gradients do not depend on their values.
    mu, tril = torch.zeros_like(log_sigma), log_sigma.new_zeros(tril_shape(n, d, ctx.call[-1]))
    return rebuild_sample(ctx.route, ctx.call, log_sigma, eps), (mu, log_sigma, tril, None, None)


def sample_gradients(
    route: Route, call: SampleCall, d_z: Tensor | None, d_log_q: Tensor | None, log_sigma: Tensor, noise: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients of mu, log_sigma and tril; ``noise`` is what the forward pass left for them."""
    shape, row_offset, dense = call
    if d_z is None:
        return None, density_alone(d_log_q, log_sigma), None
    if d_log_q is None:
        d_log_q = d_z.new_zeros(shape[:-1], dtype=compute_dtype(d_z.dtype))
    saved = (None, noise) if route.impl == "cpp" else (noise, None)
    d_z = d_z.contiguous()
    # Of one sample, d_z is the gradient of mu itself: no memory for a second one.
    several = d_z.numel() != log_sigma.numel()
    d_mu, d_log_sigma, d_tril = BWD.on(route)(d_z, d_log_q.contiguous(), log_sigma, *saved, row_offset, dense, several)
    return d_mu if several else d_z.view(log_sigma.shape), d_log_sigma, d_tril


class _TrilGaussianRsample(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        mu: Tensor,
        log_sigma: Tensor,
        tril: Tensor,
        noise: Tensor,
        call: tuple[tuple[int, ...], int, Route],
    ) -> tuple[Tensor, Tensor]:
        shape, row_offset, route = call
        z, log_q, kept = FWD.on(route)(mu, log_sigma, tril, noise, shape, row_offset, True)
        ctx.save_for_backward(log_sigma, kept if route.impl == "cpp" else noise)
        ctx.call, ctx.route = (shape, row_offset, tril.dim() == 3), route
        keep_none(ctx)
        return z, log_q

    @staticmethod
    @with_reference(_rebuild_sample)
    def backward(ctx: Any, route: Route, d_z: Tensor | None, d_log_q: Tensor | None) -> Any:
        log_sigma, noise = ctx.saved_tensors
        return *sample_gradients(route, ctx.call, d_z, d_log_q, log_sigma, noise), None, None


def check_call(
    mu: Tensor,
    log_sigma: Tensor,
    tril: Tensor,
    sample_shape: Sequence[int],
    eps: Tensor | None,
    generator: torch.Generator | None,
    row_offset: int,
    impl: str,
) -> tuple[Route, Tensor, Tensor, Tensor, bool, tuple[int, ...], Tensor | None, int]:
    """Who draws a sample, whether the factor is packed, and the arguments, checked; the parameters have one batch."""
    names = ("mu", "log_sigma", "tril", "eps")
    route, (mu, log_sigma, tril, eps) = backend.route(
        impl, mu, log_sigma, tril, eps, names=names, eps=eps, floats=3, required=3
    )
    mu, log_sigma, tril, packed = _checks.check_triangular(mu, log_sigma, tril, route.alike)
    sample_shape = _checks.check_sample_shape(sample_shape)
    if sample_shape:
        _checks.check_sample_size((*sample_shape, *mu.shape), sample_shape)
    row_offset = _checks.check_row_offset(row_offset)
    if eps is not None:
        eps = _checks.check_noise(eps, mu, (*sample_shape, *mu.shape), generator)
    if route.impl == "reference":
        rng.check_generator(generator, mu.device)
    elif not route.alike and is_left_to_compiler(impl, route, _layout.product(sample_shape) * mu.numel()):
        route, eps = Route("reference"), draw_eps(mu, sample_shape, generator, row_offset) if eps is None else eps
    return route, mu, log_sigma, tril, packed, sample_shape, eps, row_offset


def lay_out(
    route: Route,
    mu: Tensor,
    log_sigma: Tensor,
    tril: Tensor,
    packed: bool,
    eps: Tensor | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The parameters as kernels take them, and the noise or its seed."""
    d = mu.shape[-1]
    noise = rng.draw_seed_for(route, mu.device, generator) if eps is None else eps.contiguous()
    return _layout.to_rows(mu, d), _layout.to_rows(log_sigma, d), _layout.to_matrices(tril, d, packed), noise


def tril_gaussian_rsample(
    mu: Tensor,
    log_sigma: Tensor,
    tril: Tensor,
    sample_shape: Sequence[int] = (),
    *,
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
    row_offset: int = 0,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""Draws a reparameterised sample of a full-covariance Gaussian together with its log-density.

    .. math::
        L = \operatorname{strictly\,lower}(T) + \operatorname{diag}(\sigma), \quad z = \mu + L\epsilon, \qquad
        \log q(z) = -\sum_i \left(\tfrac12 \epsilon_i^2 + \log\sigma_i + \tfrac12 \log 2\pi\right)

    The covariance is :math:`LL^\top` and :math:`\log|\det L| = \sum_i \log\sigma_i`: nothing is factorised or solved,
    and no D × D temporary is made.

    Args:
        mu: mean, shape ``(*, D)``; float16, bfloat16, float32 or float64.
        log_sigma: natural logarithm of the diagonal of the factor, ``(*, D)``; batches broadcast.
        tril: below the diagonal of the factor: packed row by row, ``(*, D(D-1)/2)``, in the order of
            ``torch.tril_indices(D, D, -1)``, or dense, ``(*, D, D)``. Of a dense one only the strict lower triangle is
            read (the rest may be NaN). For D = 3 a ``tril`` of the shape of ``mu`` is packed.
        sample_shape: shape of the samples drawn for every row; the parameters are not repeated in memory.
        eps: the noise, ``(*sample_shape, *, D)``, instead of drawing it.
        generator: the torch generator that the seed of the noise is drawn from; the device's default if None.
        row_offset: number of the first row within a joint batch, see :func:`diag_gaussian_rsample`.
        impl: ``"auto"``, ``"triton"``, ``"cpp"`` or ``"reference"``, see :mod:`fastvae.backend`.

    Returns:
        ``z``, shape ``(*sample_shape, *, D)``, dtype of ``mu``, and ``log_q``, shape ``(*sample_shape, *)``, float32
        (float64 for float64 inputs).

    Raises:
        TypeError: an argument is no floating-point tensor, or dtypes differ outside autocast.
        ValueError: shapes do not fit, devices differ, or ``eps`` and ``generator`` are both given.
        RuntimeError: ``impl`` cannot run here.

    Note:
        Half-precision inputs accumulate in float32. The noise is that of :func:`diag_gaussian_rsample`: a GPU's
        backward pass draws it again, a CPU's reads what the forward pass kept. The gradient of a dense ``tril`` is zero
        on and above the diagonal. Deterministic given the generator's state. Differentiable any number of times, by
        the reference from the second time on.

    Reference:
        *An Introduction to Variational Autoencoders* (Kingma, Welling, 2019), full-covariance Gaussian posteriors.

    Example:
        >>> mu, log_sigma, tril = torch.zeros(4, 8), torch.zeros(4, 8), torch.zeros(4, 28)
        >>> z, log_q = tril_gaussian_rsample(mu, log_sigma, tril, (3,))
        >>> z.shape, log_q.shape
        (torch.Size([3, 4, 8]), torch.Size([3, 4]))
    """
    route, mu, log_sigma, tril, packed, sample_shape, eps, row_offset = check_call(
        mu, log_sigma, tril, sample_shape, eps, generator, row_offset, impl
    )
    if route.impl == "reference":
        return reference.rsample(mu, log_sigma, tril, packed, sample_shape, eps, generator)
    shape = (*sample_shape, *mu.shape)
    mu, log_sigma, tril, noise = lay_out(route, mu, log_sigma, tril, packed, eps, generator)
    if needs_grad(mu, log_sigma, tril):
        return apply(_TrilGaussianRsample, mu, log_sigma, tril, noise, (shape, row_offset, route))
    return FWD.on(route)(mu, log_sigma, tril, noise, shape, row_offset, False)[:2]
