"""Windows on images: a grid of Gaussian filters reads a patch, or writes one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backend
from ..backend import Route
from ..precision import compute_dtype
from ..reference import attention_window as reference
from ..structure.integers import integer, integers
from . import _checks, _layout
from ._contracts import Call
from ._library import Differentiable, apply, define, extension, needs_grad, with_reference

# The numbers of a window: centre on both axes, logarithms of variance, stride and gain.
_NUMBERS = 5


def _forward_cpu(kernel: Any, tensors: Sequence[Tensor | None], *sizes: int) -> Tensor:
    dtype = _first(tensors).dtype
    return _layout.cast(kernel(*_layout.all_to_compute_dtype(tensors, dtype), *sizes), dtype)


def _backward_cpu(
    kernel: Any, d_result: Tensor, tensors: Sequence[Tensor | None], needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    dtype = _first(tensors).dtype
    gradients = kernel(*_layout.all_to_compute_dtype((d_result, *tensors), dtype), needs)
    return tuple([None if g is None else _layout.cast(g, dtype) for g in gradients])


def _first(tensors: Sequence[Tensor | None]) -> Tensor:
    """The image, or the patch."""
    (first, *_) = tensors
    assert first is not None
    return first


def _backward_fake(tensors: Sequence[Tensor | None], needs: Sequence[bool]) -> tuple[Tensor, ...]:
    like = _first(tensors)
    return tuple(
        like.new_empty(t.shape if need and t is not None else (0,)) for t, need in zip(tensors, needs, strict=True)
    )


def _read_cpu(x: Tensor, other: Tensor | None, window: Tensor, points: int) -> Tensor:
    return _forward_cpu(extension().attention_read_fwd, (x, other, window), points)


def _read_fake(x: Tensor, other: Tensor | None, window: Tensor, points: int) -> Tensor:
    return x.new_empty(x.shape[0], 1 if other is None else 2, points, points)


def _read_bwd_cpu(d_patches: Tensor, x: Tensor, other: Tensor | None, window: Tensor, needs: Sequence[bool]) -> Any:
    return _backward_cpu(extension().attention_read_bwd, d_patches, (x, other, window), needs)


def _read_bwd_fake(d_patches: Tensor, x: Tensor, other: Tensor | None, window: Tensor, needs: Sequence[bool]) -> Any:
    return _backward_fake((x, other, window), needs)


def _write_cpu(patch: Tensor, window: Tensor, height: int, width: int) -> Tensor:
    return _forward_cpu(extension().attention_write_fwd, (patch, window), height, width)


def _write_fake(patch: Tensor, window: Tensor, height: int, width: int) -> Tensor:
    return patch.new_empty(patch.shape[0], height, width)


def _write_bwd_cpu(d_image: Tensor, patch: Tensor, window: Tensor, needs: Sequence[bool]) -> Any:
    return _backward_cpu(extension().attention_write_bwd, d_image, (patch, window), needs)


def _write_bwd_fake(d_image: Tensor, patch: Tensor, window: Tensor, needs: Sequence[bool]) -> Any:
    return _backward_fake((patch, window), needs)


def _check_sizes(call: Call) -> None:
    numbers = call.sizes["R"]
    call.require(numbers == _NUMBERS, "window", f"have {_NUMBERS} numbers in a row", numbers)
    for name in ("points", "height", "width"):
        if name in call.arguments:
            number = call[name]
            call.require(1 <= number < _checks.MOST_NUMBERS, name, f"lie in [1, {_checks.MOST_NUMBERS})", number)
    if "x" in call.arguments:
        call.require(call.sizes["H"] > 0 and call.sizes["W"] > 0, "x", "have a pixel or more", tuple(call["x"].shape))
    results = [call[name] for name in ("points", "points", "height", "width") if name in call.arguments]
    fits = 2 * _layout.product(results) * max(call.sizes["M"], 1) < _checks.MOST_NUMBERS
    call.require(fits, "points" if "points" in call.arguments else "height", "leave a result that fits", results)
    points = call.sizes.get("N", 1)
    call.require(points > 0, "patch", "have a point or more", points)
    if "needs" in call.arguments:
        count = 3 if "x" in call.arguments else 2
        call.require(len(call["needs"]) == count, "needs", f"be {count} truth values", call["needs"])


def _check_read_bwd(call: Call) -> None:
    images = 1 if call["other"] is None else 2
    call.require(call.sizes["K"] == images, "d_patches", f"have {images} patches for each window", call.sizes["K"])
    _check_sizes(call)


READ_FWD = define(
    "attention_read_fwd(Tensor x, Tensor? other, Tensor window, SymInt points) -> Tensor patches",
    tensors="x[M,H,W]c other?[M,H,W]c window[M,R]r", more=_check_sizes,
    module="attention_window", cpu=_read_cpu, fake=_read_fake,
)  # fmt: skip
READ_BWD = define(
    "attention_read_bwd(Tensor d_patches, Tensor x, Tensor? other, Tensor window, bool[] needs)"
    " -> (Tensor d_x, Tensor d_other, Tensor d_window)",
    tensors="x[M,H,W]c other?[M,H,W]c window[M,R]r d_patches[M,K,N,N]c", more=_check_read_bwd,
    module="attention_window", cpu=_read_bwd_cpu, fake=_read_bwd_fake,
)  # fmt: skip
WRITE_FWD = define(
    "attention_write_fwd(Tensor patch, Tensor window, SymInt height, SymInt width) -> Tensor image",
    tensors="patch[M,N,N]c window[M,R]r", more=_check_sizes,
    module="attention_window", cpu=_write_cpu, fake=_write_fake,
)  # fmt: skip
WRITE_BWD = define(
    "attention_write_bwd(Tensor d_image, Tensor patch, Tensor window, bool[] needs)"
    " -> (Tensor d_patch, Tensor d_window)",
    tensors="patch[M,N,N]c window[M,R]r d_image[M,H,W]c", more=_check_sizes,
    module="attention_window", cpu=_write_bwd_cpu, fake=_write_bwd_fake,
)  # fmt: skip


# Forward, backward and reference of both halves.
_HALVES: dict[str, tuple[Any, Any, Any]] = {
    "read": (READ_FWD, READ_BWD, reference.read),
    "write": (WRITE_FWD, WRITE_BWD, reference.write),
}


def _rebuild(ctx: Any) -> Differentiable:
    (_, _, function), sizes = _HALVES[ctx.half], ctx.sizes

    def run(_half: None, _sizes: None, _route: None, *tensors: Tensor | None) -> Tensor:
        found: Tensor = function(*tensors, *sizes)
        return found

    return run, (None, None, None, *ctx.saved_tensors)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, half: str, sizes: tuple[int, ...], route: Route, *tensors: Tensor | None) -> Tensor:
        ctx.save_for_backward(*tensors)
        ctx.half, ctx.sizes, ctx.route = half, sizes, route
        found: Tensor = _HALVES[half][0].on(route)(*tensors, *sizes)
        return found

    @staticmethod
    @with_reference(_rebuild)
    def backward(ctx: Any, route: Route, d_result: Tensor) -> Any:
        needs = list(ctx.needs_input_grad[3:])
        gradients = _HALVES[ctx.half][1].on(route)(d_result.contiguous(), *ctx.saved_tensors, needs)
        return None, None, None, *(g if need else None for g, need in zip(gradients, needs, strict=True))


def _check_window(window: Tensor) -> None:
    if window.dim() == 0 or window.shape[-1] != _NUMBERS:
        raise ValueError(f"window must have shape (*, {_NUMBERS}), got {tuple(window.shape)}")


def _check_matrices(name: str, t: Tensor, sizes: str) -> None:
    if t.dim() < 2 or 0 in t.shape[-2:]:
        raise ValueError(f"{name} must have shape (*, {sizes}) with sizes >= 1, got {tuple(t.shape)}")


def _check_result(name: str, given: object, sizes: Sequence[int]) -> None:
    """Raises unless memory can hold a result of these sizes."""
    if not torch.compiler.is_compiling() and _layout.product(sizes) >= _checks.MOST_NUMBERS:
        raise ValueError(f"{name} must leave a result that memory can hold, got {given}")


def _matrices(t: Tensor) -> Tensor:
    """``(*, A, B)`` as a contiguous ``(M, A, B)``."""
    if t.dim() != 3:
        t = t.reshape(_layout.product(t.shape[:-2]), *t.shape[-2:])
    return t.contiguous()


def attention_filters(window: Tensor, points: int, image_size: Sequence[int]) -> tuple[Tensor, Tensor]:
    r"""The Gaussian filters of a window: for each of its rows and columns of points, the weights of the pixels.

    .. math::
        F_X[n, a] \propto \exp\left(-\frac{(a - \mu_X^n)^2}{2 \sigma^2}\right), \qquad
        \mu_X^n = \tfrac{W + 1}{2} (g_X + 1) + \left(n - \tfrac{N + 1}{2}\right) \tfrac{\max(H, W) - 1}{N - 1}\, \delta

    Pixels a and points n are counted from 1, as the paper counts them: at :math:`g_X = 0` the middle of the window is
    that of the image, and at :math:`\delta = 1` it spans the longer side. :math:`F_Y` is made alike of
    :math:`g_Y` and H.

    Args:
        window: :math:`(g_X, g_Y, \log\sigma^2, \log\delta, \log\gamma)`, shape ``(*, 5)``; float16, bfloat16, float32
            or float64. A linear layer gives them. Variances below :math:`e^{-60}` count as that one.
        points: N, points of the window on each side.
        image_size: (H, W) of the images.

    Returns:
        :math:`F_Y`, ``(*, N, H)``, and :math:`F_X`, ``(*, N, W)``, whose rows sum to 1; float32, float64 for float64
        windows.

    Raises:
        TypeError: ``window`` is no floating-point tensor, or a size is no integer.
        ValueError: ``window`` does not hold five numbers in a row, or a size is below 1.

    Note:
        In plain PyTorch, for tests and pictures. :func:`attention_read` and :func:`attention_write` do not need it.

    Reference:
        *DRAW: A Recurrent Neural Network For Image Generation* (Gregor, Danihelka, Graves, Rezende, Wierstra, 2015),
        equations 19 to 26.

    Example:
        >>> filter_y, filter_x = attention_filters(torch.zeros(1, 5), 3, (4, 5))
        >>> filter_y.shape, filter_x.shape, torch.allclose(filter_x.sum(-1), torch.ones(1, 3))
        (torch.Size([1, 3, 4]), torch.Size([1, 3, 5]), True)
    """
    (window,) = _checks.to_same_kind(window=window)
    (window,) = _checks.to_readable(window=window)
    _check_window(window)
    points, (height, width) = integer("points", points, 1), _check_image_size(image_size)
    _check_result("points", points, (*window.shape[:-1], points, max(height, width)))
    filter_y, filter_x, _ = reference.filters(window.to(compute_dtype(window.dtype)), points, height, width)
    return filter_y, filter_x


def _check_image_size(image_size: Any) -> tuple[int, int]:
    if not isinstance(image_size, Sequence) or len(image_size) != 2:
        raise ValueError(f"image_size must be (height, width), got {image_size!r}")
    height, width = integers(1, height=image_size[0], width=image_size[1])
    return height, width


def attention_read(images: Tensor | Sequence[Tensor], window: Tensor, points: int, *, impl: str = "auto") -> Tensor:
    r"""Reads a patch of an image through a grid of Gaussian filters, or of two images through the same grid.

    .. math::
        r = \gamma\, F_Y\, x\, F_X^\top

    :func:`attention_filters` has the filters. One pass over an image reads it, and one pass computes all gradients: no
    filter is in memory longer than its image takes.

    Args:
        images: x, ``(*, H, W)``; or two such tensors of one shape; float16, bfloat16, float32 or float64. Images of
            several channels have their channels among ``*``.
        window: :math:`(g_X, g_Y, \log\sigma^2, \log\delta, \log\gamma)`, ``(*, 5)``. The batches of images and windows
            broadcast.
        points: N, points of the window on each side.
        impl: ``"auto"``, ``"triton"``, ``"cpp"`` or ``"reference"``, see :mod:`fastvae.backend`.

    Returns:
        The patch, ``(*, N, N)``, rows from the top; ``(*, 2, N, N)`` of two images. In the dtype of ``images``.

    Raises:
        TypeError: an argument is no floating-point tensor, dtypes differ outside autocast, or ``points`` is no integer.
        ValueError: shapes do not fit, devices differ, or ``points`` is below 1.
        RuntimeError: ``impl`` cannot run here.

    Note:
        Filters are computed in float32 for half types, also under autocast. Deterministic: no result depends on the
        number of threads. Differentiable any number of times, by the reference from the second time on.

    Reference:
        *DRAW: A Recurrent Neural Network For Image Generation* (Gregor, Danihelka, Graves, Rezende, Wierstra, 2015),
        equation 27.

    Example:
        >>> x = torch.rand(2, 28, 28)
        >>> attention_read((x, x - 1.0), torch.zeros(2, 5), 3).shape
        torch.Size([2, 2, 3, 3])
        >>> sharp = torch.tensor([0.0, 0.0, -60.0, 0.0, 0.0])
        >>> torch.equal(attention_read(x, sharp, 28), x)
        True
    """
    alone = isinstance(images, Tensor) or not isinstance(images, Sequence)
    given: list[Any] = [images] if alone else list(images)
    if not 1 <= len(given) <= 2:
        raise ValueError(f"images must be one tensor or two, got {len(given)}")
    of_images = ["images"] if alone else [f"images[{k}]" for k in range(len(given))]
    names = (*of_images, "window")
    count = len(names)
    route, tensors = backend.route(impl, *given, window, names=names, floats=count, required=count)
    if not route.alike:
        tensors = _checks.to_same_kind(**dict(zip(names, tensors, strict=True)))
    *given, window = tensors
    for name, x in zip(of_images, given, strict=True):
        _check_matrices(name, x, "H, W")
    _check_window(window)
    if given[0].shape[-2:] != given[-1].shape[-2:]:
        raise ValueError(
            f"images[1] must have the height and width of images[0], {tuple(given[0].shape[-2:])}, "
            f"got {tuple(given[1].shape[-2:])}"
        )
    points = integer("points", points, 1)
    trailing = (*[2] * len(given), 1)
    *given, window = _checks.broadcast_batch(trailing, **dict(zip(names, [*given, window], strict=True)))
    batch = window.shape[:-1]
    _check_result("points", points, (*batch, 2, points, points))
    x, other = given[0], given[1] if len(given) > 1 else None
    if route.impl == "reference":
        patches = reference.read(x, other, window, points)
        return patches.squeeze(-3) if alone else patches
    rows = _matrices(x), None if other is None else _matrices(other), _layout.to_rows(window, _NUMBERS)
    if needs_grad(*[t for t in rows if t is not None]):
        patches = apply(_Attention, "read", (points,), route, *rows)
    else:
        patches = READ_FWD.on(route)(*rows, points)
    return patches.view(*batch, points, points) if alone else patches.view(*batch, len(given), points, points)


def attention_write(patch: Tensor, window: Tensor, image_size: Sequence[int], *, impl: str = "auto") -> Tensor:
    r"""Writes a patch into an image of zeros through a grid of Gaussian filters.

    .. math::
        x = \tfrac{1}{\gamma}\, F_Y^\top\, w\, F_X

    :func:`attention_filters` has the filters; :func:`attention_read` is the other way round. Patch and image change
    roles in the gradients: that of the patch is read from the image's.

    Args:
        patch: w, ``(*, N, N)``, rows from the top; float16, bfloat16, float32 or float64.
        window: :math:`(g_X, g_Y, \log\sigma^2, \log\delta, \log\gamma)`, ``(*, 5)``. The batches of patches and windows
            broadcast.
        image_size: (H, W) of the image.
        impl: ``"auto"``, ``"triton"``, ``"cpp"`` or ``"reference"``, see :mod:`fastvae.backend`.

    Returns:
        The image, ``(*, H, W)``, in the dtype of ``patch``.

    Raises:
        TypeError: an argument is no floating-point tensor, dtypes differ outside autocast, or a size is no integer.
        ValueError: shapes do not fit, devices differ, or a size is below 1.
        RuntimeError: ``impl`` cannot run here.

    Note:
        Dtypes, determinism and derivatives as of :func:`attention_read`.

    Reference:
        *DRAW: A Recurrent Neural Network For Image Generation* (Gregor, Danihelka, Graves, Rezende, Wierstra, 2015),
        equation 29.

    Example:
        >>> attention_write(torch.ones(2, 5, 5), torch.zeros(2, 5), (28, 28)).shape
        torch.Size([2, 28, 28])
    """
    route, (patch, window) = backend.route(impl, patch, window, names=("patch", "window"), floats=2, required=2)
    if not route.alike:
        patch, window = _checks.to_same_kind(patch=patch, window=window)
    _check_matrices("patch", patch, "N, N")
    if patch.shape[-1] != patch.shape[-2]:
        raise ValueError(f"patch must have as many rows as columns, got {tuple(patch.shape)}")
    _check_window(window)
    size = _check_image_size(image_size)
    patch, window = _checks.broadcast_batch((2, 1), patch=patch, window=window)
    batch = window.shape[:-1]
    _check_result("image_size", tuple(image_size), (*batch, *size))
    if route.impl == "reference":
        return reference.write(patch, window, *size)
    rows = _matrices(patch), _layout.to_rows(window, _NUMBERS)
    if needs_grad(*rows):
        image = apply(_Attention, "write", size, route, *rows)
    else:
        image = WRITE_FWD.on(route)(*rows, *size)
    return image.view(*batch, *size)
