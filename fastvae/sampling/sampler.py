"""Exact sampling of images from a causal network at about the cost of one forward pass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from .. import backend
from ..ops.causal_sampler import causal_sampler
from ..reference.diag_gaussian import compute_dtype, full_precision
from ..rng import draw_seed, philox_uniform
from ..sampling_plan import Binding, Plan
from .graph import Recording, forms, record
from .likelihoods import PixelLikelihood, resolve
from .trace import LEAVES, lower

__all__ = ["CausalSampler"]


class CausalSampler:
    r"""Draws images from a network of causal layers, pixel by pixel, every activation being computed once.

    The network's forward is read once and turned into a plan; a call then walks over the pixels with caches of the rows
    that are still needed. It is exact: the parameters of every pixel are those that the network makes of the finished
    image, up to rounding. Weights are read at each call.

    Args:
        network: ``forward(x, context=None)`` from images (N, C, H, W) to parameters (N, P, H, W), made of
            :class:`~fastvae.nn.MaskedConv2d` (raster order), 1x1 convolutions, pointwise activations,
            :class:`~fastvae.nn.GatedActivation`, sums, products, concatenation and slices of channels. Whatever depends
            on the context alone may be any module; it is computed once for each call.
        likelihood: ``"bernoulli"`` (images 0 or 1; P = C logits), ``"categorical"`` (images k / 255; P = 256 C logits,
            those of a channel together), ``"logistic_mixture"`` (images 2k / 255 - 1; P = 30 or 100), or a
            :class:`~fastvae.sampling.PixelLikelihood`.
        in_channels: channels C of an image.
        impl: ``"auto"``, ``"cpp"``, ``"triton"`` (in float32 only) or ``"reference"``, see :mod:`fastvae.backend`.

    Raises:
        TypeError: ``network`` is no module, or ``likelihood`` is neither a name nor a likelihood.
        ValueError: a layer that no plan can express (the message names it and what is supported), a network that is not
            causal, or outputs that are not those of the likelihood.

    Note:
        Channels of an image are drawn in turn where the parameters of one depend on another at the same pixel
        (``num_colors`` or degrees of the layers), together otherwise. Layers that act differently in training, such as
        dropout, must be in evaluation mode when a method is called. Networks in half precision are computed in float32.
        No gradients are recorded.

    Reference:
        *Fast Generation for Convolutional Autoregressive Models* (Ramachandran et al., 2017).

    Example:
        >>> from fastvae.nn.masked_conv import MaskedConv2d
        >>> network = nn.Sequential(
        ...     MaskedConv2d(1, 8, 7, padding=3, mask_type="A", activation="relu"),
        ...     MaskedConv2d(8, 8, 3, padding=1, mask_type="B", activation="relu"),
        ...     nn.Conv2d(8, 1, 1),
        ... )
        >>> sampler = CausalSampler(network, "bernoulli", impl="reference")
        >>> images = sampler.sample(4, (6, 6))
        >>> images.shape, bool(((images == 0) | (images == 1)).all())
        (torch.Size([4, 1, 6, 6]), True)
    """

    def __init__(
        self,
        network: nn.Module,
        likelihood: str | PixelLikelihood = "bernoulli",
        *,
        in_channels: int = 1,
        impl: str = "auto",
    ) -> None:
        if not isinstance(network, nn.Module):
            raise TypeError(f"network must be a torch.nn.Module, got {type(network).__name__}")
        if in_channels < 1:
            raise ValueError(f"in_channels must be >= 1, got {in_channels}")
        if impl not in backend.IMPLEMENTATIONS:
            raise ValueError(f"impl must be one of {', '.join(map(repr, backend.IMPLEMENTATIONS))}, got {impl!r}")
        self.network, self.in_channels, self.impl = network, in_channels, impl
        self.likelihood = resolve(likelihood)
        self._outputs = self.likelihood.parameter_channels(in_channels)
        self._recordings: dict[bool, Recording] = {}
        self._plans: dict[tuple[bool, tuple[int, ...]], Plan] = {}
        self._failures: dict[bool, ValueError] = {}
        self._read()

    def _read(self) -> None:
        """Records every way to call the network; one that can be planned is enough."""
        refused: list[ValueError] = []
        for with_context in forms(self.network):
            try:
                recording = record(self.network, with_context, LEAVES)
            except ValueError as error:
                # Of a forward that insists on a context, or on none, the way that it refuses tells the least.
                self._failures[with_context] = error
                refused.append(error)
                continue
            try:
                self._plan(recording, with_context, {})
            except KeyError:
                # How many channels the context makes decides; the plan waits for the first one.
                pass
            except ValueError as error:
                self._failures[with_context] = error
                refused.insert(0, error)
                continue
            self._recordings[with_context] = recording
        if not self._recordings:
            raise refused[0]

    def _plan(self, recording: Recording, with_context: bool, constants: Mapping[str, Any]) -> Plan:
        widths = (value.shape[1] for value in constants.values() if isinstance(value, Tensor) and value.dim() == 4)
        key = with_context, tuple(widths)
        if (with_context, ()) in self._plans:
            return self._plans[with_context, ()]
        if key not in self._plans:
            self._plans[key] = lower(recording, self.in_channels, self._outputs, self.likelihood.per_channel, constants)
        return self._plans[key]

    # Sampling

    def sample(
        self,
        n: int,
        image_size: int | Sequence[int],
        *,
        context: Any = None,
        given: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        row_offset: int = 0,
    ) -> Tensor:
        """Images ``(n, C, H, W)``, float32 (float64 for float64 networks).

        Args:
            n: number of images.
            image_size: ``(H, W)``, or one number for both.
            context: what the network's forward takes as such, for n images or for one.
            given: pixels that are known, ``(n, C, H, W)``, and NaN where a pixel is to be drawn. A pixel is drawn given
                those before it, known or drawn; later ones do not bear on it.
            temperature: above 0; below 1 likelier images, see the likelihood.
            generator: source of the seed; the default generator of the device when None. A seed gives the same uniform
                numbers in every implementation, batch split and device.
            row_offset: number of the first image, so that shards of a batch draw the noise of the whole.

        Raises:
            TypeError: ``given`` is no floating-point tensor.
            ValueError: sizes, context, given pixels or temperature that do not fit; a network in training mode.
            RuntimeError: ``impl`` cannot run here.
        """
        return self._sample(n, image_size, context, given, temperature, generator, row_offset, False)[0]

    def sample_with_parameters(
        self,
        n: int,
        image_size: int | Sequence[int],
        *,
        context: Any = None,
        given: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        row_offset: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`sample`, and the parameters ``(n, P, H, W)`` that the pixels were drawn from."""
        images, parameters = self._sample(n, image_size, context, given, temperature, generator, row_offset, True)
        assert parameters is not None
        return images, parameters

    @torch.no_grad()
    def _sample(
        self,
        n: int,
        image_size: int | Sequence[int],
        context: Any,
        given: Tensor | None,
        temperature: float,
        generator: torch.Generator | None,
        row_offset: int,
        with_parameters: bool,
    ) -> tuple[Tensor, Tensor | None]:
        if not isinstance(n, int) or n < 0:
            raise ValueError(f"n must be an integer >= 0, got {n!r}")
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if len(size) != 2 or not all(isinstance(length, int) and length >= 1 for length in size):
            raise ValueError(f"image_size must be (H, W), both >= 1, got {image_size!r}")
        if not (temperature > 0 and math.isfinite(temperature)):
            raise ValueError(f"temperature must be a finite number > 0, got {temperature!r}")
        if row_offset < 0:
            raise ValueError(f"row_offset must be >= 0, got {row_offset}")
        like, shape = self._like(), (n, self.in_channels, *size)
        images = like.new_zeros(shape)
        known = None
        if given is not None:
            known = self._check_given(given, images)
            images.copy_(torch.where(known, given, 0.0))
        plan, binding = self._bind(images, context)
        uniforms = self.uniforms(n, size, generator=generator, row_offset=row_offset)
        parameters = like.new_empty(n, self._outputs, *size) if with_parameters else None
        with full_precision(like.device.type):
            causal_sampler(
                plan, binding, self.likelihood, images, known, uniforms,
                temperature=float(temperature), parameters=parameters, impl=self.impl,
            )  # fmt: skip
        return images, parameters

    def uniforms(
        self,
        n: int,
        image_size: tuple[int, int],
        *,
        generator: torch.Generator | None = None,
        row_offset: int = 0,
    ) -> Tensor:
        """The uniform numbers that :meth:`sample` takes, ``(n, H * W * columns)``: those of a pixel together."""
        like = self._like()
        columns = image_size[0] * image_size[1] * self.likelihood.columns(self.in_channels)
        return philox_uniform(draw_seed(like.device, generator), n, columns, row_offset).to(like.dtype)

    # Finished images

    @torch.no_grad()
    def parameters(self, x: Tensor, context: Any = None) -> Tensor:
        """The parameters ``(N, P, H, W)`` of images ``x`` ``(N, C, H, W)``, by the code that samples.

        Where ``x`` was drawn, they are the numbers that it was drawn from, bit for bit with ``impl="cpp"`` and in
        batches of any size: an entropy coder may rely on them. So are those of a context that only layers of
        :mod:`fastvae.nn` read; the rounding of PyTorch's own may depend on the size of the batch.

        Raises:
            TypeError: ``x`` is no floating-point tensor.
            ValueError: shapes or context that do not fit; a network in training mode.
        """
        like = self._like()
        self._check_images("x", x, (None, self.in_channels, None, None), like)
        images = x.to(like.dtype).contiguous()
        plan, binding = self._bind(images, context)
        parameters = like.new_empty(x.shape[0], self._outputs, *x.shape[2:])
        with full_precision(like.device.type):
            causal_sampler(plan, binding, self.likelihood, images, None, None, parameters=parameters, impl=self.impl)
        return parameters

    def log_prob(self, x: Tensor, context: Any = None) -> Tensor:
        """Log-probability in nats, ``(N,)``, of images ``x``, from :meth:`parameters`; without gradients."""
        parameters = self.parameters(x, context)
        self.likelihood.check("x", x)
        return self.likelihood.log_prob(x.to(parameters.dtype), parameters)

    # What a call needs

    def _like(self) -> Tensor:
        """An empty tensor of the device and dtype that the network is computed in."""
        tensors = (t for t in self.network.parameters() if t.is_floating_point())
        first = next(tensors, torch.empty(0))
        return torch.empty(0, dtype=compute_dtype(first.dtype), device=first.device)

    def _check_images(self, name: str, x: Tensor, shape: tuple[int | None, ...], like: Tensor) -> None:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{name} must be a floating-point tensor, got {kind}")
        fits = x.dim() == 4 and all(want in (None, size) for want, size in zip(shape, x.shape, strict=True))
        if not fits:
            wanted = ", ".join(
                letter if size is None else str(size) for letter, size in zip("NCHW", shape, strict=True)
            )
            raise ValueError(f"{name} must have shape ({wanted}), got {tuple(x.shape)}")
        if x.device != like.device:
            raise ValueError(f"{name} must be on the device of the network, {like.device}; it is on {x.device}")

    def _check_given(self, given: Tensor, images: Tensor) -> Tensor:
        """Which pixels are given."""
        self._check_images("given", given, tuple(images.shape), images)
        self.likelihood.check("given", given)
        known = ~given.isnan()
        if not self.likelihood.per_channel and not torch.equal(known.any(1), known.all(1)):
            raise ValueError(
                f"given must hold all channels of a pixel or none, which {type(self.likelihood).__name__} draws "
                "together, got pixels of which some are given"
            )
        return known

    def _bind(self, images: Tensor, context: Any) -> tuple[Plan, Binding]:
        for path, module in self.network.named_modules():
            off = not isinstance(module, (_DropoutNd, _NormBase)) or getattr(module, "p", 1.0) == 0
            if module.training and not off:
                raise ValueError(
                    f"network must be in evaluation mode (network.eval()) while it samples: layer {path!r} "
                    f"({type(module).__name__}) is in training mode"
                )
        with_context = context is not None
        if with_context not in self._recordings:
            failure = self._failures.get(with_context)
            wanted = "None: the network takes none" if with_context else "given: the network takes one"
            raise ValueError(f"context must be {wanted}{'' if failure is None else f' ({failure})'}") from failure
        recording = self._recordings[with_context]
        dtype = next((t.dtype for t in self.network.parameters() if t.is_floating_point()), images.dtype)
        values = recording.evaluate(tuple(images.shape), images.new_empty(0, dtype=dtype), context)
        plan = self._plan(recording, with_context, values)
        layers: list[Any] = [recording.layer(path) for path in plan.layers]
        weights = [_numbers(layer.weight, images.dtype) for layer in layers]
        biases = [None if layer.bias is None else _numbers(layer.bias, images.dtype) for layer in layers]
        constants = [
            _constant(source if isinstance(source, float) else values[source], channels, images)
            for source, channels in plan.constants
        ]
        return plan, Binding(weights, biases, constants)


def _numbers(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t.detach().to(dtype).contiguous()


def _constant(value: Any, channels: int, images: Tensor) -> Tensor:
    """``value`` as ``(N, channels)`` or ``(N, channels, H, W)``."""
    n, _, *size = images.shape
    if isinstance(value, (int, float)):
        return images.new_full((n, channels), value)
    if not isinstance(value, Tensor):
        raise ValueError(f"context must give tensors to what depends on the image, got {type(value).__name__}")
    shape = tuple(value.shape)
    full = {0: (1, 1, 1, 1), 2: (*shape, 1, 1), 3: (1, *shape), 4: shape}.get(value.dim(), (0, 0, 0, 0))
    target = (n, channels, *((1, 1) if full[2:] == (1, 1) else size))
    if any(own not in (1, wanted) for own, wanted in zip(full, target, strict=True)):
        raise ValueError(
            f"context must be such that what the network makes of it has shape ({n}, {channels}), "
            f"({n}, {channels}, 1, 1) or ({n}, {channels}, {size[0]}, {size[1]}), got {shape}"
        )
    value = _numbers(value.reshape(full).expand(target), images.dtype)
    return value.flatten(1) if target[2:] == (1, 1) and full[2:] == (1, 1) else value
