"""How a pixel is drawn from a network's parameters, and how likely it is: Bernoulli, categorical, logistic mixture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from ..ops.logistic_mixture import logistic_mixture_log_prob
from ..reference.diag_gaussian import compute_dtype
from ..reference.logistic_mixture import PARAMS_PER_COMPONENT, logistic_mixture_sample

__all__ = ["LIKELIHOODS", "Bernoulli", "Categorical", "LogisticMixture", "PixelLikelihood", "resolve"]


class PixelLikelihood(ABC):
    """The distribution of a pixel given a network's parameters there.

    Attributes:
        per_channel: whether equal contiguous parts of the parameters belong to one channel of the image each, which may
            then be drawn in turn; otherwise all channels of a pixel are drawn together.
    """

    per_channel: ClassVar[bool] = True

    @abstractmethod
    def parameter_channels(self, channels: int) -> int:
        """Parameters of a pixel with ``channels`` channels."""

    def columns(self, channels: int) -> int:
        """Uniform numbers that a pixel takes; with ``per_channel`` one for each channel."""
        return channels

    def head(self, channels: int) -> list[int] | None:
        """What the C++ sampler calls this likelihood: kind, columns, components, levels; None where it has none."""
        return None

    @abstractmethod
    def draw(self, parameters: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        """Pixels (N, C) from parameters (N, P) and uniforms (N, columns) in (0, 1)."""

    @abstractmethod
    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        """Log-probability in nats, (N,), of images (N, C, H, W) under parameters (N, P, H, W)."""

    @abstractmethod
    def check(self, name: str, x: Tensor) -> None:
        """Raises a ValueError, which calls ``x`` by ``name``, unless its numbers can be drawn or are NaN."""


def _refused(name: str, what: str, x: Tensor, allowed: Tensor) -> None:
    wrong = x[~(allowed | x.isnan())]
    if wrong.numel():
        raise ValueError(f"{name} must be {what}, or NaN where a pixel is to be drawn, got {wrong[0].item():g}")


def _same_images(x: Tensor, parameters: Tensor, count: int) -> None:
    expected = (x.shape[0], count, *x.shape[2:])
    if parameters.shape != expected:
        raise ValueError(
            f"parameters must have shape {expected} for x of {tuple(x.shape)}, got {tuple(parameters.shape)}"
        )


class Bernoulli(PixelLikelihood):
    """Pixels 0 or 1; a parameter is the logit of 1, divided by the temperature."""

    def parameter_channels(self, channels: int) -> int:
        return channels

    def head(self, channels: int) -> list[int]:
        return [0, channels, 1, 2]

    def draw(self, parameters: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        return (uniforms < torch.sigmoid(parameters / temperature)).to(parameters.dtype)

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        _same_images(x, parameters, x.shape[1])
        wide = parameters.to(compute_dtype(parameters.dtype))
        terms = functional.binary_cross_entropy_with_logits(wide, x.to(wide), reduction="none")
        return -terms.sum((1, 2, 3))

    def check(self, name: str, x: Tensor) -> None:
        _refused(name, "0 or 1", x, (x == 0) | (x == 1))


class Categorical(PixelLikelihood):
    """Pixels k / (levels - 1); parameters are the logits of the levels of the first channel, of the second, ...

    Logits are divided by the temperature; the level is the first one up to which the probabilities add up to more than
    the uniform number.
    """

    def __init__(self, levels: int = 256) -> None:
        if levels < 2:
            raise ValueError(f"levels must be >= 2, got {levels}")
        self.levels = levels

    def parameter_channels(self, channels: int) -> int:
        return channels * self.levels

    def head(self, channels: int) -> list[int]:
        return [1, channels, 1, self.levels]

    def draw(self, parameters: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        logits = parameters.unflatten(-1, (-1, self.levels)) / temperature
        cumulated = torch.exp(logits - logits.amax(-1, keepdim=True)).cumsum(-1)
        level = (cumulated <= uniforms.unsqueeze(-1) * cumulated[..., -1:]).sum(-1).clamp(max=self.levels - 1)
        return level.to(parameters.dtype) / (self.levels - 1)

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        _same_images(x, parameters, self.parameter_channels(x.shape[1]))
        wide = parameters.to(compute_dtype(parameters.dtype)).unflatten(1, (x.shape[1], self.levels))
        level = torch.round(x.float() * (self.levels - 1)).long().unsqueeze(2)
        log_p = functional.log_softmax(wide, 2)
        try:
            return log_p.gather(2, level).sum((1, 2, 3, 4))
        except RuntimeError:
            # Values are looked at only once they have failed.
            self.check("x", x)
            raise

    def check(self, name: str, x: Tensor) -> None:
        scaled = x * (self.levels - 1)
        allowed = (x >= 0) & (x <= 1) & ((scaled - scaled.round()).abs() < 1e-2)
        _refused(name, f"one of the levels k / {self.levels - 1} in [0, 1]", x, allowed)


class LogisticMixture(PixelLikelihood):
    """Pixels 2k / (levels - 1) - 1 of one or three channels, by a discretised mixture of logistics.

    See :func:`fastvae.functional.logistic_mixture_log_prob` for the parameters. The temperature divides the mixture's
    logits and multiplies the logistics' scales.
    """

    per_channel: ClassVar[bool] = False

    def __init__(self, components: int = 10, levels: int = 256) -> None:
        if components < 1:
            raise ValueError(f"components must be >= 1, got {components}")
        if levels < 2:
            raise ValueError(f"levels must be >= 2, got {levels}")
        self.components, self.levels = components, levels

    def parameter_channels(self, channels: int) -> int:
        if channels not in PARAMS_PER_COMPONENT:
            raise ValueError(f"in_channels must be 1 or 3 for a mixture of logistics, got {channels}")
        return PARAMS_PER_COMPONENT[channels] * self.components

    def columns(self, channels: int) -> int:
        return 1 + channels

    def head(self, channels: int) -> list[int]:
        return [2, 1 + channels, self.components, self.levels]

    def draw(self, parameters: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        return logistic_mixture_sample(parameters, uniforms, temperature, self.levels)

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        return logistic_mixture_log_prob(x, parameters, levels=self.levels)

    def check(self, name: str, x: Tensor) -> None:
        _refused(name, "in [-1, 1]", x, (x >= -1) & (x <= 1))


LIKELIHOODS: dict[str, Callable[[], PixelLikelihood]] = {
    "bernoulli": Bernoulli,
    "categorical": Categorical,
    "logistic_mixture": LogisticMixture,
}


def resolve(likelihood: str | PixelLikelihood) -> PixelLikelihood:
    """The likelihood of a name, with its default levels and components; an object stands for itself.

    Raises:
        TypeError: it is neither a name nor a :class:`PixelLikelihood`.
        ValueError: there is no likelihood of that name.

    Example:
        >>> resolve("categorical").parameter_channels(3)
        768
    """
    if isinstance(likelihood, PixelLikelihood):
        return likelihood
    if not isinstance(likelihood, str):
        raise TypeError(f"likelihood must be a name or a PixelLikelihood, got {type(likelihood).__name__}")
    if likelihood not in LIKELIHOODS:
        raise ValueError(f"likelihood must be one of {', '.join(LIKELIHOODS)}, got {likelihood!r}")
    return LIKELIHOODS[likelihood]()
