"""A decoder's tensors on their way to the ops that differentiate its likelihood to its input."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backend
from ..backend import Route
from ..precision import compute_dtype
from ..reference.latent_gradient import LIKELIHOODS
from ..structure import ACTIVATION_NAMES
from . import _checks, _layout
from ._contracts import Call
from ._layers import ACTIVATION_IDS, activation_of
from ._library import extension

# The extension's numbers (csrc/base/codes.h).
LIKELIHOOD_IDS = {name: index for index, name in enumerate(LIKELIHOODS)}
# `layers`: the weights, then the biases that `has_bias` announces. Row m of z belongs to row m // inner % N of x.
ARGUMENTS = "Tensor[] layers, bool[] has_bias, Tensor x, SymInt inner, str activation, str likelihood"
CHOICES: dict[str, Collection[str]] = {"activation": ACTIVATION_NAMES, "likelihood": LIKELIHOODS}


def check_call(call: Call) -> None:
    layers, has_bias = list(call["layers"]), list(call["has_bias"])
    call.require(len(has_bias) >= 1, "has_bias", "be one or more truth values", has_bias)
    wanted = len(has_bias) + sum(has_bias)
    call.require(len(layers) == wanted, "layers", f"be {wanted} tensors", len(layers))
    sizes = ["D", *(f"H{i}" for i in range(1, len(has_bias))), "P"]
    for i, weight in enumerate(layers[: len(has_bias)]):
        call.tensor(f"layers[{i}]", weight, (sizes[i + 1], sizes[i]), "r")
    with_bias = [size for size, there in zip(sizes[1:], has_bias, strict=True) if there]
    for i, (bias, size) in enumerate(zip(layers[len(has_bias) :], with_bias, strict=True), len(has_bias)):
        call.tensor(f"layers[{i}]", bias, (size,), "c")
    for size in sizes:
        call.require(call.sizes[size] >= 1, "layers", "have one unit or more each", 0)
    inner, rows, points = call["inner"], call.sizes["M"], call.sizes["N"]
    call.require(inner >= 1, "inner", "be >= 1", inner)
    whole = rows % (points * inner) == 0 if points else rows == 0
    call.require(whole, "z", f"have a multiple of {points} x {inner} rows", rows)


class Decoder(NamedTuple):
    """What a call needs besides tensors."""

    has_bias: tuple[bool, ...]
    inner: int
    activation: str
    likelihood: str
    route: Route

    def split(self, layers: Sequence[Any]) -> tuple[Sequence[Any], list[Any]]:
        """Weights and biases; None for an absent bias."""
        count = len(self.has_bias)
        biases = iter(layers[count:])
        return layers[:count], [next(biases) if there else None for there in self.has_bias]

    def arguments(self, layers: Sequence[Tensor], x: Tensor) -> tuple[Any, ...]:
        """The arguments of the ops behind their points."""
        return layers, self.has_bias, x, self.inner, self.activation, self.likelihood

    def of_reference(self, layers: Sequence[Tensor], x: Tensor) -> tuple[Any, ...]:
        """The same of the reference's functions."""
        return *self.split(layers), x, self.inner, self.activation, self.likelihood


# The call, its points, its data, and the tensors of its layers.
Prepared = tuple[Decoder, Sequence[Tensor], Tensor, Sequence[Tensor]]


def cpu_arguments(
    points: Sequence[Tensor],
    layers: Sequence[Tensor],
    has_bias: Sequence[bool],
    x: Tensor,
    inner: int,
    activation: str,
    likelihood: str,
) -> tuple[Any, ...]:
    """The arguments of the ops as the extension takes them."""
    dtype = points[0].dtype
    if dtype is not torch.float32 and dtype is not torch.float64:
        points, layers = _layout.all_to_compute_dtype(points, dtype), _layout.all_to_compute_dtype(layers, dtype)
    return *points, layers, has_bias, x, inner, ACTIVATION_IDS[activation], LIKELIHOOD_IDS[likelihood]


def recognise(
    impl: str,
    points: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    x: Tensor,
    activation: str | None,
    likelihood: str,
) -> Prepared | None:
    """What :func:`prepare` gives where the C++ kernels can take all tensors as they are; None where checks are needed.

    For a small decoder the checks take as long as the kernels.
    """
    if not backend.runs_cpp(impl) or activation not in ACTIVATION_IDS or likelihood not in LIKELIHOOD_IDS:
        return None
    if not isinstance(weights, (list, tuple)) or not isinstance(biases, (list, tuple)):
        return None
    found = None if torch._C._is_any_autocast_enabled() else extension().decoder_tensors(points, weights, biases, x)
    if found is None:
        return None
    layers, has_bias = found
    return Decoder(has_bias, 1, activation, likelihood, backend.CPP), points, x, layers


def _build_names(points: tuple[str, ...], count: int) -> tuple[str, ...]:
    return *points, *(f"{part}[{i}]" for part in ("weights", "biases") for i in range(count)), "x"


# A compiler does not see through the cache.
_recall_names = cache(_build_names)


def _check_layers(points: dict[str, Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
    z = points["z"]
    width = z.shape[-1] if z.dim() else 0
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if weight.dim() != 2 or 0 in weight.shape:
            raise ValueError(f"weights[{i}] must have shape (out, in), both >= 1, got {tuple(weight.shape)}")
        out, features = weight.shape
        if features != width:
            if i == 0:
                raise ValueError(f"z must have shape (*, {features}), got {tuple(z.shape)}")
            raise ValueError(
                f"weights[{i}] must have shape ({out}, {width}), as wide as weights[{i - 1}] is long, got "
                f"{tuple(weight.shape)}"
            )
        if bias is not None and bias.shape != (out,):
            raise ValueError(f"biases[{i}] must have shape ({out},), got {tuple(bias.shape)}")
        width = out
    if "v" in points and points["v"].shape != z.shape:
        raise ValueError(f"v must have the shape of z, {tuple(z.shape)}, got {tuple(points['v'].shape)}")


def prepare(
    impl: str,
    points: dict[str, Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    x: Tensor,
    activation: str | None,
    likelihood: str,
) -> Prepared:
    """The call, checked, and its tensors as kernels take them.

    Raises:
        TypeError: an argument is no tensor of the right kind, or dtypes differ outside autocast.
        ValueError: shapes do not fit, devices differ, or a name is unknown.
        RuntimeError: ``impl`` cannot run here.
    """
    activation = activation_of(activation)
    if likelihood not in LIKELIHOOD_IDS:
        raise ValueError(f"likelihood must be one of {', '.join(LIKELIHOODS)}, got {likelihood!r}")
    count, more = len(weights), len(points)
    if count == 0 or len(biases) != count:
        raise ValueError(f"weights and biases must be as many, one or more, got {count} and {len(biases)}")
    names = (_build_names if torch.compiler.is_compiling() else _recall_names)(tuple(points), count)
    route, given = backend.route(
        impl, *points.values(), *weights, *biases, x, names=names, floats=more + 2 * count, required=more + count
    )
    *tensors, x = given
    if not route.alike or torch._C._is_any_autocast_enabled():
        tensors = _checks.to_one_kind(dict(zip(names[: len(tensors)], tensors, strict=True)), more + count)
    points = dict(zip(points, tensors[:more], strict=True))
    weights, biases = tensors[more : more + count], tensors[more + count :]
    _check_layers(points, weights, biases)
    z = tensors[0]
    pixels = weights[-1].shape[0]
    _checks.check_data(x, pixels, z=z)
    x, inner = _checks.align_data(x.to(compute_dtype(z.dtype)), z=z)
    given_biases = [bias.contiguous() for bias in biases if bias is not None]
    layers = [*(_layout.to_rows(weight, weight.shape[1]) for weight in weights), *given_biases]
    decoder = Decoder(tuple([bias is not None for bias in biases]), inner, activation, likelihood, route)
    return decoder, [_layout.to_rows(p, z.shape[-1]) for p in tensors[:more]], _layout.to_rows(x, pixels), layers


def only_by_reference(decoder: Decoder, impl: str, what: str) -> Decoder:
    """The call by the reference, since a compiler cannot follow from the kernels to it.

    Raises:
        RuntimeError: ``impl`` names another implementation.
    """
    if backend.is_asked_for(impl) and decoder.route.impl != "reference":
        raise RuntimeError(f"impl={impl!r} cannot run here: under a compiler only the reference gives {what}")
    # A compiler of torch 2.6 does not follow _replace.
    return Decoder(decoder.has_bias, decoder.inner, decoder.activation, decoder.likelihood, Route("reference"))
