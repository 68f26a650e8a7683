"""Proof that a network or a flow is autoregressive."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .flows import InverseAutoregressiveFlow, MaskedAutoregressiveFlow
from .made import MADE

__all__ = ["AutoregressiveError", "AutoregressiveReport", "check_autoregressive"]


REDRAWS = 20


class AutoregressiveError(ValueError):
    """A module's Jacobian has not the structure that it must have.

    Attributes:
        output: the feature with the wrong output.
        input: the feature that it depends on and must not, or must depend on and does not; None for the context.
    """

    def __init__(self, message: str, output: int, input: int | None) -> None:
        super().__init__(message, output, input)
        self.output, self.input = output, input

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class AutoregressiveReport:
    """What :func:`check_autoregressive` found.

    Attributes:
        points: number of random points.
        forbidden: number of entries of the Jacobians, of one point, that must be zero, and are at all points.
        used: number of entries that may differ from zero, and do at some point.
        unused: number of entries that may differ from zero, and do at none.
        smallest_used: the least of the largest absolute values that used entries take.
    """

    points: int
    forbidden: int
    used: int
    unused: int
    smallest_used: float


@dataclass(frozen=True)
class _Part:
    """One map to check: its name, the map, and the structure that it must have."""

    name: str
    function: Callable[..., Any]
    features: int
    context_features: int
    places: Tensor
    diagonal: str


def check_autoregressive(
    module: Callable[..., Any],
    features: int | None = None,
    *,
    context_features: int = 0,
    order: Sequence[int] | Tensor | None = None,
    diagonal: str = "forbidden",
    require_used: bool = True,
    perturb: bool = True,
    points: int = 16,
    seed: int = 0,
) -> AutoregressiveReport:
    r"""Proves by automatic differentiation which inputs the outputs of a module depend on.

    At random points, in float64, the Jacobian :math:`\partial out_i / \partial in_j` must be exactly zero wherever
    feature j does not come before feature i in the order, and must differ from zero at some point everywhere else;
    with a context, every output, that of the first feature included, must depend on it.

    Args:
        module: a :class:`MADE`; an :class:`InverseAutoregressiveFlow` or :class:`MaskedAutoregressiveFlow`, whose
            networks and steps, in their parallel direction, are checked one by one; or any callable of ``(N, D)``, and
            of a context ``(N, context_features)`` if there is one, that returns ``(N, *, D)``, or a tuple that begins
            with that. Modules are copied; the copy is in float64 and in evaluation mode.
        features: number D of features; of a MADE and of the flows it is known.
        context_features: width of the context; of a MADE and of the flows it is known.
        order: place of each feature; None: 0, 1, ... Of a MADE and of the flows it is known.
        diagonal: what holds for the entry of a feature itself: ``"forbidden"`` for the parameters of an autoregressive
            model, ``"required"`` for a flow's step, ``"allowed"`` where it may but need not differ from zero.
        require_used: whether an entry that may differ from zero must do so. Hidden layers of fewer units than features
            cannot use all.
        perturb: whether noise is added to the copied module's parameters, which shows weights that merely happen to be
            zero. Where something that must be used is not, other parameters are drawn, a few times: a unit that is off
            at all points hides what passes through it alone.
        points: number N of points.
        seed: of the random numbers; torch's own generators stay untouched.

    Returns:
        Counts, and the smallest of the entries that are used.

    Raises:
        AutoregressiveError: a ValueError that names the output and the input.
        ValueError: an argument that does not fit the module, or outputs that are not finite.

    Note:
        Each output costs one backward pass. The proof is for the random points: dependence behind a branch that
        none of them takes goes unseen.

    Example:
        >>> from fastvae.nn import MADE
        >>> check_autoregressive(MADE(4, (32,), context_features=2)).forbidden
        20
        >>> try:
        ...     check_autoregressive(lambda x: x.flip(-1), 2)
        ... except AutoregressiveError as error:
        ...     print(error)
        output 0 depends on input 1, which does not stand before it: |d out / d in| is up to 1.0e+00 (1 such pair)
    """
    if diagonal not in ("forbidden", "required", "allowed"):
        raise ValueError(f"diagonal must be 'forbidden', 'required' or 'allowed', got {diagonal!r}")
    if points < 1:
        raise ValueError(f"points must be >= 1, got {points}")
    generator = torch.Generator().manual_seed(seed)
    if isinstance(module, nn.Module):
        module = copy.deepcopy(module).double().eval().requires_grad_(False)
        if perturb:
            _perturb(module, generator)
    if isinstance(module, (MADE, InverseAutoregressiveFlow, MaskedAutoregressiveFlow)):
        if features not in (None, module.features):
            raise ValueError(f"features must be None or those of the module, {module.features}, got {features}")
        if order is not None or context_features not in (0, module.context_features):
            raise ValueError(
                f"order and context_features must not be given for a {type(module).__name__}: it has its own"
            )
        parts = list(_known_parts(module))
    else:
        if features is None or features < 1:
            raise ValueError(f"features must be given, >= 1, for a {type(module).__name__}, got {features}")
        places = torch.arange(features) if order is None else torch.as_tensor(order).cpu()
        if sorted(places.tolist()) != list(range(features)):
            raise ValueError(f"order must be a permutation of 0, ..., {features - 1}, got {places.tolist()}")
        parts = [_Part("", module, features, context_features, places, diagonal)]
    device = next((p.device for p in module.parameters()), None) if isinstance(module, nn.Module) else None
    redraw = (lambda: _perturb(module, generator, keep=0.0)) if isinstance(module, nn.Module) and perturb else None
    reports = [_check_part(part, require_used, points, generator, device, redraw) for part in parts]
    return AutoregressiveReport(
        points,
        sum(report.forbidden for report in reports),
        sum(report.used for report in reports),
        sum(report.unused for report in reports),
        min(report.smallest_used for report in reports),
    )


def _known_parts(module: MADE | InverseAutoregressiveFlow | MaskedAutoregressiveFlow) -> Iterator[_Part]:
    if isinstance(module, MADE):
        places = torch.tensor(module.structure.order)
        yield _Part("", module, module.features, module.context_features, places, "forbidden")
        return
    networks = module.steps()
    for index, network in enumerate(networks):
        name = f"network {index}: " if len(networks) > 1 else ""
        step = copy.copy(module)
        step._modules = {**module._modules, "networks": nn.ModuleList([network])}
        parallel = step.forward if isinstance(step, InverseAutoregressiveFlow) else step.inverse
        places = torch.tensor(network.structure.order)
        yield _Part(name, network, network.features, network.context_features, places, "forbidden")
        yield _Part(f"{name}step: ", parallel, network.features, network.context_features, places, "required")


def _perturb(module: nn.Module, generator: torch.Generator, keep: float = 1.0) -> None:
    with torch.no_grad():
        for p in module.parameters():
            if p.is_floating_point():
                spread = 0.1 if p.dim() < 2 else max(math.prod(p.shape[1:]), 1) ** -0.5
                p.mul_(keep).add_(spread * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p))


def _check_part(
    part: _Part,
    require_used: bool,
    points: int,
    generator: torch.Generator,
    device: torch.device | None,
    redraw: Callable[[], None] | None,
) -> AutoregressiveReport:
    own, before = torch.eye(part.features, dtype=torch.bool), part.places < part.places.unsqueeze(-1)
    forbidden = ~(before | own) if part.diagonal != "forbidden" else ~before
    required = before | own if part.diagonal == "required" else before
    jacobians = _jacobians(part, points, generator, device)
    for _ in range(REDRAWS if redraw is not None else 0):
        unused = ((jacobians[0] == 0) & required).any() and require_used
        if not unused and not any((of_context.amax(-1) == 0).any() for of_context in jacobians[1:]):
            break
        assert redraw is not None
        redraw()
        more = _jacobians(part, points, generator, device)
        jacobians = [torch.maximum(one, other) for one, other in zip(jacobians, more, strict=True)]
    jacobian, params = jacobians[0], len(jacobians[0])
    found = jacobian != 0
    if (found & forbidden).any():
        text = "depends on input {}, which does not stand before it: |d out / d in| is up to {:.1e}"
        raise _error(part, jacobian, found & forbidden, text)
    if require_used and (~found & required).any():
        raise _error(part, jacobian, ~found & required, "does not depend on input {}, which it must")
    for of_context in jacobians[1:]:
        for param, feature in (of_context.amax(-1) == 0).nonzero().tolist():
            name = _output_name(feature, param, params)
            raise AutoregressiveError(f"{part.name}{name} does not depend on the context", feature, None)
    used = jacobian[found & required]
    return AutoregressiveReport(
        points,
        int(forbidden.sum()) * params,
        len(used),
        int((~found & required).sum()),
        float(used.min()) if len(used) else float("inf"),
    )


def _jacobians(part: _Part, points: int, generator: torch.Generator, device: torch.device | None) -> list[Tensor]:
    """Of the features and of the context, if any, the largest absolute value over random points of each entry."""
    inputs = [
        torch.randn(points, width, generator=generator, dtype=torch.float64).to(device).requires_grad_()
        for width in (part.features, part.context_features)
        if width
    ]
    with torch.enable_grad():
        out = part.function(*inputs)
        out = out[0] if isinstance(out, tuple) else out
        if out.shape[:1] != (points,) or out.dim() < 2 or out.shape[-1] != part.features:
            raise ValueError(
                f"{part.name}module must return shape ({points}, *, {part.features}) for {points} points, got "
                f"{tuple(out.shape)}"
            )
        if not out.isfinite().all():
            raise ValueError(f"{part.name}module must return finite numbers at random points")
        out = out.reshape(points, -1, part.features)
        return [_largest(out, x).cpu() for x in inputs]


def _largest(out: Tensor, x: Tensor) -> Tensor:
    """The largest absolute value over all points of each entry of d out / d x: ``(P, D, width of x)``."""
    rows = []
    for column in out.flatten(1).unbind(1):
        row = None
        if column.requires_grad:
            # Points do not mix: the gradient of the sum holds the row of every point.
            (row,) = torch.autograd.grad(column.sum(), x, retain_graph=True, allow_unused=True)
        rows.append(x.new_zeros(x.shape[1]) if row is None else row.abs().amax(0))
    return torch.stack(rows).unflatten(0, out.shape[1:])


def _output_name(feature: int, param: int, params: int) -> str:
    return f"output {feature}" + (f" (parameter {param})" if params > 1 else "")


def _error(part: _Part, jacobian: Tensor, wrong: Tensor, message: str) -> AutoregressiveError:
    pairs = wrong.nonzero().tolist()
    param, feature, other = pairs[0]
    count = f"({len(pairs)} such pair{'s' if len(pairs) > 1 else ''})"
    text = message.format(other, jacobian[param, feature, other].item())
    name = _output_name(feature, param, len(jacobian))
    return AutoregressiveError(f"{part.name}{name} {text} {count}", feature, other)
