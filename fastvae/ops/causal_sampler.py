"""Sampling from a causal network whose plan is known: which implementation runs, and how the extension is told.

One call of the extension draws a whole batch:
``causal_sampler(is_double, sizes, buffers, nodes, addresses, scalars, head, images, given, uniforms, parameters)``.

- ``sizes``: N, C, H, W, P, number of colours, mode (0: sample; 1: all is given). ``images`` (N, C, H, W) is read and
  written, zero where nothing is given; ``given`` uint8 of the same shape, or 0; ``uniforms`` (N, H W columns), or 0;
  ``parameters`` (N, P, H, W), or 0: addresses of contiguous tensors.
- ``addresses`` and ``scalars`` are lists that the others name places in, -1 for what is absent. Scalar 0 is the
  temperature.
- ``buffers``, six integers each: channels, kind (0 row, 1 pixel), rows, margin left, margin right, passes (address of
  int64 (channels,), absent for rows). The image comes first, the parameters last.
- ``nodes``: op, length (of all), when (pass, -1 row, -2 several passes), destination, its first channel, its channels,
  and then by op:

  ==========================  =========================================================================================
  0 conv                      source, first, channels, weight, bias, in degrees, out degrees, activation, kernel area,
                              origin tap, number of taps, and for each tap its flat index, dy, dx
  1 add, 2 sub, 3 mul         first operand, its first channel, second operand, its first channel
  4 affine                    source, first, alpha, beta (scalars)
  5 activation                source, first, activation (0-6 as csrc/activation.h, 7 sigmoid, 8 leaky_relu), slope
                              (scalar)
  6 gate                      source, first, condition or -1, first, kind (0 tanh, 1 linear)
  7 copy                      source, first
  8 constant                  address, whether it is a map (N, channels, H, W) rather than (N, channels)
  ==========================  =========================================================================================

  A convolution has one node for each group; weight[o, i, tap] lies at (o inputs + i) area + tap from its address. At
  the origin tap a weight counts where in degree <= out degree.
- ``head``: kind (0 Bernoulli, 1 categorical, 2 mixture of logistics), columns, components, levels.

For each row the row nodes run; then for each pixel and each pass p the channels of pass p, after which the channels of
the image of colour p are drawn. Pass ``num_colors`` serves later pixels. Outside the image all buffers are zero.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import backend
from ..reference import causal_sampler as reference
from ..reference.gated_activation import KINDS
from ._layers import ACTIVATION_IDS
from ._library import extension

if TYPE_CHECKING:
    from ..structure.likelihood import PixelLikelihood
    from ..structure.sampling_plan import Binding, Conv, Node, Plan

_OPS = {
    name: code
    for code, name in enumerate(("conv", "add", "sub", "mul", "affine", "activation", "gate", "copy", "constant"))
}
_ACTIVATION_IDS = ACTIVATION_IDS | {"sigmoid": 7, "leaky_relu": 8}
_ABSENT = -1


@functools.lru_cache(maxsize=4096)
def _integers_of(values: tuple[int, ...]) -> Tensor:
    """Passes and degrees, which stay from call to call."""
    return torch.tensor(values, device="cpu")


class _Encoding:
    """A plan and the tensors of one call as integers; ``kept`` keeps alive what they point to."""

    def __init__(self, plan: Plan, binding: Binding, temperature: float) -> None:
        self.plan, self.binding = plan, binding
        self.addresses: list[int] = []
        self.scalars = [temperature]
        self.kept: list[Tensor] = []
        self.buffers = [number for index in range(len(plan.buffers)) for number in self._buffer(index)]
        self.nodes = [number for node in plan.nodes for number in self._node(node)]

    def _address(self, t: Tensor, offset: int = 0) -> int:
        self.kept.append(t)
        self.addresses.append(t.data_ptr() + offset * t.element_size())
        return len(self.addresses) - 1

    def _integers(self, values: tuple[int, ...] | None) -> int:
        return _ABSENT if values is None else self._address(_integers_of(values))

    def _scalar(self, value: float | None) -> int:
        if value is None:
            return _ABSENT
        self.scalars.append(value)
        return len(self.scalars) - 1

    def _buffer(self, index: int) -> list[int]:
        b = self.plan.buffers[index]
        return [b.channels, int(b.kind == "pixel"), b.rows, b.left, b.right, self._integers(b.passes)]

    def _node(self, node: Node) -> list[int]:
        fields = self._fields(node)
        return [_OPS[node.op], 6 + len(fields), self.plan.when(node), *node.dst, *fields]

    def _fields(self, node: Node) -> list[int]:
        if node.op == "conv":
            return self._conv(node)
        if node.op == "affine":
            return [*node.src[:2], self._scalar(node.alpha), self._scalar(node.beta)]
        if node.op == "activation":
            return [*node.src[:2], _ACTIVATION_IDS[node.name], self._scalar(node.slope)]
        if node.op == "gate":
            condition = (_ABSENT, 0) if node.condition is None else node.condition[:2]
            return [*node.src[:2], *condition, KINDS.index(node.kind)]
        if node.op == "copy":
            return [*node.src[:2]]
        if node.op == "constant":
            value = self.binding.constants[node.index]
            return [self._address(value), int(value.dim() == 4)]
        return [*node.a[:2], *node.b[:2]]

    def _conv(self, node: Conv) -> list[int]:
        first = node.group * node.dst.channels
        bias = self.binding.biases[node.layer]
        return [
            *node.src,
            self._address(self.binding.weights[node.layer], first * node.src.channels * node.kernel_area),
            _ABSENT if bias is None else self._address(bias, first),
            self._integers(node.in_degrees),
            self._integers(node.out_degrees),
            _ACTIVATION_IDS[node.activation],
            node.kernel_area,
            node.origin_tap,
            len(node.taps),
            *(number for tap in node.taps for number in tap),
        ]


def _cpp(
    plan: Plan,
    binding: Binding,
    head: list[int],
    images: Tensor,
    given: Tensor | None,
    uniforms: Tensor | None,
    temperature: float,
    parameters: Tensor | None,
) -> None:
    encoding = _Encoding(plan, binding, temperature)
    kept = None if given is None else given.to(torch.uint8).contiguous()
    extension().causal_sampler(
        images.dtype == torch.float64,
        [*images.shape, plan.parameter_channels, plan.num_colors, int(uniforms is None)],
        encoding.buffers, encoding.nodes, encoding.addresses, encoding.scalars, head, images.data_ptr(),
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
    head = likelihood.head(plan.in_channels)
    assert head is not None
    if chosen == "triton":
        # Imported here so that CPU users never load Triton.
        from ..kernels.causal_sampler import causal_sampler as sample

        sample(plan, binding, head, images, given, uniforms, temperature, parameters)
        return
    _cpp(plan, binding, head, images, given, uniforms, temperature, parameters)
