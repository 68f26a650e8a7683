"""How a pixel is drawn from a network's parameters, and how likely it is: Bernoulli, categorical, logistic mixture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from ..ops.logistic_mixture import check_levels, logistic_mixture_log_prob
from ..precision import check_dtype, compute_dtype, is_integral
from ..reference.logistic_mixture import PARAMS_PER_COMPONENT, logistic_mixture_sample
from ..structure.integers import integer
from ..structure.sampling_records import HeadCode, HeadRecord

__all__ = ["LIKELIHOODS", "Bernoulli", "Categorical", "LogisticMixture", "PixelLikelihood", "resolve"]


class PixelLikelihood(ABC):
    """The distribution of a pixel given a network's parameters there.

    Attributes:
        per_channel: whether equal contiguous parts of the parameters belong to one channel of the image each, which may
            then be drawn in turn; otherwise all channels of a pixel are drawn together.
        levels: number of values that a pixel takes, or None where it takes any number. Images of an integer dtype hold
            levels k, 0 to ``levels`` - 1, in place of values.
    """

    per_channel: ClassVar[bool] = True
    levels: int | None = None

    @abstractmethod
    def parameter_channels(self, channels: int) -> int:
        """Parameters of a pixel with ``channels`` channels."""

    def columns(self, channels: int) -> int:
        """Uniform numbers that a pixel takes; with ``per_channel`` one for each channel."""
        return channels

    def head(self, channels: int) -> Sequence[int] | None:
        """A :class:`fastvae.structure.sampling_records.HeadRecord`; None where only the reference draws."""
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

    def check_dtype(self, name: str, dtype: torch.dtype) -> None:  # noqa: B027
        """Raises a ValueError, which calls the images by ``name``, unless ``dtype`` tells the levels apart."""

    def to_values(self, codes: Tensor, dtype: torch.dtype = torch.float32, *, name: str = "codes") -> Tensor:
        """The values, of ``dtype``, of integer levels ``codes``.

        Raises:
            TypeError: ``codes`` holds no integers, or the likelihood has no levels.
            ValueError: a level is out of range; the message calls ``codes`` by ``name``.
        """
        raise TypeError(
            f"{name} must be a floating-point tensor: {type(self).__name__} has no levels that integers could count, "
            f"got {codes.dtype}"
        )

    def to_codes(self, x: Tensor, *, name: str = "x") -> Tensor:
        """The integer levels, int64, that values ``x`` are nearest to; integers are levels already.

        Raises:
            TypeError: the likelihood has no levels.
            ValueError: the dtype of ``x`` does not tell the levels apart; the message calls ``x`` by ``name``.
        """
        raise TypeError(f"{name} cannot be turned into integers: {type(self).__name__} has no levels")

    def to_numbers(self, x: Tensor, dtype: torch.dtype, *, name: str = "x") -> Tensor:
        """Images as values of ``dtype``: levels become values, other numbers are converted.

        Raises:
            TypeError: ``x`` holds integers, and the likelihood has no levels.
            ValueError: a level is out of range, or the dtype of ``x`` does not tell the levels apart.
        """
        return self.to_values(x, dtype, name=name) if is_integral(x) else x.to(dtype)


class _Levels(PixelLikelihood):
    """Pixels of equally spaced levels, in [0, 1] or, ``symmetric``, in [-1, 1]."""

    symmetric: ClassVar[bool] = False
    levels: int = 2

    def check_dtype(self, name: str, dtype: torch.dtype) -> None:
        check_dtype(name, dtype, self.levels, symmetric=self.symmetric)

    def to_values(self, codes: Tensor, dtype: torch.dtype = torch.float32, *, name: str = "codes") -> Tensor:
        if not is_integral(codes):
            raise TypeError(f"{name} must be an integer tensor, got {codes.dtype}")
        if not _is_symbolic(codes):
            self._check_codes(name, codes)
        return self._of_levels(codes.to(compute_dtype(dtype))).to(dtype)

    def to_codes(self, x: Tensor, *, name: str = "x") -> Tensor:
        return x.long() if is_integral(x) else torch.round(self._to_levels(x, name)).long()

    def to_numbers(self, x: Tensor, dtype: torch.dtype, *, name: str = "x") -> Tensor:
        if is_integral(x):
            return self.to_values(x, dtype, name=name)
        self.check_dtype(name, x.dtype)
        if x.dtype not in (torch.float32, torch.float64) and x.dtype != dtype:
            # The level that half precision rounded.
            return self._of_levels(torch.round(self._to_levels(x, name)).to(dtype))
        return x.to(dtype)

    def _of_levels(self, levels: Tensor) -> Tensor:
        return levels * (2.0 / (self.levels - 1)) - 1.0 if self.symmetric else levels / (self.levels - 1)

    def _to_levels(self, x: Tensor, name: str) -> Tensor:
        self.check_dtype(name, x.dtype)
        x = x.to(compute_dtype(x.dtype))
        return (x + 1.0) * (0.5 * (self.levels - 1)) if self.symmetric else x * (self.levels - 1)

    def _check_codes(self, name: str, codes: Tensor) -> None:
        if codes.dtype == torch.bool:
            if self.levels != 2:
                raise TypeError(f"{name} must hold integers 0 to {self.levels - 1} or values, got torch.bool")
            return
        if codes.numel():
            least, most = codes.long().aminmax()
            if least < 0 or most >= self.levels:
                wrong = int(least if least < 0 else most)
                raise ValueError(f"{name} must hold integers 0 to {self.levels - 1}, the levels, got {wrong}")

    def check(self, name: str, x: Tensor) -> None:
        if is_integral(x):
            self._check_codes(name, x)
            return
        self.check_dtype(name, x.dtype)
        self._check_values(name, x)

    @abstractmethod
    def _check_values(self, name: str, x: Tensor) -> None:
        """As :meth:`check`, of floating-point numbers."""


def _is_symbolic(x: Tensor) -> bool:
    """Whether the numbers of ``x`` cannot be looked at."""
    return (
        torch.compiler.is_compiling()
        or x.is_meta
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
    )


def _refuse(name: str, what: str, x: Tensor, allowed: Tensor) -> None:
    wrong = x[~(allowed | x.isnan())]
    if wrong.numel():
        raise ValueError(f"{name} must be {what}, or NaN where a pixel is to be drawn, got {wrong[0].item():g}")


def _same_images(x: Tensor, parameters: Tensor, count: int) -> None:
    expected = (x.shape[0], count, *x.shape[2:])
    if parameters.shape != expected:
        raise ValueError(
            f"parameters must have shape {expected} for x of {tuple(x.shape)}, got {tuple(parameters.shape)}"
        )


class Bernoulli(_Levels):
    """Pixels 0 or 1, of any dtype; a parameter is the logit of 1, divided by the temperature."""

    def parameter_channels(self, channels: int) -> int:
        return channels

    def head(self, channels: int) -> HeadRecord:
        return HeadRecord(HeadCode.BERNOULLI, channels, 1, 2)

    def draw(self, parameters: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        return (uniforms < torch.sigmoid(parameters / temperature)).to(parameters.dtype)

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        _same_images(x, parameters, x.shape[1])
        wide = parameters.to(compute_dtype(parameters.dtype))
        x = self.to_values(x, wide.dtype, name="x") if is_integral(x) else x.to(wide)
        terms = functional.binary_cross_entropy_with_logits(wide, x, reduction="none")
        return -terms.sum((1, 2, 3))

    def _check_values(self, name: str, x: Tensor) -> None:
        _refuse(name, "0 or 1", x, (x == 0) | (x == 1))


class Categorical(_Levels):
    """Pixels k / (levels - 1); parameters are the logits of the levels of the first channel, of the second, ...

    The temperature divides the logits; the level is the first one up to which the probabilities add up to more than
    the uniform number.

    Args:
        levels: number of values, at least 2.

    Raises:
        TypeError: ``levels`` is no integer.
        ValueError: ``levels`` is below 2.

    Note:
        Images may hold the integers k in place of the values. Values of a half precision are read where it tells all
        of them apart, up to 257 levels in bfloat16 and 2049 in float16; images of more levels must be integers, float32
        or float64. The values of 8-bit images are read in every dtype.

    Example:
        >>> likelihood, codes = Categorical(5), torch.tensor([0, 1, 4])
        >>> likelihood.to_values(codes), likelihood.to_codes(likelihood.to_values(codes))
        (tensor([0.0000, 0.2500, 1.0000]), tensor([0, 1, 4]))
    """

    def __init__(self, levels: int = 256) -> None:
        self.levels = integer("levels", levels, 2)

    def parameter_channels(self, channels: int) -> int:
        return channels * self.levels

    def head(self, channels: int) -> HeadRecord:
        return HeadRecord(HeadCode.CATEGORICAL, channels, 1, self.levels)

    def draw(self, parameters: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        logits = parameters.unflatten(-1, (-1, self.levels)) / temperature
        cumulated = torch.exp(logits - logits.amax(-1, keepdim=True)).cumsum(-1)
        level = (cumulated <= uniforms.unsqueeze(-1) * cumulated[..., -1:]).sum(-1).clamp(max=self.levels - 1)
        return level.to(parameters.dtype) / (self.levels - 1)

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        _same_images(x, parameters, self.parameter_channels(x.shape[1]))
        wide = parameters.to(compute_dtype(parameters.dtype)).unflatten(1, (x.shape[1], self.levels))
        level = self.to_codes(x).unsqueeze(2)
        log_p = functional.log_softmax(wide, 2)
        try:
            return log_p.gather(2, level).sum((1, 2, 3, 4))
        except RuntimeError:
            # Values are looked at only once they have failed.
            self.check("x", x)
            raise

    def _check_values(self, name: str, x: Tensor) -> None:
        scaled = self._to_levels(x, name)
        # Half precision rounds levels by more than the hundredth of a step that is allowed otherwise.
        allowance = (torch.finfo(x.dtype).eps * scaled.abs()).clamp(min=1e-2)
        allowed = (x >= 0) & (x <= 1) & ((scaled - scaled.round()).abs() < allowance)
        _refuse(name, f"one of the levels k / {self.levels - 1} in [0, 1]", x, allowed)


class LogisticMixture(_Levels):
    """Pixels 2k / (levels - 1) - 1 of one or three channels, by a discretised mixture of logistics.

    See :func:`fastvae.functional.logistic_mixture_log_prob` for the parameters. The temperature divides the mixture's
    logits and multiplies the logistics' scales.

    Args:
        components: logistics of a mixture, at least 1.
        levels: number of values of a channel, 2 to 65536.

    Raises:
        TypeError: an argument is no integer.
        ValueError: an argument is out of range.

    Note:
        Images may hold the integers k in place of the values. Values of a half precision are taken to the nearest level
        where it tells all of them apart, up to 515 levels in bfloat16 and 4099 in float16; images of more levels must
        be integers, float32 or float64. The values of 8-bit images are read in every dtype.
    """

    per_channel: ClassVar[bool] = False
    symmetric: ClassVar[bool] = True

    def __init__(self, components: int = 10, levels: int = 256) -> None:
        self.components, self.levels = integer("components", components, 1), check_levels(levels)

    def parameter_channels(self, channels: int) -> int:
        if channels not in PARAMS_PER_COMPONENT:
            raise ValueError(f"in_channels must be 1 or 3 for a mixture of logistics, got {channels}")
        return PARAMS_PER_COMPONENT[channels] * self.components

    def columns(self, channels: int) -> int:
        return 1 + channels

    def head(self, channels: int) -> HeadRecord:
        return HeadRecord(HeadCode.LOGISTIC_MIXTURE, 1 + channels, self.components, self.levels)

    def draw(self, parameters: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        return logistic_mixture_sample(parameters, uniforms, temperature, self.levels)

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        if is_integral(x) or x.dtype not in (torch.float32, torch.float64):
            x = self.to_numbers(x, compute_dtype(parameters.dtype))
        return logistic_mixture_log_prob(x, parameters, levels=self.levels)

    def _check_values(self, name: str, x: Tensor) -> None:
        _refuse(name, "in [-1, 1]", x, (x >= -1) & (x <= 1))


LIKELIHOODS: dict[str, Callable[[], PixelLikelihood]] = {
    "bernoulli": Bernoulli,
    "categorical": Categorical,
    "logistic_mixture": LogisticMixture,
}


def resolve(likelihood: str | PixelLikelihood) -> PixelLikelihood:
    """The likelihood of a name, with its default levels and components; a likelihood itself is returned as it is.

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
