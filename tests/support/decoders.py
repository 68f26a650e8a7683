"""Random decoders of dense layers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor


class Decoder:
    """The layers between ``widths``; every second one has no bias.

    Attributes:
        tensors: weights, then the biases that there are.
        named: the options of the ops.
    """

    def __init__(self, widths: Sequence[int], activation: str = "relu", likelihood: str = "bernoulli") -> None:
        self.activation, self.likelihood = activation, likelihood
        self.named = {"activation": activation, "likelihood": likelihood}
        self.has_bias = [i % 2 == 0 for i in range(len(widths) - 1)]
        pairs = list(itertools.pairwise(widths))
        self.tensors = [torch.randn(out, ins) / ins**0.5 for ins, out in pairs]
        self.tensors += [0.3 * torch.randn(out) for (_, out), there in zip(pairs, self.has_bias, strict=True) if there]

    def to(self, dtype: torch.dtype, device: str = "cpu") -> Decoder:
        """The same decoder in another dtype."""
        moved = Decoder((1, 1), self.activation, self.likelihood)
        moved.has_bias, moved.tensors = self.has_bias, [t.to(device, dtype) for t in self.tensors]
        return moved

    def split(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor | None]]:
        """Weights and biases; None for an absent bias."""
        count = len(self.has_bias)
        biases = iter(tensors[count:])
        return list(tensors[:count]), [next(biases) if there else None for there in self.has_bias]

    @property
    def layers(self) -> tuple[list[Tensor], list[Tensor | None]]:
        return self.split(self.tensors)
