"""Sampling from a causal network whose plan is known: which implementation runs, and what the extension is given.

One call of the extension draws a whole batch: ``causal_sampler(is_double, sizes, head, buffers, nodes, taps, addresses,
scalars, temperature, images, given, uniforms, parameters)``.

- ``sizes`` to ``taps`` are records, see :mod:`fastvae.structure.sampling_records`; they name places in ``addresses``
  and ``scalars``.
- ``images`` (N, C, H, W) is read and written, zero where nothing is given; ``given`` is uint8 of the same shape;
  ``uniforms`` (N, H W columns) is absent where all of ``images`` is given; ``parameters`` is (N, P, H, W). All are
  addresses of contiguous tensors, 0 for what is absent.

For each row the row nodes run; then for each pixel and each pass p the channels of pass p, after which the channels of
the image of colour p are drawn. Pass ``num_colors`` serves later pixels. Outside the image all buffers are zero.
"""

from __future__ import annotations

import functools
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .. import backend
from ..reference import causal_sampler as reference
from ..structure.likelihood import PixelLikelihood
from ..structure.sampling_plan import Binding, Conv, Node, Plan, Span
from ..structure.sampling_records import (
    ABSENT,
    ActivationCode,
    GateCode,
    HeadRecord,
    NodeRecord,
    OpCode,
    SizesRecord,
    TapRecord,
    flatten,
    lay_out,
)
from ._library import extension


@functools.lru_cache(maxsize=4096)
def _keep_integers(values: tuple[int, ...]) -> Tensor:
    """Passes and degrees, which stay from call to call."""
    return torch.tensor(values, device="cpu")


class _Program:
    """A plan as records, for images of one width. The addresses of a call's own tensors are filled in at the call."""

    def __init__(self, plan: Plan, binding: Binding, width: int) -> None:
        self.plan = plan
        self.scalars: list[float] = []
        self.taps: list[TapRecord] = []
        # Of each address, that of integers which stay, or where in a binding its tensor is and which number of it.
        self._addresses: list[int] = []
        self._tensors: list[tuple[int, int, int, int]] = []
        self._kept: list[Tensor] = []
        layout, self.image_numbers = lay_out(plan, width)
        buffers = [
            record._replace(passes=self._add_integers(buffer.passes))
            for record, buffer in zip(layout, plan.buffers, strict=True)
        ]
        nodes = [
            NodeRecord(OpCode[node.op.upper()], plan.when(node), *node.dst, **self._encode_fields(node, binding))
            for node in plan.nodes
        ]
        self.records = flatten(buffers), flatten(nodes), flatten(self.taps)

    def addresses(self, binding: Binding) -> list[int]:
        """The addresses of one call, which last as long as ``binding`` does."""
        found = list(self._addresses)
        for place, part, index, offset in self._tensors:
            t = binding[part][index]
            assert t is not None
            found[place] = t.data_ptr() + offset * t.element_size()
        return found

    def _add_tensor(self, part: str, index: int, offset: int = 0) -> int:
        self._tensors.append((len(self._addresses), Binding._fields.index(part), index, offset))
        self._addresses.append(0)
        return len(self._addresses) - 1

    def _add_integers(self, values: tuple[int, ...] | None) -> int:
        if values is None:
            return ABSENT
        self._kept.append(_keep_integers(values))
        self._addresses.append(self._kept[-1].data_ptr())
        return len(self._addresses) - 1

    def _add_scalar(self, value: float | None) -> int:
        if value is None:
            return ABSENT
        self.scalars.append(value)
        return len(self.scalars) - 1

    def _encode_fields(self, node: Node, binding: Binding) -> dict[str, int]:
        """What a node's op needs besides its destination."""
        if node.op == "constant":
            is_map = binding.constants[node.index].dim() == 4
            return {"constant": self._add_tensor("constants", node.index), "is_map": int(is_map)}
        if node.op == "add" or node.op == "sub" or node.op == "mul":
            return _encode_source(node.a) | _encode_other(node.b)
        fields = _encode_source(node.src)
        if node.op == "conv":
            fields |= self._encode_conv(node, binding.biases[node.layer] is not None)
        elif node.op == "affine":
            fields |= {"alpha": self._add_scalar(node.alpha), "beta": self._add_scalar(node.beta)}
        elif node.op == "activation":
            fields |= {"activation": ActivationCode[node.name.upper()], "slope": self._add_scalar(node.slope)}
        elif node.op == "gate":
            fields |= {"gate": GateCode[node.kind.upper()]}
            if node.condition is not None:
                fields |= _encode_other(node.condition)
        return fields

    def _encode_conv(self, node: Conv, has_bias: bool) -> dict[str, int]:
        first = node.group * node.dst.channels
        first_tap = len(self.taps)
        self.taps += (TapRecord(*tap) for tap in node.taps)
        return {
            "weight": self._add_tensor("weights", node.layer, first * node.src.channels * node.kernel_area),
            "bias": self._add_tensor("biases", node.layer, first) if has_bias else ABSENT,
            "in_degrees": self._add_integers(node.in_degrees),
            "out_degrees": self._add_integers(node.out_degrees),
            "kernel_area": node.kernel_area,
            "origin_tap": node.origin_tap,
            "first_tap": first_tap,
            "taps": len(node.taps),
            "activation": ActivationCode[node.activation.upper()],
        }


# The programs of every plan by what else they depend on: the width, which layers have a bias, which constants are maps.
_PROGRAMS: WeakKeyDictionary[Plan, dict[Any, _Program]] = WeakKeyDictionary()


def _program_of(plan: Plan, binding: Binding, width: int) -> _Program:
    programs = _PROGRAMS.setdefault(plan, {})
    biases, maps = [b is not None for b in binding.biases], [c.dim() == 4 for c in binding.constants]
    key = width, *biases, *maps
    if key not in programs:
        programs[key] = _Program(plan, binding, width)
    return programs[key]


def _encode_source(span: Span) -> dict[str, int]:
    return {"src": span.buffer, "src_first": span.first, "src_channels": span.channels}


def _encode_other(span: Span) -> dict[str, int]:
    return {"other": span.buffer, "other_first": span.first}


def _run_cpp(
    plan: Plan,
    binding: Binding,
    head: HeadRecord,
    images: Tensor,
    given: Tensor | None,
    uniforms: Tensor | None,
    temperature: float,
    parameters: Tensor | None,
) -> None:
    n, channels, height, width = images.shape
    program = _program_of(plan, binding, width)
    sizes = SizesRecord(n, channels, height, width, plan.parameter_channels, plan.num_colors, program.image_numbers)
    kept = None if given is None else given.to(torch.uint8).contiguous()
    extension().causal_sampler(
        images.dtype == torch.float64, [*sizes], [*head], *program.records, program.addresses(binding),
        program.scalars, temperature, images.data_ptr(),
        *(0 if t is None else t.data_ptr() for t in (kept, uniforms, parameters)),
    )  # fmt: skip


def resolve(impl: str, like: Tensor, likelihood: PixelLikelihood, channels: int) -> str:
    """The implementation that samples.

    Raises:
        ValueError: ``impl`` is no implementation.
        RuntimeError: it cannot run here; the message says why.
    """
    chosen = backend.resolve(impl, like)
    reason = None
    if chosen == "triton" and like.dtype == torch.float64:
        reason = "it computes in float32"
    elif chosen != "reference" and likelihood.head(channels) is None:
        reason = f"it knows no likelihood {type(likelihood).__name__}"
    if reason is None:
        return chosen
    if impl == "auto":
        return "reference"
    raise RuntimeError(f"impl={impl!r} cannot run on {like.device.type} tensors here: {reason}")


@torch.no_grad()
def causal_sampler(
    plan: Plan,
    binding: Binding,
    likelihood: PixelLikelihood,
    images: Tensor,
    given: Tensor | None,
    uniforms: Tensor | None,
    *,
    temperature: float = 1.0,
    parameters: Tensor | None = None,
    impl: str = "auto",
) -> None:
    """Draws images in place, every activation of the network being computed once.

    Args:
        plan: the network, see :class:`fastvae.structure.sampling_plan.Plan`.
        binding: its weights and constants, of the dtype of ``images``.
        likelihood: how a pixel is drawn.
        images: ``(N, C, H, W)``, contiguous, float32 or float64; zero where it is not given.
        given: which numbers of ``images`` stay, bool of its shape; None for none.
        uniforms: ``(N, H W columns)`` in (0, 1), dtype of ``images``; None when all of ``images`` is given, of which
            the parameters are wanted.
        temperature: see the likelihood.
        parameters: receives the parameters of every pixel, ``(N, P, H, W)``, contiguous; or None.
        impl: see :mod:`fastvae.backend`.

    Raises:
        ValueError: ``impl`` is no implementation.
        RuntimeError: it cannot run here.

    Note:
        The tensors are those that :class:`fastvae.sampling.CausalSampler` makes, which checks what users give.
    """
    chosen = resolve(impl, images, likelihood, plan.in_channels)
    if images.numel() == 0:
        return
    if chosen == "reference":
        reference.causal_sampler(plan, binding, likelihood, images, given, uniforms, temperature, parameters)
        return
    numbers = likelihood.head(plan.in_channels)
    assert numbers is not None
    head = HeadRecord(*numbers)
    if chosen == "triton":
        # Imported here so that CPU users never load Triton.
        from ..kernels.causal_sampler import causal_sampler as sample

        sample(plan, binding, head, images, given, uniforms, temperature, parameters)
        return
    _run_cpp(plan, binding, head, images, given, uniforms, temperature, parameters)
