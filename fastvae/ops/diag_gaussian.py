"""Diagonal Gaussian: reparameterised sample and its log-density in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backend, rng
from ..backend import Route
from ..precision import compute_dtype
from ..reference import diag_gaussian as reference
from . import _checks, _layout
from ._contracts import check_sample, check_sample_gradient
from ._library import Differentiable, apply, define, extension, keep_none, needs_grad, with_reference
from ._small import draw_eps, is_left_to_compiler

# Here and below `noise` is a 0-d int64 seed or the normals themselves. Samples keep their own shape, (*sample_shape,
# *batch, D), through the op: a view taken behind it would be one more node of autograd's graph.
#
# Backward reads `kept`: sigma eps on a CPU, where drawing the noise again would cost more than reading it; empty on a
# GPU, where reading would cost more.


def _fwd_cpu(
    mu: Tensor, log_sigma: Tensor, noise: Tensor, shape: Sequence[int], row_offset: int, keep: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    draw = extension().diag_gaussian_fwd
    if noise.dim() > 0:
        noise = _layout.cast(noise, compute_dtype(mu.dtype))
    if _layout.is_compute_dtype(mu.dtype):
        drawn: tuple[Tensor, Tensor, Tensor | None] = draw(mu, log_sigma, noise, shape, row_offset, keep)
        return drawn
    x, log_s = _layout.all_to_compute_dtype((mu, log_sigma), mu.dtype)
    z, log_q, kept = draw(x, log_s, noise, shape, row_offset, keep)
    return _layout.cast(z, mu.dtype), log_q, kept


def _fwd_triton(
    launcher: Any, mu: Tensor, log_sigma: Tensor, noise: Tensor, shape: Sequence[int], row_offset: int, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    n, d = mu.shape
    if noise.dim() > 0:
        noise = _layout.stack_samples(noise, n, d)
    samples = _layout.count_samples(_layout.product(shape), n, d)
    z, log_q = launcher(mu, log_sigma, noise, samples, row_offset)
    return z.view(shape), log_q.view(shape[:-1]), mu.new_empty(0)


def _fwd_fake(
    mu: Tensor, log_sigma: Tensor, noise: Tensor, shape: Sequence[int], row_offset: int, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    log_q = mu.new_empty(shape[:-1], dtype=compute_dtype(mu.dtype))
    kept = log_q.new_empty(shape) if keep and mu.device.type == "cpu" else mu.new_empty(0)
    return mu.new_empty(shape), log_q, kept


def _bwd_cpu(d_z: Tensor, d_log_q: Tensor, log_sigma: Any, noise: Any, kept: Tensor, n: int, row_offset: int) -> Tensor:
    g = _layout.to_compute_dtype(d_z)
    d_log_sigma: Tensor = extension().diag_gaussian_bwd(g, d_log_q, kept, n, g.shape[-1], False)[1]
    return _layout.cast(d_log_sigma, d_z.dtype)


def _bwd_samples_cpu(
    d_z: Tensor, d_log_q: Tensor, log_sigma: Any, noise: Any, kept: Tensor, n: int, row_offset: int
) -> tuple[Tensor, Tensor]:
    g = _layout.to_compute_dtype(d_z)
    d_mu, d_log_sigma = extension().diag_gaussian_bwd(g, d_log_q, kept, n, g.shape[-1], True)
    return _layout.cast(d_mu, d_z.dtype), _layout.cast(d_log_sigma, d_z.dtype)


def _bwd_triton(
    launcher: Any, d_z: Tensor, d_log_q: Tensor, log_sigma: Tensor, noise: Tensor, kept: Any, n: int, row_offset: int
) -> Any:
    d = d_z.shape[-1]
    d_z = _layout.stack_samples(d_z, n, d)
    if noise.dim() > 0:
        noise = _layout.stack_samples(noise, n, d)
    return launcher(d_z, d_log_q.view(d_z.shape[:-1]), log_sigma, noise, row_offset)


def _bwd_fake(d_z: Tensor, d_log_q: Tensor, log_sigma: Any, noise: Any, kept: Any, n: int, row_offset: int) -> Tensor:
    return d_z.new_empty((n, d_z.shape[-1]))


def _bwd_samples_fake(*args: Any) -> tuple[Tensor, Tensor]:
    return _bwd_fake(*args), _bwd_fake(*args)


FWD = define(
    "diag_gaussian_fwd(Tensor mu, Tensor log_sigma, Tensor noise, SymInt[] shape, SymInt row_offset, bool keep)"
    " -> (Tensor z, Tensor log_q, Tensor kept)",
    tensors="mu[N,D]r log_sigma[N,D]r", more=check_sample,
    module="diag_gaussian", cpu=_fwd_cpu, fake=_fwd_fake, adapt=_fwd_triton,
)  # fmt: skip
BWD = define(
    "diag_gaussian_bwd(Tensor d_z, Tensor d_log_q, Tensor? log_sigma, Tensor? noise, Tensor? kept, SymInt n,"
    " SymInt row_offset) -> Tensor d_log_sigma",
    tensors="d_z[S,D]c d_log_q[S]cw log_sigma?[N,D]r kept?[S,D]cw", more=check_sample_gradient,
    module="diag_gaussian", cpu=_bwd_cpu, fake=_bwd_fake, adapt=_bwd_triton,
)  # fmt: skip
BWD_SAMPLES = define(
    "diag_gaussian_bwd_samples(Tensor d_z, Tensor d_log_q, Tensor? log_sigma, Tensor? noise, Tensor? kept, SymInt n,"
    " SymInt row_offset) -> (Tensor d_mu, Tensor d_log_sigma)",
    tensors="d_z[S,D]c d_log_q[S]cw log_sigma?[N,D]r kept?[S,D]cw", more=check_sample_gradient,
    module="diag_gaussian", cpu=_bwd_samples_cpu, fake=_bwd_samples_fake, adapt=_bwd_triton,
)  # fmt: skip


SampleCall = tuple[tuple[int, ...], int, Route]


def rebuild_sample(call: SampleCall, log_sigma: Tensor, saved: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
    """The sample as a function of its parameters, with the noise as it was drawn."""
    shape, row_offset, route = call
    wide = compute_dtype(log_sigma.dtype)
    n, d = log_sigma.shape
    stacked = (_layout.count_samples(_layout.product(shape), n, d), n, d)
    if route.impl == "cpp":
        moved = saved.view(stacked)
    else:
        zero = torch.zeros(n, d, dtype=wide, device=log_sigma.device)
        eps = FWD.on(backend.route_of(route.impl, zero))(zero, zero, saved, shape, row_offset, False)[0]
        moved = log_sigma.detach().to(wide).exp() * eps.view(stacked)

    def sample(mu: Tensor, log_sigma: Tensor, *_: None) -> tuple[Tensor, Tensor]:
        wide_log_sigma = log_sigma.to(wide)
        # sigma eps with the derivatives of sigma: no division by a sigma that may be 0.
        z = mu.to(wide) + (wide_log_sigma - wide_log_sigma.detach()).exp() * moved
        log_q = (-wide_log_sigma.sum(-1)).expand(stacked[:-1])
        return z.to(mu.dtype).reshape(shape), log_q.reshape(shape[:-1])

    return sample


def _rebuild_sample(ctx: Any) -> Differentiable:
    log_sigma, saved = ctx.saved_tensors
    # mu moves the sample and nothing else: gradients do not depend on its value.
    return rebuild_sample(ctx.call, log_sigma, saved), (torch.zeros_like(log_sigma), log_sigma, None, None)


def density_alone(d_log_q: Tensor | None, log_sigma: Tensor) -> Tensor | None:
    """The gradient of log_sigma where only the log-density of a sample is used: the sample does not matter then."""
    if d_log_q is None:
        return None
    n = log_sigma.shape[0]
    per_row = d_log_q.reshape(_layout.count_samples(d_log_q.numel(), n, 1), n).sum(0)
    return -per_row[:, None].to(log_sigma.dtype).expand(log_sigma.shape)


def sample_gradients(
    route: Route, call: SampleCall, d_z: Tensor | None, d_log_q: Tensor | None, log_sigma: Tensor, noise: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of mu and log_sigma; ``noise`` is what the forward pass left for them."""
    (shape, row_offset, _), n = call, log_sigma.shape[0]
    if d_z is None:
        return None, density_alone(d_log_q, log_sigma)
    if d_log_q is None:
        d_log_q = d_z.new_zeros(shape[:-1], dtype=compute_dtype(d_z.dtype))
    saved = (None, None, noise) if route.impl == "cpp" else (log_sigma, noise, None)
    d_z, d_log_q = d_z.contiguous(), d_log_q.contiguous()
    d = d_z.shape[-1]
    if d_z.numel() == n * d:
        # With one sample d_mu is d_z itself: no kernel writes it.
        d_mu = d_z if d_z.dim() == 2 else d_z.view(n, d)
        return d_mu, BWD.on(route)(d_z, d_log_q, *saved, n, row_offset)
    gradients: tuple[Tensor, Tensor] = BWD_SAMPLES.on(route)(d_z, d_log_q, *saved, n, row_offset)
    return gradients


def _gradients_at_once(ctx: Any, d_z: Tensor | None, d_log_q: Tensor | None) -> Any:
    d_log_sigma = backend._C.diag_gaussian_bwd_at_once(d_z, d_log_q, ctx)
    return None if d_log_sigma is None else (d_z, d_log_sigma, None, None)


class _DiagGaussianRsample(torch.autograd.Function):
    # Every argument costs a microsecond of autograd's.
    @staticmethod
    def forward(ctx: Any, mu: Tensor, log_sigma: Tensor, noise: Tensor, call: SampleCall) -> tuple[Tensor, Tensor]:
        shape, row_offset, route = call
        z, log_q, kept = FWD.on(route)(mu, log_sigma, noise, shape, row_offset, True)
        ctx.save_for_backward(log_sigma, kept if route.impl == "cpp" else noise)
        ctx.call, ctx.route = call, route
        keep_none(ctx)
        return z, log_q

    @staticmethod
    @with_reference(_rebuild_sample, _gradients_at_once)
    def backward(ctx: Any, route: Route, d_z: Tensor | None, d_log_q: Tensor | None) -> Any:
        log_sigma, noise = ctx.saved_tensors
        return *sample_gradients(route, ctx.call, d_z, d_log_q, log_sigma, noise), None, None


def check_call(
    mu: Tensor,
    log_sigma: Tensor,
    sample_shape: Sequence[int],
    eps: Tensor | None,
    generator: torch.Generator | None,
    row_offset: int,
    impl: str,
) -> tuple[Route, Tensor, Tensor, tuple[int, ...], Tensor | None, int]:
    """Who draws a sample, and the arguments, checked; the parameters have one shape."""
    names = ("mu", "log_sigma", "eps")
    route, (mu, log_sigma, eps) = backend.route(impl, mu, log_sigma, eps, names=names, eps=eps, floats=2, required=2)
    if not route.rows:
        mu, log_sigma = _checks.check_gaussian(mu, log_sigma, route.alike)
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
    return route, mu, log_sigma, sample_shape, eps, row_offset


def lay_out(
    route: Route, mu: Tensor, log_sigma: Tensor, eps: Tensor | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Both parameters as kernels take them, and the noise or its seed."""
    noise = rng.draw_seed_for(route, mu.device, generator) if eps is None else eps.contiguous()
    if route.rows:
        return mu, log_sigma, noise
    d = mu.shape[-1]
    return _layout.to_rows(mu, d), _layout.to_rows(log_sigma, d), noise


def diag_gaussian_rsample(
    mu: Tensor,
    log_sigma: Tensor,
    sample_shape: Sequence[int] = (),
    *,
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
    row_offset: int = 0,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""Draws a reparameterised sample of a diagonal Gaussian together with its log-density.

    .. math::
        z = \mu + \sigma \odot \epsilon, \quad \epsilon \sim N(0, I), \qquad
        \log q(z) = -\sum_i \left(\tfrac12 \epsilon_i^2 + \log\sigma_i + \tfrac12 \log 2\pi\right)

    Args:
        mu: mean, shape ``(*, D)``; float16, bfloat16, float32 or float64.
        log_sigma: natural logarithm of the standard deviation, ``(*, D)``; batches broadcast.
        sample_shape: shape of the samples drawn for every row, ``(K,)`` for K importance samples. ``mu`` and
            ``log_sigma`` are not repeated in memory.
        eps: the noise, ``(*sample_shape, *, D)``, instead of drawing it.
        generator: the torch generator that the seed of the noise is drawn from; the device's default if None.
        row_offset: number of the first row within a joint batch: processes that hold consecutive shards of a batch,
            and generators in the same state, draw the noise of the whole batch.
        impl: ``"auto"``, ``"triton"``, ``"cpp"`` or ``"reference"``, see :mod:`fastvae.backend`.

    Returns:
        ``z``, shape ``(*sample_shape, *, D)``, dtype of ``mu``, and ``log_q``, shape ``(*sample_shape, *)``, float32
        (float64 for float64 inputs).

    Raises:
        TypeError: an argument is no floating-point tensor, or dtypes differ outside autocast.
        ValueError: shapes do not fit, devices differ, or ``eps`` and ``generator`` are both given.
        RuntimeError: ``impl`` cannot run here.

    Note:
        The kernels' noise is a function of (seed, sample, row, column) only, in float32 whatever the inputs' dtype
        (see :mod:`fastvae.rng`). A GPU's backward pass draws it again instead of storing it; a CPU's reads
        :math:`\sigma \epsilon`, which the forward pass keeps. The reference draws with :func:`torch.randn`.
        Deterministic given the generator's state. Differentiable any number of times, by the reference from the second
        time on.

    Reference:
        *Auto-Encoding Variational Bayes* (Kingma, Welling, 2013).

    Example:
        >>> mu, log_sigma = torch.zeros(4, 8), torch.zeros(4, 8)
        >>> z, log_q = diag_gaussian_rsample(mu, log_sigma, (3,))
        >>> z.shape, log_q.shape
        (torch.Size([3, 4, 8]), torch.Size([3, 4]))
    """
    route, mu, log_sigma, sample_shape, eps, row_offset = check_call(
        mu, log_sigma, sample_shape, eps, generator, row_offset, impl
    )
    if route.impl == "reference":
        return reference.rsample(mu, log_sigma, sample_shape, eps, generator)
    shape = (*sample_shape, *mu.shape)
    mu, log_sigma, noise = lay_out(route, mu, log_sigma, eps, generator)
    if needs_grad(mu, log_sigma):
        return apply(_DiagGaussianRsample, mu, log_sigma, noise, (shape, row_offset, route))
    return FWD.on(route)(mu, log_sigma, noise, shape, row_offset, False)[:2]
