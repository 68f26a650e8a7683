"""Gate of the channels' halves, with conditioning, in one pass over memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import backend
from ..backend import Route
from ..reference import gated_activation as reference
from . import _checks, _layout
from ._contracts import Call
from ._library import Differentiable, apply, define, extension, needs_grad, with_reference

# The extension's numbers (csrc/base/codes.h).
KIND_IDS = {kind: index for index, kind in enumerate(reference.KINDS)}


def _is_channels_last(x: Tensor) -> bool:
    """Whether images ``(N, C, H, W)``, or a range of their channels, are laid out pixel by pixel."""
    return x.stride(1) == 1 and not x.is_contiguous()


def _format_of(x: Tensor) -> torch.memory_format:
    return torch.channels_last if _is_channels_last(x) else torch.contiguous_format


def _images(x: Tensor, channels: int) -> Tensor:
    """Uninitialised images of ``channels`` channels in the layout of ``x``."""
    n, _, h, w = x.shape
    if _is_channels_last(x):
        return x.new_empty((n, h, w, channels)).permute(0, 3, 1, 2)
    return x.new_empty((n, channels, h, w))


def _fwd_cpu(x: Tensor, condition: Tensor | None, kind: str) -> Tensor:
    y: Tensor = extension().gated_activation_fwd(*_layout.all_to_compute_dtype((x, condition), x.dtype), KIND_IDS[kind])
    return _layout.cast(y, x.dtype)


def _fwd_fake(x: Tensor, condition: Any, kind: Any) -> Tensor:
    return _images(x, x.shape[1] // 2)


def _bwd_cpu(d_y: Tensor, x: Tensor, condition: Tensor | None, kind: str) -> Tensor:
    tensors = _layout.all_to_compute_dtype((d_y, x, condition), x.dtype)
    return _layout.cast(extension().gated_activation_bwd(*tensors, KIND_IDS[kind]), x.dtype)


def _bwd_fake(d_y: Any, x: Tensor, condition: Any, kind: Any) -> Tensor:
    return _images(x, x.shape[1])


def _check_call(call: Call) -> None:
    condition, (n, c, h, w) = call["condition"], call["x"].shape
    call.require(c > 0 and c % 2 == 0, "x", "have an even number of channels", c)
    call.require(call.sizes.get("F", c // 2) == c // 2, "d_y", f"have {c // 2} channels", call.sizes.get("F"))
    if condition is not None:
        fits = condition.dim() == 4 and all(
            own in (1, size) for own, size in zip(condition.shape, (n, c, h, w), strict=True)
        )
        call.require(fits, "condition", f"broadcast to {(n, c, h, w)}", tuple(condition.shape))
        call.tensor("condition", condition, [str(size) for size in condition.shape])


FWD = define(
    "gated_activation_fwd(Tensor x, Tensor? condition, str kind) -> Tensor y",
    tensors="x[N,C,H,W]", choices={"kind": KIND_IDS}, more=_check_call,
    module="gated_activation", cpu=_fwd_cpu, fake=_fwd_fake,
)  # fmt: skip
BWD = define(
    "gated_activation_bwd(Tensor d_y, Tensor x, Tensor? condition, str kind) -> Tensor d_x",
    tensors="x[N,C,H,W] d_y[N,F,H,W]", choices={"kind": KIND_IDS}, more=_check_call,
    module="gated_activation", cpu=_bwd_cpu, fake=_bwd_fake,
)  # fmt: skip


def _rebuild_gate(ctx: Any) -> Differentiable:
    kind = ctx.kind

    def gate(x: Tensor, condition: Tensor | None, *_: None) -> Tensor:
        return reference.gated_activation(x, condition, kind)

    return gate, (*ctx.saved_tensors, None, None)


class _GatedActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, condition: Tensor | None, kind: str, route: Route) -> Tensor:
        ctx.kind, ctx.route = kind, route
        ctx.save_for_backward(x, condition)
        return FWD.on(route)(x, condition, kind)

    @staticmethod
    @with_reference(_rebuild_gate)
    def backward(ctx: Any, route: Route, d_y: Tensor) -> Any:
        x, condition = ctx.saved_tensors
        # Gradients of sums and means are single numbers expanded.
        d_y = d_y.contiguous(memory_format=_format_of(x))
        d_x = BWD.on(route)(d_y, x, condition, ctx.kind)
        d_condition = d_x.sum_to_size(condition.shape) if ctx.needs_input_grad[1] else None
        return d_x if ctx.needs_input_grad[0] else None, d_condition, None, None


def gated_activation(x: Tensor, condition: Tensor | None = None, *, kind: str = "tanh", impl: str = "auto") -> Tensor:
    r"""Gate of the channels' halves, with conditioning.

    .. math::
        y = \tanh(a) \odot \sigma(b) \quad\text{or, linear,}\quad y = a \odot \sigma(b), \qquad
        (a, b) = \text{halves of } x + \text{condition}

    Args:
        x: images, ``(N, 2F, H, W)``, contiguous or channels-last; a is the first F channels.
        condition: what is added to x, one vector for each image, ``(N, 2F)`` or ``(N, 2F, 1, 1)``, or a map
            ``(N, 2F, H, W)``; with 1 in place of N the same for all; None for nothing.
        kind: ``"tanh"`` or ``"linear"``.
        impl: ``"auto"``, ``"triton"``, ``"cpp"`` or ``"reference"``, see :mod:`fastvae.backend`.

    Returns:
        y, ``(N, F, H, W)``, in the dtype of ``x`` and laid out as ``x``.

    Raises:
        TypeError: an argument is no floating-point tensor, or dtypes differ outside autocast.
        ValueError: shapes do not fit, devices differ, or ``kind`` is unknown.
        RuntimeError: ``impl`` cannot run here.

    Note:
        Backward keeps ``x`` and ``condition``, or only their sum where ``condition`` is a map. A number of y depends on
        its own numbers of x and condition and not on its place: single pixels give the same bits as whole images.
        Deterministic. Differentiable any number of times, by the reference from the second time on.

    Reference:
        *Conditional Image Generation with PixelCNN Decoders* (van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves,
        Kavukcuoglu, 2016).

    Example:
        >>> y = gated_activation(torch.zeros(2, 6, 4, 4), torch.ones(2, 6), kind="linear")
        >>> y.shape, round(y[0, 0, 0, 0].item(), 4)
        (torch.Size([2, 3, 4, 4]), 0.7311)
    """
    if kind not in KIND_IDS:
        raise ValueError(f"kind must be one of {', '.join(KIND_IDS)}, got {kind!r}")
    route, (x, condition) = backend.route(impl, x, condition, names=("x", "condition"), required=1)
    if not route.alike and condition is None:
        (x,) = _checks.to_same_kind(x=x)
    elif not route.alike:
        x, condition = _checks.to_same_kind(x=x, condition=condition)
    if x.dim() != 4 or x.shape[1] == 0 or x.shape[1] % 2:
        raise ValueError(f"x must have shape (N, 2F, H, W) with F >= 1, got {tuple(x.shape)}")
    if condition is not None:
        n, c, h, w = x.shape
        # Size by size: a compiler knows no "in" of sizes that it keeps open.
        fits = condition.dim() in (2, 4) and (condition.shape[0] == n or condition.shape[0] == 1)
        fits = fits and condition.shape[1] == c
        if fits and condition.dim() == 4:
            rows, columns = condition.shape[2:]
            fits = (rows == h and columns == w) or (rows == 1 and columns == 1)
        if not fits:
            raise ValueError(
                f"condition must have shape ({n}, {c}), ({n}, {c}, 1, 1) or ({n}, {c}, {h}, {w}), or 1 for {n}, for x "
                f"{tuple(x.shape)}, got {tuple(condition.shape)}"
            )
        if condition.dim() == 2:
            condition = condition[:, :, None, None]
        if condition.shape[0] != n:
            condition = condition.expand(n, *condition.shape[1:])
    if route.impl == "reference":
        return reference.gated_activation(x, condition, kind)
    if needs_grad(x) or (condition is not None and needs_grad(condition)):
        if condition is not None and condition.shape == x.shape:
            # One map is kept for the backward pass then, not two.
            x, condition = x + condition, None
        return apply(_GatedActivation, x, condition, kind, route)
    return FWD.on(route)(x, condition, kind)
