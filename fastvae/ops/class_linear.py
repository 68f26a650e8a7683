"""First layer of a network that is given a class: the inputs' products once for all classes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as TF
from torch import Tensor

from .. import backend
from ..backend import Route
from ..precision import compute_dtype
from ..reference import class_linear as reference
from . import _checks, _layout
from ._contracts import Call
from ._layers import ACTIVATION_IDS, NEED_PRE, activation_of
from ._library import Differentiable, apply, define, extension, needs_grad, with_reference
from ._small import is_left_to_compiler

# The op adds up what the products give: y[m, c] = act(rows[m] + cells[m, c] + classes[c]). There are cells, or rows and
# classes; the others may be absent.
_Terms = tuple[Tensor | None, Tensor | None, Tensor | None]


def _sizes(rows: Any, cells: Any, classes: Any) -> tuple[Any, Any, Any]:
    return tuple(cells.shape) if cells is not None else (rows.shape[0], *classes.shape)


def _first(*terms: Tensor | None) -> Tensor:
    return next(t for t in terms if t is not None)


def _fwd_cpu(
    rows: Tensor | None, cells: Tensor | None, classes: Tensor | None, activation: str, keep: bool
) -> tuple[Tensor, Tensor | None]:
    dtype = _first(rows, cells, classes).dtype
    terms = _layout.all_to_compute_dtype((rows, cells, classes), dtype)
    y, pre = extension().class_linear_fwd(*terms, ACTIVATION_IDS[activation], keep and activation in NEED_PRE)
    return _layout.cast(y, dtype), pre


def _fwd_fake(rows: Any, cells: Any, classes: Any, activation: str, keep: bool) -> tuple[Tensor, Tensor]:
    like, sizes = _first(rows, cells, classes), _sizes(rows, cells, classes)
    kept = sizes if keep and activation in NEED_PRE else (0,)
    return like.new_empty(sizes), like.new_empty(kept, dtype=compute_dtype(like.dtype) if kept is sizes else like.dtype)


def _bwd_cpu(d_y: Tensor, at: Tensor, activation: str, needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    tensors = _layout.all_to_compute_dtype((d_y, at), d_y.dtype)
    gradients = extension().class_linear_bwd(*tensors, ACTIVATION_IDS[activation], needs)
    return tuple([None if g is None else _layout.cast(g, d_y.dtype) for g in gradients])


def _bwd_fake(d_y: Tensor, at: Any, activation: Any, needs: Sequence[bool]) -> tuple[Tensor, ...]:
    m, c, h = d_y.shape
    shapes = (m, h), (m, c, h), (c, h)
    return tuple(d_y.new_empty(shape if need else 0) for shape, need in zip(shapes, needs, strict=True))


def _check_call(call: Call) -> None:
    if "needs" not in call.arguments:
        there = [call[name] is not None for name in ("rows", "cells", "classes")]
        call.require(there[1] or (there[0] and there[2]), "cells", "be given, or both rows and classes", None)
    else:
        needs, dtype = call["needs"], call["d_y"].dtype
        call.require(len(needs) == 3, "needs", "be three truth values", needs)
        kept = compute_dtype(dtype) if call["activation"] in NEED_PRE else dtype
        call.require(call["at"].dtype == kept, "at", f"be of {kept}", call["at"].dtype)
    for size in ("C", "H"):
        call.require(call.sizes[size] >= 1, "classes", f"have {size} >= 1", 0)


_ACTIVATIONS: Any = {"activation": ACTIVATION_IDS}
FWD = define(
    "class_linear_fwd(Tensor? rows, Tensor? cells, Tensor? classes, str activation, bool keep)"
    " -> (Tensor y, Tensor pre)",
    tensors="rows?[M,H]r cells?[M,C,H]c classes?[C,H]r", choices=_ACTIVATIONS, more=_check_call,
    module="class_linear", cpu=_fwd_cpu, fake=_fwd_fake,
)  # fmt: skip
BWD = define(
    "class_linear_bwd(Tensor d_y, Tensor at, str activation, bool[] needs)"
    " -> (Tensor d_rows, Tensor d_cells, Tensor d_classes)",
    tensors="d_y[M,C,H]c at[M,C,H]ca", choices=_ACTIVATIONS, more=_check_call,
    module="class_linear", cpu=_bwd_cpu, fake=_bwd_fake,
)  # fmt: skip


def _rebuild_sum(ctx: Any) -> Differentiable:
    activation = ctx.activation

    def activate_sum(rows: Tensor | None, cells: Tensor | None, classes: Tensor | None, *_: None) -> Tensor:
        return reference.activate_sum(rows, cells, classes, activation)

    return activate_sum, (*ctx.saved_tensors[1:], None, None)


class _ActivateSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor | None, cells: Tensor | None, classes: Tensor | None, activation: str, route: Route
    ) -> Tensor:
        y, pre = FWD.on(route)(rows, cells, classes, activation, True)
        ctx.save_for_backward(pre if activation in NEED_PRE else y, rows, cells, classes)
        ctx.activation, ctx.route = activation, route
        return y

    @staticmethod
    @with_reference(_rebuild_sum)
    def backward(ctx: Any, route: Route, d_y: Tensor) -> Any:
        needs = list(ctx.needs_input_grad[:3])
        gradients = BWD.on(route)(d_y.contiguous(), ctx.saved_tensors[0], ctx.activation, needs)
        return *(g if need else None for g, need in zip(gradients, needs, strict=True)), None, None


def _add(terms: Sequence[Tensor]) -> Tensor | None:
    return reduce(torch.add, terms) if terms else None


def _arrange(products: Sequence[Tensor], of_classes: Tensor, labels: Tensor | None, batch: Sequence[int]) -> _Terms:
    """The op's terms for a result ``(*batch, H)``. Each term is added to others of its size only."""
    width = of_classes.shape[1]
    if labels is None:
        return _layout.to_rows(reduce(torch.add, products), width), None, of_classes.contiguous()
    own = TF.embedding(labels, of_classes)
    if len(batch) < 2 or labels.dim() == 0 or not labels.numel() == labels.shape[-1] == batch[-1]:
        # A label for each row: as many rows of one class each.
        rows = reduce(torch.add, products).expand(*batch, width)
        return _layout.to_rows(rows, width), own.expand(*batch, width).reshape(-1, 1, width).contiguous(), None
    # One label for each place of the last dimension.
    *outer, last = batch
    shared = _add([p for p in products if p.dim() == 1 or p.shape[-2] != last])
    cells = _add([p for p in products if p.dim() > 1 and p.shape[-2] == last])
    if shared is not None:
        shared = _layout.to_rows(shared.expand(*outer, 1, width), width)
    if cells is not None:
        cells = cells.expand(*outer, last, width).reshape(_layout.product(outer), last, width).contiguous()
    return shared, cells, own.reshape(last, width)


def _names_of(name: str, given: Any) -> tuple[list[str], list[Any]]:
    """One tensor or several, with the names that errors use."""
    if isinstance(given, Tensor) or not isinstance(given, Sequence):
        return [name], [given]
    return [f"{name}[{i}]" for i in range(len(given))], list(given)


def _check_layer(inputs: dict[str, Tensor], weights: dict[str, Tensor], class_weight: Tensor, bias: Any) -> None:
    if class_weight.dim() != 2 or 0 in class_weight.shape:
        raise ValueError(f"class_weight must have shape (H, C), both >= 1, got {tuple(class_weight.shape)}")
    width = class_weight.shape[0]
    for (name, x), (of_weight, weight) in zip(inputs.items(), weights.items(), strict=True):
        if weight.dim() != 2 or weight.shape[0] != width:
            raise ValueError(
                f"{of_weight} must have shape ({width}, D), as many rows as class_weight, got {tuple(weight.shape)}"
            )
        if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
            raise ValueError(
                f"{name} must have shape (*, {weight.shape[1]}) for {of_weight} {tuple(weight.shape)}, got "
                f"{tuple(x.shape)}"
            )
    if bias is not None and bias.shape != (width,):
        raise ValueError(f"bias must have shape ({width},), got {tuple(bias.shape)}")


def _can_read(t: Tensor) -> bool:
    """Whether the numbers of ``t`` are at hand, and no compiler or mode records that somebody looks at them."""
    recorded = (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
    )
    return not recorded and t.device.type == "cpu" and type(t) is Tensor


def _check_labels(labels: Any, classes: int, like: Tensor) -> Tensor:
    """``labels`` as int64. Their values are checked on a CPU only: elsewhere a check would wait for the device."""
    kind = labels.dtype if isinstance(labels, Tensor) else None
    if kind is None or kind is torch.bool or kind.is_floating_point or kind.is_complex:
        raise TypeError(f"labels must be a tensor of integers, got {kind or type(labels).__name__}")
    if labels.device != like.device:
        raise ValueError(f"labels must be on the device of the inputs, {like.device}; it is on {labels.device}")
    if _can_read(labels) and labels.numel():
        least, largest = (int(t) for t in labels.aminmax())
        if least < 0 or largest >= classes:
            raise ValueError(f"labels must lie in [0, {classes}), got values from {least} to {largest}")
    return labels.long()


def _check_batches(batches: dict[str, Sequence[int]]) -> Sequence[int]:
    """The shape that they broadcast to."""
    if len(batches) == 1:
        return next(iter(batches.values()))
    try:
        return torch.broadcast_shapes(*batches.values())
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(shape)}" for name, shape in batches.items())
        raise ValueError(f"the batch shapes of {', '.join(batches)} must broadcast, got {shapes}") from None


def class_linear(
    inputs: Tensor | Sequence[Tensor],
    weights: Tensor | Sequence[Tensor],
    class_weight: Tensor,
    bias: Tensor | None = None,
    *,
    labels: Tensor | None = None,
    activation: str | None = None,
    impl: str = "auto",
) -> Tensor:
    r"""First layer of a network that is given inputs and a class, for all classes at once.

    .. math::
        y_{\dots c} = \operatorname{act}\Big(\sum_i W_i x_i + V_{:,c} + b\Big)

    It is a linear layer of the inputs and the one-hot class, joined. Nothing is repeated for the classes: each input is
    multiplied once, and gradients are summed over the classes before they are multiplied.

    Args:
        inputs: x, one tensor ``(*, D)`` or several ``(*, D_i)`` whose batch dimensions broadcast; float16, bfloat16,
            float32 or float64.
        weights: W, ``(H, D)``, or one ``(H, D_i)`` for each input, as :class:`torch.nn.Linear` has it.
        class_weight: V, ``(H, C)`` for C classes.
        bias: b, ``(H,)``, or None.
        labels: the class of each row, integers in [0, C). Its shape and the batch of the inputs broadcast: ``(N,)``
            for N labelled rows ``(N, D)``, or ``arange(C)`` for inputs ``(N, C, D)`` that differ from class to class,
            beside others ``(N, 1, D)`` that do not. None for all classes, in a new dimension.
        activation: ``"relu"``, ``"elu"``, ``"tanh"``, ``"softplus"``, ``"gelu"``, ``"silu"``, ``"identity"`` or None.
        impl: ``"auto"``, ``"triton"``, ``"cpp"`` or ``"reference"``, see :mod:`fastvae.backend`.

    Returns:
        y, ``(*, C, H)``, or ``(*, H)`` with ``labels``, in the dtype of ``inputs``.

    Raises:
        TypeError: an argument is no tensor of the right kind, or dtypes differ outside autocast.
        ValueError: shapes do not fit, devices differ, a label is out of range, or the activation is unknown.
        RuntimeError: ``impl`` cannot run here.

    Note:
        Under autocast the layer runs in its dtype, as :func:`torch.nn.functional.linear` does. Labels on a GPU, and
        those that a compiler sees, are not checked. Deterministic. Differentiable any number of times, by the reference
        from the second time on.

    Reference:
        *Semi-Supervised Learning with Deep Generative Models* (Kingma, Rezende, Mohamed, Welling, 2014), the first
        layers of q(z | x, y) and p(x | y, z).

    Example:
        >>> x, a = torch.ones(2, 4), torch.ones(2, 3)
        >>> weights, class_weight = (torch.ones(5, 4), torch.ones(5, 3)), torch.arange(10.0).expand(5, 10)
        >>> y = class_linear((x, a), weights, class_weight, activation="relu")
        >>> y.shape, y[0, 9, 0].item()
        (torch.Size([2, 10, 5]), 16.0)
        >>> class_linear((x, a), weights, class_weight, labels=torch.tensor([9, 0]))[:, 0].tolist()
        [16.0, 7.0]
    """
    activation = activation_of(activation)
    of_inputs, given = _names_of("inputs", inputs)
    of_weights, layers = _names_of("weights", weights)
    count = len(given)
    if count == 0 or len(layers) != count:
        raise ValueError(f"inputs and weights must be as many, one or more, got {count} and {len(layers)}")
    names = (*of_inputs, *of_weights, "class_weight", "bias", "labels")
    route, (*tensors, labels) = backend.route(
        impl, *given, *layers, class_weight, bias, labels, names=names, floats=2 * count + 2, required=2 * count + 1
    )
    if not route.alike or torch._C._is_any_autocast_enabled():
        tensors = _checks.to_one_kind(dict(zip(names[:-1], tensors, strict=True)), 2 * count + 1)
    given, layers, (class_weight, bias) = tensors[:count], tensors[count : 2 * count], tensors[2 * count :]
    _check_layer(
        dict(zip(of_inputs, given, strict=True)), dict(zip(of_weights, layers, strict=True)), class_weight, bias
    )
    batches = {name: x.shape[:-1] for name, x in zip(of_inputs, given, strict=True)}
    width, classes = class_weight.shape
    if labels is not None:
        labels = _check_labels(labels, classes, given[0])
        batches["labels"] = labels.shape
    batch = _check_batches(batches)
    if labels is None:
        batch = (*batch, classes)
    arguments = given, layers, class_weight, bias, labels, activation
    if route.impl == "reference" or is_left_to_compiler(impl, route, _layout.product(batch) * width):
        return reference.class_linear(*arguments)
    products = [TF.linear(x, weight) for x, weight in zip(given, layers, strict=True)]
    terms = _arrange(products, reference.terms_of_classes(class_weight, bias), labels, batch)
    if needs_grad(*[t for t in terms if t is not None]):
        y = apply(_ActivateSum, *terms, activation, route)
    else:
        y = FWD.on(route)(*terms, activation, False)[0]
    return _layout.to_shape(y, (*batch, width))
