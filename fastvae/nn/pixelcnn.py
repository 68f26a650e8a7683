"""PixelCNN, and what networks over pixels share: a likelihood, its log-probability and a sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..likelihoods.pixels import resolve
from ..precision import is_integral
from ..sampling.compiled import enrol, sample_in_graph
from ..sampling.sampler import CausalSampler
from ..structure.convolution import pair
from ..structure.integers import integer, integers
from .gated_conv import Conditioning, add_condition, check_context_sizes, colors, degrees
from .masked_conv2d import MaskedConv2d

__all__ = ["PixelCNN", "PixelNetwork"]


class PixelNetwork(nn.Module):
    """A network in which the parameters of a pixel depend on the pixels before it; subclasses write :meth:`forward`.

    A subclass passes the images that its forward takes to :meth:`to_numbers` first.

    Attributes:
        likelihood: the object of :mod:`fastvae.likelihoods.pixels` that reads the parameters.
        num_colors: in how many steps the channels of one pixel are drawn: all at once from a mixture of logistics,
            since its coefficients tie them, otherwise each after those before it.
        parameter_channels: number of parameters of a pixel.

    Note:
        Images of an integer dtype hold the likelihood's levels k, from 0; the network sees their values, and the
        likelihood the integers. Networks in half precision take images in float32, too.
    """

    # Slots, which are no part of the module's state: samplers compare a network's attributes from call to call.
    __slots__ = ("_number", "_read")
    _number: str

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_layers: int,
        *,
        context_features: int = 0,
        context_channels: int = 0,
        likelihood: Any = "bernoulli",
        impl: str = "auto",
    ) -> None:
        super().__init__()
        object.__setattr__(self, "_number", enrol(self))
        in_channels, hidden_channels, _ = integers(
            1, in_channels=in_channels, hidden_channels=hidden_channels, num_layers=num_layers
        )
        self.in_channels, self.hidden_channels, self.impl = in_channels, hidden_channels, impl
        self.context_features, self.context_channels = check_context_sizes(context_features, context_channels)
        self.likelihood = resolve(likelihood)
        # Raises where the likelihood knows no images of so many channels.
        self.likelihood.parameter_channels(in_channels)
        self.num_colors = in_channels if self.likelihood.per_channel else 1
        if hidden_channels % self.num_colors:
            raise ValueError(
                f"hidden_channels must be a multiple of in_channels, {in_channels}, whose values are drawn one after "
                f"another, got {hidden_channels}"
            )

    @property
    def parameter_channels(self) -> int:
        return int(self.likelihood.parameter_channels(self.in_channels))

    def to_numbers(self, x: Tensor) -> Tensor:
        """Images as the layers take them: integer levels as values, in the dtype of the parameters.

        Raises:
            TypeError: ``x`` holds integers, and the likelihood has no levels.
            ValueError: a level is out of range.
        """
        # While the network is recorded there are no numbers.
        if not isinstance(x, Tensor) or x.dtype in (torch.float16, torch.bfloat16):
            return x
        floating = [p.dtype for p in self.parameters() if p.is_floating_point()]
        dtype = floating[0] if floating else torch.get_default_dtype()
        if is_integral(x):
            numbers: Tensor = self.likelihood.to_values(x, dtype, name="x")
            return numbers
        return x.to(dtype) if dtype in (torch.float16, torch.bfloat16) else x

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-probability of images.

        Args:
            x: images, ``(N, C, H, W)``, of the values that the likelihood knows, or of its integer levels.
            context: their context, if the network has one.

        Returns:
            ``(N,)``, nats.

        Raises:
            TypeError: ``x`` holds integers, and the likelihood has no levels.
            ValueError: images or context of the wrong size, a level out of range, or images of a dtype that does not
                tell the likelihood's levels apart.
        """
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x must have shape (N, {self.in_channels}, H, W), got {tuple(x.shape)}")
        if context is not None and context.shape[:1] != x.shape[:1]:
            raise ValueError(f"context must belong to {x.shape[0]} images, got shape {tuple(context.shape)}")
        self.likelihood.check_dtype("x", x.dtype)
        log_prob: Tensor = self.likelihood.log_prob(x, self(x, context))
        return log_prob

    def sample(
        self,
        n: int,
        image_size: Sequence[int],
        *,
        context: Tensor | None = None,
        given: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draws images at about the cost of one forward pass, see :class:`fastvae.sampling.CausalSampler`.

        Args:
            n: number of images.
            image_size: their height and width.
            context: context of each image, if the network has one.
            given: known pixels, ``(n, C, H, W)``, and NaN where a pixel is to be drawn. Integers are the likelihood's
                levels, all of them known.
            temperature: divides logits, and multiplies scales; 1 draws from the network's distribution.
            generator: source of the seed.

        Returns:
            Images, ``(n, C, H, W)``.

        Raises:
            ValueError: sizes that do not fit, a temperature that is not positive, or given pixels out of range.
        """
        if torch.compiler.is_compiling():
            return sample_in_graph(
                self._number, self, n, self.in_channels, image_size, context=context, given=given,
                temperature=temperature, generator=generator,
            )[0]  # fmt: skip
        images: Tensor = self._sampler().sample(
            n, image_size, context=context, given=given, temperature=temperature, generator=generator
        )
        return images

    def _sampler(self) -> Any:
        """The sampler of the network as it is now."""
        sampler = getattr(self, "_read", None)
        if sampler is None:
            sampler = CausalSampler(self, self.likelihood, in_channels=self.in_channels, impl=self.impl)
            object.__setattr__(self, "_read", sampler)
        sampler.likelihood, sampler.in_channels, sampler.impl = self.likelihood, self.in_channels, self.impl
        return sampler

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        object.__setattr__(self, "_number", enrol(self))

    def extra_repr(self) -> str:
        return f"parameter_channels={self.parameter_channels}, num_colors={self.num_colors}"


class PixelHead(nn.Module):
    """Two 1 x 1 layers with rectifiers before them, and a context's share in both, from hidden maps to parameters."""

    def __init__(
        self,
        in_channels: int,
        head_channels: int,
        out_channels: int,
        *,
        num_colors: int,
        context_features: int,
        context_channels: int,
        weight_norm: bool,
        **options: Any,
    ) -> None:
        super().__init__()
        head_channels = integer("head_channels", head_channels)
        if head_channels < 1 or head_channels % num_colors:
            raise ValueError(
                f"head_channels must be a multiple, at least 1, of the {num_colors} colours, got {head_channels}"
            )
        widths = (in_channels, head_channels, out_channels)
        of_width = [colors(width, num_colors) for width in widths]
        self.first, self.second = (
            MaskedConv2d(
                widths[i], widths[i + 1], 1, mask_type="B", padding="same", weight_norm=weight_norm,
                **degrees(of_width[i], of_width[i + 1]), **options,
            )
            for i in range(2)
        )  # fmt: skip
        self.first_condition, self.second_condition = (
            Conditioning(width, context_features, context_channels, **options) for width in widths[1:]
        )

    def forward(self, h: Tensor, context: Tensor | None) -> Tensor:
        h = add_condition(self.first(functional.relu(h)), self.first_condition(context))
        return add_condition(self.second(functional.relu(h)), self.second_condition(context))


class _Residual(nn.Module):
    """1 x 1, k x k and 1 x 1 convolutions, of half the width within, each after a rectifier."""

    def __init__(
        self,
        channels: int,
        kernel_size: tuple[int, int],
        num_colors: int,
        context_features: int,
        context_channels: int,
        weight_norm: bool,
        **options: Any,
    ) -> None:
        super().__init__()
        outer, inner = (colors(width, num_colors) for width in (2 * channels, channels))
        shared = {"mask_type": "B", "padding": "same", "weight_norm": weight_norm, **options}
        self.down = MaskedConv2d(2 * channels, channels, 1, activation="relu", **degrees(outer, inner), **shared)
        self.middle = MaskedConv2d(channels, channels, kernel_size, **degrees(inner, inner), **shared)
        self.condition = Conditioning(channels, context_features, context_channels, **options)
        self.up = MaskedConv2d(channels, 2 * channels, 1, **degrees(inner, outer), **shared)

    def forward(self, h: Tensor, context: Tensor | None) -> Tensor:
        middle = add_condition(self.middle(self.down(functional.relu(h))), self.condition(context))
        return h + self.up(functional.relu(middle))


class PixelCNN(PixelNetwork):
    r"""PixelCNN: :math:`p(x) = \prod_i p(x_i \mid x_{<i})` over pixels in raster order, by masked convolutions.

    A first convolution of type A, residual blocks of type B, 1 x 1 (2h to h), k x k, 1 x 1 (h to 2h), and two 1 x 1
    layers; a rectifier precedes every convolution but the first.

    Args:
        in_channels: channels C of an image.
        hidden_channels: width h within a block; between blocks there are 2h channels.
        num_layers: layers: the convolution of type A, then the blocks.
        kernel_size: k of the blocks, odd.
        first_kernel_size: that of the first layer.
        context_features: width of a context vector, 0 for none.
        context_channels: channels of a context map of the image's size, 0 for none; not together with
            ``context_features``.
        likelihood: ``"bernoulli"``, ``"categorical"`` (256 levels, values k / 255), ``"logistic_mixture"`` (10
            components, values in [-1, 1]), or an object of :mod:`fastvae.likelihoods.pixels`.
        head_channels: width between the two last layers; None: ``hidden_channels``.
        weight_norm: whether weights are normalised, with learned gains; see :func:`initialize_from_data`.
        impl: implementation, see :mod:`fastvae.backend`.

    Shape:
        ``x`` ``(N, C, H, W)``, values or integer levels, and ``context`` ``(N, context_features)``,
        ``(N, context_channels, H, W)`` or None to the likelihood's parameters, ``(N, P, H, W)``.

    Raises:
        TypeError: a size is no integer.
        ValueError: sizes, names or colours that do not fit; a context missing, unexpected or of another size.

    Note:
        Stacked masked convolutions miss a wedge of earlier pixels to the upper right, the blind spot;
        :class:`GatedPixelCNN` sees it. The channels of a pixel see each other in order, with the Bernoulli and the
        categorical likelihood; ``hidden_channels`` must then be a multiple of C.

    Reference:
        *Pixel Recurrent Neural Networks* (van den Oord, Kalchbrenner, Kavukcuoglu, 2016).

    Example:
        >>> net = PixelCNN(1, 16, 3)
        >>> x = torch.bernoulli(torch.full((2, 1, 8, 8), 0.5))
        >>> net(x).shape, net.log_prob(x).shape
        (torch.Size([2, 1, 8, 8]), torch.Size([2]))
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_layers: int,
        kernel_size: int = 3,
        *,
        first_kernel_size: int = 7,
        context_features: int = 0,
        context_channels: int = 0,
        likelihood: Any = "bernoulli",
        head_channels: int | None = None,
        weight_norm: bool = False,
        impl: str = "auto",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        context: dict[str, Any] = {"context_features": context_features, "context_channels": context_channels}
        super().__init__(in_channels, hidden_channels, num_layers, likelihood=likelihood, impl=impl, **context)
        options = {"impl": impl, "device": device, "dtype": dtype}
        in_channels, width, num_layers = self.in_channels, 2 * self.hidden_channels, integer("num_layers", num_layers)
        kernel = pair("kernel_size", kernel_size, 1)
        self.first = MaskedConv2d(
            in_channels, width, pair("first_kernel_size", first_kernel_size, 1), mask_type="A", padding="same",
            weight_norm=weight_norm,
            **degrees(colors(in_channels, self.num_colors), colors(width, self.num_colors)), **options,
        )  # fmt: skip
        self.condition = Conditioning(width, **context, **options)
        self.blocks = nn.ModuleList(
            _Residual(self.hidden_channels, kernel, self.num_colors, weight_norm=weight_norm, **context, **options)
            for _ in range(num_layers - 1)
        )
        self.head = PixelHead(
            width,
            self.hidden_channels if head_channels is None else head_channels,
            self.parameter_channels,
            num_colors=self.num_colors,
            weight_norm=weight_norm,
            **context,
            **options,
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        h = add_condition(self.first(self.to_numbers(x)), self.condition(context))
        for block in self.blocks:
            h = block(h, context)
        return self.head(h, context)
