"""First layer of a network that is given a class: the inputs' products once for all classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backend
from ..reference import class_linear as reference
from . import _checks
from ._layers import activation_of


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


def _check_batches(**tensors: tuple[int, ...]) -> None:
    try:
        torch.broadcast_shapes(*tensors.values())
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(shape)}" for name, shape in tensors.items())
        raise ValueError(f"the batch shapes of {', '.join(tensors)} must broadcast, got {shapes}") from None


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
        those that a compiler sees, are not checked. Deterministic. Differentiable any number of times.

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
        tensors = _checks.to_one_kind(dict(zip(names, tensors, strict=False)), 2 * count + 1)
    given, layers, (class_weight, bias) = tensors[:count], tensors[count : 2 * count], tensors[2 * count :]
    _check_layer(
        dict(zip(of_inputs, given, strict=True)), dict(zip(of_weights, layers, strict=True)), class_weight, bias
    )
    batches = {name: x.shape[:-1] for name, x in zip(of_inputs, given, strict=True)}
    if labels is not None:
        labels = _check_labels(labels, class_weight.shape[1], given[0])
        batches["labels"] = labels.shape
    if len(batches) > 1:
        _check_batches(**batches)
    return reference.class_linear(given, layers, class_weight, bias, labels, activation)
