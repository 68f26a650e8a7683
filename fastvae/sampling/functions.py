"""Functions and methods of a recorded network as nodes of a plan."""

from __future__ import annotations

import inspect
from typing import Any, Literal

from torch import fx

from ..structure.sampling_plan import Affine, Pointwise, Span
from .graph import changes_in_place, depends_on_image
from .lookup import follow
from .lowering import ACTIVATION_MODULES, FIXED_OPTIONS, Lowering

__all__ = ["FunctionLowering"]

_NAMES: dict[str, str] = {
    **dict.fromkeys((*ACTIVATION_MODULES.values(), "relu_", "elu_", "tanh_", "sigmoid_"), "activation"),
    **{
        name: name
        for name in ("add", "sub", "rsub", "mul", "div", "neg", "cat", "chunk", "split", "getitem", "dropout")
    },
    **{f"{name}_": name for name in ("add", "sub", "mul", "div", "neg")},
    **{"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div", "truediv": "div"},
    **{"subtract": "sub", "multiply": "mul", "true_divide": "div", "divide": "div", "negative": "neg"},
    **{"concat": "cat", "concatenate": "cat", "dropout2d": "dropout", "ones_like": "ones", "zeros_like": "zeros"},
    **dict.fromkeys(("contiguous", "clone", "detach"), "identity"),
}
_CHANNEL_DIMS = (1, -3)


class FunctionLowering(Lowering):
    """:class:`~fastvae.sampling.lowering.Lowering` of functions and methods."""

    def function(self, node: fx.Node) -> Any:
        self.plan.label = self.recording.label(node)
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        # A function of that name from another library may compute something else.
        home = (getattr(node.target, "__module__", None) or "torch").split(".")[0]
        trusted = isinstance(node.target, str) or home in ("torch", "_operator", "operator", "builtins")
        made: Any = follow(self, name, node) if trusted else None
        if made is not None:
            return made
        handler = _NAMES.get(name) if trusted else None
        if handler is None:
            raise self.refuse("cannot be computed pixel by pixel")
        if handler == "activation":
            made = self._activation_function(node, name.removesuffix("_"))
        else:
            lowered = getattr(self, f"_{handler}")
            try:
                inspect.signature(lowered).bind(*node.args, **node.kwargs)
            except TypeError as error:
                raise self.refuse(str(error)) from None
            made = lowered(*node.args, **node.kwargs)
        if changes_in_place(node):
            self.replace(node.args[0], made)
        return made

    def _activation_function(self, node: fx.Node, name: str) -> Span:
        options: dict[str, Any] = {key: v for key, v in node.kwargs.items() if key not in ("input", "inplace")}
        rest = list(node.args[1:])
        for key in ("negative_slope",) if name == "leaky_relu" else tuple(FIXED_OPTIONS.get(name, ())):
            if rest:
                options[key] = rest.pop(0)
        slope = options.pop("negative_slope", 0.01) if name == "leaky_relu" else None
        if options.keys() - FIXED_OPTIONS.get(name, {}).keys():
            raise self.refuse(f"takes no {', '.join(sorted(options))}")
        src = self.span(node.args[0] if node.args else node.kwargs["input"])
        return self.activation(name, src, slope, options)

    def _combine(self, op: Literal["add", "sub", "mul"], a: Any, b: Any) -> Span:
        if isinstance(b, (int, float)):
            factor, term = (b, 0.0) if op == "mul" else (1.0, b if op == "add" else -b)
            return self._affine(self.span(a), factor, term)
        if isinstance(a, (int, float)):
            factor, term = (a, 0.0) if op == "mul" else (1.0 if op == "add" else -1.0, a)
            return self._affine(self.span(b), factor, term)
        first = next((v for v in (a, b) if isinstance(v, fx.Node) and depends_on_image(v)), a)
        count = self.span(first).channels
        left, right = self.span(a, count), self.span(b, count)
        if left.channels != right.channels:
            raise self.refuse(f"takes activations of as many channels, got {left.channels} and {right.channels}")
        dst = self.plan.result(left, right)
        self.plan.emit(Pointwise(dst, left, right, op))
        return dst

    def _affine(self, src: Span, alpha: float, beta: float) -> Span:
        dst = self.plan.result(src)
        self.plan.emit(Affine(dst, src, float(alpha), float(beta)))
        return dst

    def _check_scale(self, value: Any, alpha: Any) -> Any:
        if alpha != 1:
            raise self.refuse(f"alpha must be 1, got {alpha!r}")
        return value

    def _add(self, input: Any, other: Any, *, alpha: Any = 1) -> Span:
        return self._combine("add", input, self._check_scale(other, alpha))

    def _sub(self, input: Any, other: Any, *, alpha: Any = 1) -> Span:
        return self._combine("sub", input, self._check_scale(other, alpha))

    def _rsub(self, input: Any, other: Any, alpha: Any = 1) -> Span:
        return self._combine("sub", other, self._check_scale(input, alpha))

    def _mul(self, input: Any, other: Any) -> Span:
        return self._combine("mul", input, other)

    def _div(self, input: Any, other: Any, *, rounding_mode: Any = None) -> Span:
        if rounding_mode is not None or isinstance(other, fx.Node) or other == 0:
            raise self.refuse(f"divides by a number other than 0 only, got {other!r}")
        return self._combine("mul", input, 1.0 / other)

    def _neg(self, input: Any) -> Span:
        return self._affine(self.span(input), -1.0, 0.0)

    def _identity(self, input: Any, **_: Any) -> Span:
        return self.span(input)

    def _dropout(self, input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Span:
        if training and p:
            raise ValueError(f"{self.label}: dropout must be off: call network.eval() before the sampler is made")
        return self.span(input)

    def _ones(self, input: Any) -> Span:
        return self.plan.constant(1.0, self.span(input).channels)

    def _zeros(self, input: Any) -> Span:
        return self.plan.constant(0.0, self.span(input).channels)

    def _cat(self, tensors: Any, dim: int = 0) -> Span:
        self._along_channels(dim)
        parts = [self.span(tensor) for tensor in tensors]
        return self.plan.concatenate(parts)

    def _along_channels(self, dim: Any) -> None:
        if dim not in _CHANNEL_DIMS:
            raise self.refuse(f"dim must be 1, the channels, got {dim!r}")

    def _chunk(self, input: Any, chunks: int, dim: int = 0) -> tuple[Span, ...]:
        return self._split(input, -(-self.span(input).channels // chunks), dim)

    def _split(self, input: Any, split_size_or_sections: Any, dim: int = 0) -> tuple[Span, ...]:
        self._along_channels(dim)
        src, size = self.span(input), split_size_or_sections
        if isinstance(size, int):
            size = [min(size, src.channels - first) for first in range(0, src.channels, size)]
        if sum(size) != src.channels:
            raise self.refuse(f"sizes must add up to {src.channels} channels, got {tuple(size)}")
        firsts = [sum(size[:i]) for i in range(len(size))]
        return tuple(src.part(first, count) for first, count in zip(firsts, size, strict=True))

    def _getitem(self, input: Any, index: Any) -> Any:
        found = self.env[input]
        if not isinstance(found, Span):
            return found[index]
        whole = slice(None)
        index = index if isinstance(index, tuple) else (index,)
        if len(index) >= 2 and isinstance(index[1], slice) and index[0] == whole:
            numbers = all(v is None or isinstance(v, int) for v in (index[1].start, index[1].stop))
            if numbers and index[1].step in (None, 1) and all(i in (whole, Ellipsis) for i in index[2:]):
                first, stop, _ = index[1].indices(found.channels)
                return found.part(first, max(stop - first, 0))
        raise self.refuse("takes slices of neighbouring channels only, such as h[:, 2:5]")
