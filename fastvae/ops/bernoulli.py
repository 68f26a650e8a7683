"""Bernoulli units: a sample and its log-probability in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backend, rng
from ..backend import Route
from ..precision import compute_dtype
from ..reference import bernoulli as reference
from . import _checks, _layout
from ._contracts import Call, check_row_offset
from ._library import Differentiable, apply, define, extension, keep_none, needs_grad, with_reference

# Here and below `noise` is a 0-d int64 seed or the uniform numbers themselves. A pair makes a dimension of 2 in front
# of the sample's shape: kernels see twice as many samples, the second half made of the mirrored numbers.


def _fwd_cpu(
    logits: Tensor, noise: Tensor, shape: Sequence[int], row_offset: int, antithetic: bool
) -> tuple[Tensor, Tensor]:
    x = _layout.to_compute_dtype(logits)
    if noise.dim() > 0:
        noise = _layout.cast(noise, x.dtype)
    b, log_q = extension().bernoulli_fwd(x, noise, shape, row_offset, antithetic)
    return _layout.cast(b, logits.dtype), log_q


def _fwd_triton(
    launcher: Any, logits: Tensor, noise: Tensor, shape: Sequence[int], row_offset: int, antithetic: bool
) -> tuple[Tensor, Tensor]:
    n, d = logits.shape
    if noise.dim() > 0:
        noise = _layout.stack_samples(noise, n, d)
    draws = _layout.count_samples(_layout.product(shape), n, d) // (2 if antithetic else 1)
    b, log_q = launcher(logits, noise, draws, row_offset, antithetic)
    return b.view(shape), log_q.view(shape[:-1])


def _fwd_fake(
    logits: Tensor, noise: Tensor, shape: Sequence[int], row_offset: int, antithetic: bool
) -> tuple[Tensor, Tensor]:
    return logits.new_empty(shape), logits.new_empty(shape[:-1], dtype=compute_dtype(logits.dtype))


def _bwd_cpu(d_log_q: Tensor, b: Tensor, logits: Tensor) -> Tensor:
    x, units = _layout.all_to_compute_dtype((logits, b), logits.dtype)
    return _layout.cast(extension().bernoulli_bwd(d_log_q, units, x), logits.dtype)


def _bwd_triton(launcher: Any, d_log_q: Tensor, b: Tensor, logits: Tensor) -> Tensor:
    b = _layout.stack_samples(b, *logits.shape)
    gradient: Tensor = launcher(d_log_q.view(b.shape[:-1]), b, logits)
    return gradient


def _bwd_fake(d_log_q: Tensor, b: Tensor, logits: Tensor) -> Tensor:
    return logits.new_empty(logits.shape)


def _check_sample(call: Call) -> None:
    shape, noise, d = tuple(call["shape"]), call.get_tensor("noise"), call.sizes["D"]
    draws = shape[1:] if call["antithetic"] else shape
    call.require(d > 0, "logits", "have one unit or more", 0)
    pairs = not call["antithetic"] or shape[:1] == (2,)
    fits = pairs and len(draws) > 0 and draws[-1] == d and min(shape) >= 0
    fits = fits and _layout.product(shape) < _checks.MOST_NUMBERS
    call.require(fits, "shape", f"be (*sample_shape, *batch, {d}), behind a 2 for pairs, and fit into memory", shape)
    call.sizes["S"] = draws[:-1]
    call.samples_of()
    if noise.dim() == 0:
        call.tensor("noise", noise, (), "i")
    else:
        numbers = _layout.product(draws)
        call.require(noise.numel() == numbers, "noise", f"hold {numbers} numbers", tuple(noise.shape))
        call.tensor("noise", noise.detach().view(-1) if noise.is_contiguous() else noise, ("E",), "ca")
    check_row_offset(call)


def _check_gradient(call: Call) -> None:
    call.require(call.sizes["D"] > 0, "logits", "have one unit or more", 0)


FWD = define(
    "bernoulli_fwd(Tensor logits, Tensor noise, SymInt[] shape, SymInt row_offset, bool antithetic)"
    " -> (Tensor b, Tensor log_q)",
    tensors="logits[N,D]r", more=_check_sample,
    module="bernoulli", cpu=_fwd_cpu, fake=_fwd_fake, adapt=_fwd_triton,
)  # fmt: skip
BWD = define(
    "bernoulli_bwd(Tensor d_log_q, Tensor b, Tensor logits) -> Tensor d_logits",
    tensors="logits[N,D]r b[S,D]c d_log_q[S]cw", more=_check_gradient,
    module="bernoulli", cpu=_bwd_cpu, fake=_bwd_fake, adapt=_bwd_triton,
)  # fmt: skip


def _rebuild_sample(ctx: Any) -> Differentiable:
    logits, b = ctx.saved_tensors
    units = _layout.stack_samples(b, *logits.shape).detach()

    def sample(logits: Tensor, *_: None) -> tuple[Tensor, Tensor]:
        return b.detach(), reference.log_prob(logits, units).reshape(b.shape[:-1])

    return sample, (logits, None, None)


class _BernoulliSample(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, noise: Tensor, call: tuple[tuple[int, ...], int, bool, Route]
    ) -> tuple[Tensor, Tensor]:
        shape, row_offset, antithetic, route = call
        b, log_q = FWD.on(route)(logits, noise, shape, row_offset, antithetic)
        ctx.mark_non_differentiable(b)
        ctx.save_for_backward(logits, b)
        ctx.route = route
        keep_none(ctx)
        return b, log_q

    @staticmethod
    @with_reference(_rebuild_sample)
    def backward(ctx: Any, route: Route, d_b: Any, d_log_q: Tensor | None) -> Any:
        if d_log_q is None:
            return None, None, None
        logits, b = ctx.saved_tensors
        # Gradients of sums and means are single numbers expanded.
        return BWD.on(route)(d_log_q.contiguous(), b, logits), None, None


def _check_uniforms(
    uniforms: Tensor, logits: Tensor, shape: tuple[int, ...], generator: torch.Generator | None
) -> Tensor:
    if generator is not None:
        raise ValueError("uniforms and generator exclude each other: uniforms are what generator would draw")
    if not isinstance(uniforms, Tensor):
        raise TypeError(f"uniforms must be a tensor, got {type(uniforms).__name__}")
    if uniforms.dtype not in (logits.dtype, torch.float32):
        raise TypeError(f"uniforms must have the dtype of logits, {logits.dtype}, or float32, got {uniforms.dtype}")
    if uniforms.device != logits.device:
        raise ValueError(f"uniforms must be on the device of logits, {logits.device}; it is on {uniforms.device}")
    if uniforms.shape != shape:
        raise ValueError(f"uniforms must have the shape of a sample, {shape}, got {tuple(uniforms.shape)}")
    return uniforms.detach()


def bernoulli_sample(
    logits: Tensor,
    sample_shape: Sequence[int] = (),
    *,
    antithetic: bool = False,
    uniforms: Tensor | None = None,
    generator: torch.Generator | None = None,
    row_offset: int = 0,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""Draws Bernoulli units together with their log-probability.

    .. math::
        b_i = 1[u_i > \sigma(-l_i)], \quad u_i \sim U(0, 1), \qquad
        \log q(b) = \sum_i \log \sigma\left((2 b_i - 1)\, l_i\right)

    The gradient of the logits is that of log q: :math:`\sum_k w_k (b_k - \sigma(l))` for an upstream gradient w. The
    units have none; see :func:`fastvae.objectives.score_function`.

    Args:
        logits: log-odds of a unit being 1, shape ``(*, D)``; float16, bfloat16, float32 or float64.
        sample_shape: shape of the samples drawn for every row, ``(K,)`` for K samples. ``logits`` are not repeated in
            memory.
        antithetic: whether each draw gives a pair, one sample of u and one of 1 - u.
        uniforms: the uniform numbers, ``(*sample_shape, *, D)``, instead of drawing them.
        generator: the torch generator that the seed of the noise is drawn from; the device's default if None.
        row_offset: number of the first row within a joint batch: processes that hold consecutive shards of a batch,
            and generators in the same state, draw the units of the whole batch.
        impl: ``"auto"``, ``"triton"``, ``"cpp"`` or ``"reference"``, see :mod:`fastvae.backend`.

    Returns:
        ``b``, zeros and ones, shape ``(*sample_shape, *, D)``, dtype of ``logits``, and ``log_q``, nats, shape
        ``(*sample_shape, *)``, float32 (float64 for float64 logits). With ``antithetic`` both have a dimension of 2 in
        front.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: shapes do not fit, devices differ, or ``uniforms`` and ``generator`` are both given.
        RuntimeError: ``impl`` cannot run here.

    Note:
        The kernels' noise is a function of (seed, sample, row, column) only, see :mod:`fastvae.rng`, in steps of
        :math:`2^{-23}` whatever the dtype. The reference draws with :func:`torch.rand`. The backward pass reads the
        units again. Deterministic given the generator's state. Differentiable any number of times, by the reference
        from the second time on.

    Reference:
        *ARM: Augment-REINFORCE-Merge Gradient for Stochastic Binary Networks* (Yin, Zhou, 2019), for the pair.

    Example:
        >>> logits = torch.zeros(4, 8)
        >>> b, log_q = bernoulli_sample(logits, (3,))
        >>> b.shape, log_q.shape, round(log_q[0, 0].item(), 4)
        (torch.Size([3, 4, 8]), torch.Size([3, 4]), -5.5452)
        >>> (b, mirrored), _ = bernoulli_sample(logits, antithetic=True)
        >>> bool((b + mirrored == 1).all())
        True
    """
    names = ("logits", "uniforms")
    route, (logits, uniforms) = backend.route(impl, logits, uniforms, names=names, floats=1, required=1)
    if not route.rows:
        if not route.alike:
            (logits,) = _checks.to_same_kind(logits=logits)
        _checks.check_features(logits=logits)
    sample_shape = _checks.check_sample_shape(sample_shape)
    row_offset = _checks.check_row_offset(row_offset)
    shape = (*sample_shape, *logits.shape)
    if sample_shape:
        _checks.check_sample_size((2, *shape), sample_shape)
    if uniforms is not None:
        uniforms = _check_uniforms(uniforms, logits, shape, generator)
    if route.impl == "reference":
        rng.check_generator(generator, logits.device)
        return reference.sample(logits, sample_shape, antithetic, uniforms, generator)
    noise = rng.draw_seed_for(route, logits.device, generator) if uniforms is None else uniforms.contiguous()
    rows = logits if route.rows else _layout.to_rows(logits, logits.shape[-1])
    if antithetic:
        shape = (2, *shape)
    if needs_grad(rows):
        return apply(_BernoulliSample, rows, noise, (shape, row_offset, bool(antithetic), route))
    b, log_q = FWD.on(route)(rows, noise, shape, row_offset, bool(antithetic))
    return b, log_q
