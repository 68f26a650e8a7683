"""Exact sampling of images from a causal network at about the cost of one forward pass."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from .. import backend
from ..likelihoods.pixels import PixelLikelihood, resolve
from ..ops.causal_sampler import causal_sampler
from ..precision import is_integral, keep_full_precision
from ..rng import draw_seed, philox_uniform
from ..structure.integers import integer, integers
from ..structure.sampling_plan import Binding, Plan
from .binding import bind
from .compiled import enrol, like_of, sample_in_graph
from .graph import Recording, forms, record
from .snapshot import Snapshot
from .trace import lower

__all__ = ["CausalSampler"]


@dataclass
class _Reading:
    """The recordings and plans of a network. They hold as long as the network does not change.

    Args:
        network: its root.
        sizes: channels of an image, parameters of a pixel, and whether these belong to one channel each.
        recordings: for each way to call the network, with a context or without.
        failures: why the network cannot be called in the other way.
        plans: by the way of the call, and the widths of what the network makes of the context.
        snapshot: the network as it was.
        in_training: a layer that acts differently in training, and is in that mode.
    """

    network: nn.Module
    sizes: tuple[int, int, bool]
    recordings: dict[bool, Recording] = field(default_factory=dict)
    failures: dict[bool, ValueError] = field(default_factory=dict)
    plans: dict[tuple[bool, tuple[int, ...]], Plan] = field(default_factory=dict)
    snapshot: Snapshot | None = None
    in_training: str = ""

    def __post_init__(self) -> None:
        for path, module in self.network.named_modules():
            acts = isinstance(module, (_DropoutNd, _NormBase)) and getattr(module, "p", 1.0) != 0
            if module.training and acts:
                self.in_training = f"layer {path!r} ({type(module).__name__})"
                return

    def is_current(self, network: nn.Module, sizes: tuple[int, int, bool]) -> bool:
        same = self.network is network and self.sizes == sizes
        return same and self.snapshot is not None and self.snapshot.is_current()

    def read(self) -> None:
        """Records every way to call the network; one that can be planned is enough."""
        refused: list[ValueError] = []
        for with_context in forms(self.network):
            try:
                recording = record(self.network, with_context)
            except ValueError as error:
                # A forward that must have a context, or must have none, refuses one of both ways: its error says least.
                self.failures[with_context] = error
                refused.append(error)
                continue
            try:
                self.plan(recording, with_context, {})
            except KeyError:
                # The number of channels that the context makes decides; the plan waits for a first context.
                pass
            except ValueError as error:
                self.failures[with_context] = error
                refused.insert(0, error)
                continue
            self.recordings[with_context] = recording
        if not self.recordings:
            raise refused[0]
        # Only now: a forward may set attributes, also while it is recorded.
        self.snapshot = Snapshot(self.network)

    def plan(self, recording: Recording, with_context: bool, constants: Mapping[str, Any]) -> Plan:
        widths = (value.shape[1] for value in constants.values() if isinstance(value, Tensor) and value.dim() == 4)
        key = with_context, tuple(widths)
        if (with_context, ()) in self.plans:
            return self.plans[with_context, ()]
        if key not in self.plans:
            self.plans[key] = lower(recording, *self.sizes, constants)
        return self.plans[key]


class CausalSampler:
    r"""Draws images from a network of causal layers, pixel by pixel, every activation being computed once.

    The network's forward is read and turned into a plan; a call then walks over the pixels with caches of the rows that
    are still needed. It is exact: the parameters of every pixel are those that the network makes of the finished image,
    up to rounding.

    A call samples from the network as it is then. Weights are read at each call. The forward is read again where a
    module was replaced, wrapped or dropped, where an attribute, a buffer or a hook of a module changed, or where a
    method was set anew. Of what else a forward reads, such as global variables, the sampler keeps what it was.

    Args:
        network: ``forward(x, context=None)`` from images (N, C, H, W) to parameters (N, P, H, W), made of
            :class:`~fastvae.nn.MaskedConv2d` (raster order), 1x1 convolutions, pointwise activations,
            :class:`~fastvae.nn.GatedActivation`, :class:`~fastvae.nn.CodeEmbedding`, batch norms with running
            statistics, sums, products, concatenation and slices of channels. Whatever depends on the context alone may
            be any module; it is computed once for each call.
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
        No gradients are recorded. Attributes may be assigned: the next call follows them. Weights must be plain dense
        tensors.

    Reference:
        *Fast Generation for Convolutional Autoregressive Models* (Ramachandran et al., 2017).

    Example:
        >>> from fastvae.nn import MaskedConv2d
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
        if impl not in backend.IMPLEMENTATIONS:
            raise ValueError(f"impl must be one of {', '.join(map(repr, backend.IMPLEMENTATIONS))}, got {impl!r}")
        self.network, self.in_channels, self.impl = network, integer("in_channels", in_channels, 1), impl
        self.likelihood = resolve(likelihood)
        self._number = enrol(self)
        self._reading: _Reading | None = None
        self._read(checks_mode=False)

    def _sampler(self) -> CausalSampler:
        return self

    def _sizes(self) -> tuple[int, int, bool]:
        outputs = self.likelihood.parameter_channels(self.in_channels)
        return self.in_channels, outputs, self.likelihood.per_channel

    def _read(self, *, checks_mode: bool = True) -> _Reading:
        """The reading of the network as it is now: the last one, if the network has not changed."""
        last, sizes = self._reading, self._sizes()
        is_current = last is not None and last.is_current(self.network, sizes)
        reading = last if last is not None and is_current else _Reading(self.network, sizes)
        if checks_mode and reading.in_training:
            raise ValueError(
                f"network must be in evaluation mode (network.eval()) while it samples: {reading.in_training} is in "
                "training mode"
            )
        if not is_current:
            reading.read()
            self._reading = reading
        return reading

    def __getstate__(self) -> dict[str, Any]:
        """A copy reads its own network."""
        return self.__dict__ | {"_reading": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._number = enrol(self)

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
                those before it, known or drawn; later ones do not bear on it. Integers are the likelihood's levels, and
                none of them is to be drawn; values in half precision are taken to their levels.
            temperature: above 0; below 1 likelier images, see the likelihood.
            generator: source of the seed; the default generator of the device when None. A seed gives the same uniform
                numbers in every implementation, batch split and device.
            row_offset: number of the first image, so that shards of a batch draw the noise of the whole.

        Raises:
            TypeError: ``given`` is no tensor of numbers, or a size no integer.
            ValueError: sizes, context, given pixels or temperature that do not fit; a network in training mode; a layer
                that no plan can express, or with a weight that is no plain dense tensor.
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
        if torch.compiler.is_compiling():
            wanted = self.likelihood.parameter_channels(self.in_channels) if with_parameters else 0
            return sample_in_graph(
                self._number, self.network, n, self.in_channels, image_size, context=context, given=given,
                temperature=temperature, generator=generator, row_offset=row_offset, parameters=wanted,
            )  # fmt: skip
        return self._draw(generator, n, image_size, context, given, temperature, row_offset, with_parameters)

    @torch.no_grad()
    def _draw(
        self,
        source: Tensor | torch.Generator | None,
        n: int,
        image_size: int | Sequence[int],
        context: Any,
        given: Tensor | None,
        temperature: float,
        row_offset: int,
        with_parameters: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """``source`` is the seed, or where it comes from."""
        n, size = integer("n", n, 0), _image_size(image_size)
        if not (temperature > 0 and math.isfinite(temperature)):
            raise ValueError(f"temperature must be a finite number > 0, got {temperature!r}")
        row_offset = integer("row_offset", row_offset, 0)
        like, shape = like_of(self.network), (n, self.in_channels, *size)
        images = like.new_zeros(shape)
        known = None
        if given is not None:
            known, given = self._check_given(given, images)
            images.copy_(torch.where(known, given, 0.0))
        plan, binding = self._bind(images, context)
        seed = source if isinstance(source, Tensor) else draw_seed(like.device, source)
        uniforms = self._uniforms(seed, n, size, row_offset)
        parameters = like.new_empty(n, plan.parameter_channels, *size) if with_parameters else None
        with keep_full_precision(like.device.type):
            causal_sampler(
                plan, binding, self.likelihood, images, known, uniforms,
                temperature=float(temperature), parameters=parameters, impl=self.impl,
            )  # fmt: skip
        return images, parameters

    def uniforms(
        self,
        n: int,
        image_size: int | Sequence[int],
        *,
        generator: torch.Generator | None = None,
        row_offset: int = 0,
    ) -> Tensor:
        """The uniform numbers that :meth:`sample` takes, ``(n, H * W * columns)``: those of a pixel together."""
        return self._uniforms(draw_seed(like_of(self.network).device, generator), n, image_size, row_offset)

    def _uniforms(self, seed: Tensor, n: int, image_size: int | Sequence[int], row_offset: int) -> Tensor:
        height, width = _image_size(image_size)
        columns = height * width * self.likelihood.columns(self.in_channels)
        return philox_uniform(seed, n, columns, row_offset).to(like_of(self.network).dtype)

    # Finished images

    @torch.no_grad()
    def parameters(self, x: Tensor, context: Any = None) -> Tensor:
        """The parameters ``(N, P, H, W)`` of images ``x`` ``(N, C, H, W)``, by the code that samples.

        Where ``x`` was drawn, they are the numbers that it was drawn from, bit for bit with ``impl="cpp"`` and in
        batches of any size: an entropy coder may rely on them. So are those of a context that only layers of
        :mod:`fastvae.nn` read; the rounding of PyTorch's own may depend on the size of the batch.

        Raises:
            TypeError: ``x`` is no tensor of numbers.
            ValueError: shapes or context that do not fit; integers that are no levels; a dtype of ``x`` that does not
                tell the levels apart; a network in training mode.
        """
        like = like_of(self.network)
        self._check_images("x", x, (None, self.in_channels, None, None), like)
        images = self.likelihood.to_numbers(x, like.dtype).contiguous()
        plan, binding = self._bind(images, context)
        parameters = like.new_empty(x.shape[0], plan.parameter_channels, *x.shape[2:])
        with keep_full_precision(like.device.type):
            causal_sampler(plan, binding, self.likelihood, images, None, None, parameters=parameters, impl=self.impl)
        return parameters

    def log_prob(self, x: Tensor, context: Any = None) -> Tensor:
        """Log-probability in nats, ``(N,)``, of images ``x``, from :meth:`parameters`; without gradients."""
        parameters = self.parameters(x, context)
        self.likelihood.check("x", x)
        numbers = x if is_integral(x) else self.likelihood.to_numbers(x, parameters.dtype)
        return self.likelihood.log_prob(numbers, parameters)

    def _check_images(self, name: str, x: Tensor, shape: tuple[int | None, ...], like: Tensor) -> None:
        if not isinstance(x, Tensor) or x.is_complex():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{name} must be a floating-point tensor, or one of integer levels, got {kind}")
        fits = x.dim() == 4 and all(want in (None, size) for want, size in zip(shape, x.shape, strict=True))
        if not fits:
            wanted = ", ".join(
                letter if size is None else str(size) for letter, size in zip("NCHW", shape, strict=True)
            )
            raise ValueError(f"{name} must have shape ({wanted}), got {tuple(x.shape)}")
        if x.device != like.device:
            raise ValueError(f"{name} must be on the device of the network, {like.device}; it is on {x.device}")

    def _check_given(self, given: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """The mask of given pixels, and their values."""
        self._check_images("given", given, tuple(images.shape), images)
        self.likelihood.check("given", given)
        given = self.likelihood.to_numbers(given, images.dtype, name="given")
        known = ~given.isnan()
        if not self.likelihood.per_channel and not torch.equal(known.any(1), known.all(1)):
            raise ValueError(
                f"given must hold all channels of a pixel or none, which {type(self.likelihood).__name__} draws "
                "together, got pixels of which some are given"
            )
        return known, given

    def _bind(self, images: Tensor, context: Any) -> tuple[Plan, Binding]:
        reading = self._read()
        with_context = context is not None
        if with_context not in reading.recordings:
            failure = reading.failures.get(with_context)
            wanted = "None: the network takes none" if with_context else "given: the network takes one"
            raise ValueError(f"context must be {wanted}{'' if failure is None else f' ({failure})'}") from failure
        recording = reading.recordings[with_context]
        dtype = next((t.dtype for t in self.network.parameters() if t.is_floating_point()), images.dtype)
        values = recording.evaluate(tuple(images.shape), images.new_empty(0, dtype=dtype), context)
        plan = reading.plan(recording, with_context, values)
        return plan, bind(plan, recording, values, images)


def _image_size(image_size: int | Sequence[int]) -> tuple[int, int]:
    try:
        if isinstance(image_size, Iterable):
            height, width = integers(1, **dict(zip("HW", image_size, strict=True)))
        else:
            height = width = integer("image_size", image_size, 1)
    except (TypeError, ValueError):
        raise ValueError(f"image_size must be (H, W), both >= 1, got {image_size!r}") from None
    return height, width
