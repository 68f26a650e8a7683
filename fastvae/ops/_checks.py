"""What users pass to ops: tensors are checked, and brought to one dtype and one batch shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backend
from ..precision import DTYPES, is_autocasting, to_autocast
from ..structure.integers import integer
from ._layout import product

# More numbers than any memory holds. Their bytes still fit into 64 bits.
MOST_NUMBERS = 1 << 59


def to_same_kind(**tensors: Tensor) -> list[Tensor]:
    """The tensors, all floating-point, of one dtype and on one device.

    Under autocast, where layers hand out mixed dtypes by design, they are promoted to the widest.
    """
    (first_name, first), *others = tensors.items()
    for name, t in tensors.items():
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(t).__name__}")
        if t.dtype not in DTYPES:
            raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {t.dtype}")
    for name, t in others:
        if t.device != first.device:
            raise ValueError(f"{name} must be on the device of {first_name}, {first.device}; it is on {t.device}")
    different = [(name, t) for name, t in others if t.dtype is not first.dtype]
    if not different:
        return list(tensors.values())
    if not is_autocasting(first.device.type):
        name, t = different[0]
        raise TypeError(f"{name} must have the dtype of {first_name}, {first.dtype}, got {t.dtype}")
    widest = first.dtype
    for _, t in others:
        widest = torch.promote_types(widest, t.dtype)
    return [t.to(widest) for t in tensors.values()]


def to_readable(**tensors: Any) -> list[Any]:
    """The tensors in a form that PyTorch's operators can read, for functions without kernels.

    Raises:
        TypeError: a tensor is sparse or nested.
        RuntimeError: its storage has been freed.
    """
    return [backend.as_plain(t, name) if isinstance(t, Tensor) else t for name, t in tensors.items()]


def to_kind_of_products(
    x: Tensor, weight: Tensor, *, alike: bool, name: str = "x", **optional: Tensor | None
) -> tuple[Any, ...]:
    """As :func:`to_same_kind`, for ops that multiply matrices: under autocast in its dtype, as ``nn.Linear``.

    None stays None. ``alike`` says that all have one dtype and one device.
    """
    under_autocast = torch._C._is_any_autocast_enabled()
    if alike and not under_autocast:
        return (x, weight, *optional.values())
    named = {name: x, "weight": weight}
    for key, t in optional.items():
        if t is not None:
            named[key] = t
    if under_autocast and isinstance(x, Tensor) and is_autocasting(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        named = {name: to_autocast(t, dtype) for name, t in named.items()}
    found = dict(zip(named, to_same_kind(**named), strict=True))
    return (found[name], found["weight"], *[found.get(name) for name in optional])


def to_one_kind(named: dict[str, Tensor | None], required: int) -> list[Any]:
    """The tensors of one dtype, autocast's where it is on; None, which the first ``required`` are not, stays None."""
    found = {name: t for i, (name, t) in enumerate(named.items()) if t is not None or i < required}
    first = next(iter(found.values()))
    if isinstance(first, Tensor) and is_autocasting(first.device.type):
        dtype = torch.get_autocast_dtype(first.device.type)
        found = {name: to_autocast(t, dtype) for name, t in found.items()}
    cast = dict(zip(found, to_same_kind(**found), strict=True))  # type: ignore[arg-type]
    return [cast.get(name) for name in named]


def check_features(**tensors: Tensor) -> None:
    """Raises unless all end in the same number, at least one, of features."""
    (first_name, first), *others = tensors.items()
    for name, t in tensors.items():
        if t.dim() == 0 or t.shape[-1] == 0:
            raise ValueError(f"{name} must have shape (*, D) with D >= 1, got {tuple(t.shape)}")
    for name, t in others:
        if t.shape[-1] != first.shape[-1]:
            raise ValueError(
                f"{name} must have as many features as {first_name}, {first.shape[-1]}, got {tuple(t.shape)}"
            )


def broadcast_batch(trailing: Sequence[int], **tensors: Tensor) -> list[Tensor]:
    """The tensors expanded to one batch shape; ``trailing`` counts each one's dimensions after the batch."""
    batches = [t.shape[: t.dim() - n] for t, n in zip(tensors.values(), trailing, strict=True)]
    if all(batch == batches[0] for batch in batches[1:]):
        return list(tensors.values())
    try:
        batch = torch.broadcast_shapes(*batches)
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items())
        raise ValueError(f"the batch shapes of {', '.join(tensors)} must broadcast, got {shapes}") from None
    return [
        t if own == batch else t.expand(*batch, *t.shape[t.dim() - n :])
        for t, n, own in zip(tensors.values(), trailing, batches, strict=True)
    ]


def check_gaussian(mu: Tensor, log_sigma: Tensor, alike: bool = False) -> list[Tensor]:
    """Both, expanded to one shape; ``alike`` says that they have one dtype and one device."""
    if not alike:
        mu, log_sigma = to_same_kind(mu=mu, log_sigma=log_sigma)
    elif (shape := mu.shape) == log_sigma.shape and shape and shape[-1] > 0:
        # The usual call, recognised at once: on small models the checks below would be a sixth of its time.
        return [mu, log_sigma]
    check_features(mu=mu, log_sigma=log_sigma)
    return broadcast_batch((1, 1), mu=mu, log_sigma=log_sigma)


def is_packed(mu: Tensor, tril: Tensor) -> bool:
    """Whether ``tril`` is packed ``(*, D(D-1)/2)``; dense ``(*, D, D)`` otherwise.

    Only for D = 3 a shape, one ending in (3, 3), can be read both ways. It is packed where it is the shape of ``mu``,
    one triangle for every row, and dense otherwise.
    """
    features = mu.shape[-1]
    packed_size = features * (features - 1) // 2
    if isinstance(tril, Tensor) and tril.dim() >= 1:
        # The last size alone tells the layouts apart but for D = 3: the one before may be a batch, on which a
        # compiler's graph must not depend.
        may_be_packed, may_be_dense = tril.shape[-1] == packed_size, tril.shape[-1] == features and tril.dim() >= 2
        if may_be_packed and may_be_dense and tril.shape == mu.shape:
            return True
        if may_be_dense and tril.shape[-2] == features:
            return False
        if may_be_packed:
            return True
    shape = tuple(tril.shape) if isinstance(tril, Tensor) else type(tril).__name__
    raise ValueError(
        f"tril must have shape (*, {packed_size}) (packed, D(D-1)/2 for D = {features}) or "
        f"(*, {features}, {features}) (dense), got {shape}"
    )


def check_triangular(
    mu: Tensor, log_sigma: Tensor, tril: Tensor, alike: bool = False
) -> tuple[Tensor, Tensor, Tensor, bool]:
    """All three, expanded to one batch shape, and whether ``tril`` is packed; ``alike`` as :func:`check_gaussian`."""
    if not alike:
        mu, log_sigma, tril = to_same_kind(mu=mu, log_sigma=log_sigma, tril=tril)
    elif len(shape := mu.shape) == 2 and shape == log_sigma.shape and shape[1] > 0:
        # The usual calls, recognised at once.
        n, d = shape
        if (of_tril := tril.shape) == (n, d * (d - 1) // 2):
            return mu, log_sigma, tril, True
        if of_tril == (n, d, d):
            return mu, log_sigma, tril, False
    check_features(mu=mu, log_sigma=log_sigma)
    packed = is_packed(mu, tril)
    mu, log_sigma, tril = broadcast_batch((1, 1, 1 if packed else 2), mu=mu, log_sigma=log_sigma, tril=tril)
    return mu, log_sigma, tril, packed


def is_by_dimension(kl: str) -> bool:
    """Whether a divergence is wanted for each dimension."""
    if kl not in ("sum", "dimensions"):
        raise ValueError(f"kl must be 'sum' or 'dimensions', got {kl!r}")
    return kl == "dimensions"


def check_sample_shape(sample_shape: Sequence[int]) -> tuple[int, ...]:
    if sample_shape == ():
        return ()
    if not isinstance(sample_shape, Sequence):
        kind = type(sample_shape).__name__
        raise TypeError(f"sample_shape must be a sequence of sizes such as ({sample_shape},), got an {kind}")
    shape = tuple(integer(f"sample_shape[{i}]", size) for i, size in enumerate(sample_shape))
    if any(size < 0 for size in shape):
        raise ValueError(f"sample_shape must hold sizes >= 0, got {shape}")
    return shape


def check_sample_size(shape: tuple[int, ...], sample_shape: tuple[int, ...]) -> None:
    """Raises unless memory can hold a sample of ``shape``."""
    if not torch.compiler.is_compiling() and product(shape) >= MOST_NUMBERS:
        raise ValueError(
            f"sample_shape must leave a sample that memory can hold, got {sample_shape} for one of {shape}"
        )


def check_noise(
    eps: Tensor, mu: Tensor, shape: tuple[int, ...], generator: torch.Generator | None, name: str = "mu"
) -> Tensor:
    """``eps``, checked; half-precision parameters may come with float32 noise. Errors call ``mu`` by ``name``."""
    if generator is not None:
        raise ValueError("eps and generator exclude each other: eps is the noise that generator would draw")
    if not isinstance(eps, Tensor):
        raise TypeError(f"eps must be a tensor, got {type(eps).__name__}")
    if eps.dtype not in (mu.dtype, torch.float32):
        raise TypeError(f"eps must have the dtype of {name}, {mu.dtype}, or float32, got {eps.dtype}")
    if eps.device != mu.device:
        raise ValueError(f"eps must be on the device of {name}, {mu.device}; it is on {eps.device}")
    if eps.shape != shape:
        raise ValueError(f"eps must have the shape of the sample, {shape}, got {tuple(eps.shape)}")
    return eps


def check_log_sigma_bounds(bounds: Sequence[float]) -> tuple[float, float]:
    """The smallest and the largest log-sigma."""
    try:
        lower, upper = (float(bound) for bound in bounds)
    except (TypeError, ValueError):
        raise ValueError(f"log_sigma_bounds must be a pair of numbers or None, got {bounds!r}") from None
    if not lower < upper:
        raise ValueError(f"log_sigma_bounds must be increasing, got {bounds!r}")
    return lower, upper


def check_row_offset(row_offset: int) -> int:
    row_offset = integer("row_offset", row_offset, 0)
    if row_offset >= MOST_NUMBERS:
        raise ValueError(f"row_offset must be < {MOST_NUMBERS}, got {row_offset}")
    return row_offset


def align_points(z: Tensor, parameters: Sequence[Tensor], trailing: Sequence[int]) -> list[Tensor]:
    """``z`` and the parameters brought to ``z (*sample_shape, *batch, D)``, parameters ``(*batch, ...)``."""
    check_features(mu=parameters[0], z=z)
    batch = parameters[0].shape[:-1]
    points = z.shape[:-1]
    if points == batch:
        return [z, *parameters]
    try:
        joint = torch.broadcast_shapes(points, batch)
    except RuntimeError:
        raise ValueError(
            f"z must have shape (*sample_shape, *, D) for parameters of shape (*, D) = "
            f"{tuple(parameters[0].shape)}, got {tuple(z.shape)}"
        ) from None
    # Leading dimensions of z that the parameters lack are samples; the others become the parameters' batch.
    batch = joint[len(joint) - len(batch) :]
    expanded = [p.expand(*batch, *p.shape[p.dim() - n :]) for p, n in zip(parameters, trailing, strict=True)]
    return [z.expand(*joint, z.shape[-1]), *expanded]


def check_data(x: Any, pixels: int, **point: Tensor) -> None:
    """Raises unless ``x`` has a value for each row of a decoder's last weight; ``point`` is its input, by its name."""
    ((name, h),) = point.items()
    if not isinstance(x, Tensor) or x.is_complex():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a bool, integer or floating-point tensor, got {kind}")
    if x.device != h.device:
        raise ValueError(f"x must be on the device of {name}, {h.device}; it is on {x.device}")
    if x.dim() == 0 or x.shape[-1] != pixels:
        raise ValueError(f"x must have shape (*, {pixels}), one value for each row of weight, got {tuple(x.shape)}")


def align_data(x: Tensor, **point: Tensor) -> tuple[Tensor, int]:
    """The data points as a matrix, and how many rows of ``point`` follow each other for one of them."""
    ((name, h),) = point.items()
    batch = list(h.shape[:-1])
    if x.dim() >= 1 and x.dim() <= h.dim():
        own = [1] * (h.dim() - x.dim()) + list(x.shape[:-1])
        if all(size == 1 or size == wanted for size, wanted in zip(own, batch, strict=True)):
            first, last = 0, len(own)
            while first < last and own[first] == 1:
                first += 1
            while last > first and own[last - 1] == 1:
                last -= 1
            inner = (product(batch[last:]) if first < last else 1) or 1
            points = x.reshape(*own[first:last], x.shape[-1]).expand(*batch[first:last], x.shape[-1])
            return points.reshape(-1, x.shape[-1]), inner
    wanted = tuple(h.shape[:-1])
    raise ValueError(
        f"x must have shape (*, P) whose batch broadcasts to that of {name}, {wanted}, got {tuple(x.shape)}"
    )
