"""Lossless compression of images: a range coder driven by the probabilities of a network over pixels.

The encoder sees the finished image and gets the parameters of all pixels at once. The decoder must have the same
numbers before it knows the pixel that they belong to. It lets the sampler draw, at a low temperature, the likeliest
image that continues what is decoded: the parameters up to the first wrong guess, that pixel's own included, are those
that the encoder used, bit for bit. So an image takes one run of the sampler for each number that is guessed wrong, and
one more, rather than one for each number. The runs see a window that ends a few pixels after the decoded ones.
"""

from __future__ import annotations

import hashlib
import importlib
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...nn.gated_pixelcnn import GatedPixelCNN
from ...nn.pixelcnn import PixelCNN, PixelNetwork
from ...ops.causal_sampler import resolve
from ...sampling.likelihoods import Bernoulli, Categorical
from ...sampling.sampler import CausalSampler
from ..errors import RecipeError
from .compressed_file import (
    CRC,
    LAYOUT,
    MAGIC,
    OVERHEAD,
    PRECISION_BITS,
    VERSION,
    WORD_BITS,
    Header,
    least_bits,
    read_header,
)

__all__ = ["CRC", "LAYOUT", "OVERHEAD", "Header", "compress_images", "decompress_images", "levels_of", "read_header"]

IMPLEMENTATIONS = ("cpp", "reference")
LIKELIHOODS = (Bernoulli, Categorical)
# Low enough that the likeliest value is drawn nearly always, high enough that no logit overflows.
GUESSING_TEMPERATURE = 1e-3
DIFFER = (
    "the compressed file does not decode with this network: it is damaged, or the numbers that the network makes here "
    "differ from those of the encoder; decompress with the machine, torch, number of threads and build of fastvae that "
    "compressed"
)
# Pixels that are guessed past the last wrong guess; twice as many after each run without one.
LEAST_AHEAD = 64


def compress_images(network: PixelNetwork, x: Tensor, context: Tensor | None = None) -> bytes:
    r"""Compresses images to about as many bits as the network gives them, :math:`-\log_2 p(x)`.

    Args:
        network: on a CPU, with a Bernoulli or categorical likelihood, in evaluation mode if it has dropout.
        x: images ``(N, C, H, W)`` of the likelihood's values.
        context: context of each image, or one for all, if the network has one. It is not stored.

    Returns:
        The file: :data:`OVERHEAD` bytes, and the range coder's words, at most two more than the bits fill.

    Raises:
        TypeError: ``network`` is no :class:`~fastvae.nn.PixelNetwork`, or ``x`` no floating-point tensor.
        ValueError: likelihood, device, images or context that do not fit; parameters that are not finite.
        RuntimeError: the network's ``impl`` cannot sample here.
        RecipeError: the package ``constriction`` is missing.

    Note:
        The images come back bit for bit from the same weights on the same machine, torch and build of this package: the
        numbers must be equal to the last bit. With ``impl="reference"`` torch must run on as many threads, too. A
        decoder with other numbers raises an error; it does not return wrong images.

    Reference:
        *Arithmetic coding for data compression* (Witten, Neal, Cleary, 1987).

    Example:
        >>> from fastvae.nn.pixelcnn import PixelCNN
        >>> network = PixelCNN(1, 4, 2)
        >>> x = torch.bernoulli(torch.full((2, 1, 6, 6), 0.5))
        >>> torch.equal(decompress_images(network, compress_images(network, x)), x)
        True
    """
    coder = _Coder(network)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(
            f"x must be a floating-point tensor, got {x.dtype if isinstance(x, Tensor) else type(x).__name__}"
        )
    if x.dim() != 4 or x.shape[1] != network.in_channels or not all(1 <= size < 2**16 for size in x.shape[2:]):
        raise ValueError(f"x must have shape (N, {network.in_channels}, H, W), got {tuple(x.shape)}")
    network.likelihood.check("x", x)
    if x.isnan().any():
        raise ValueError("x must have no NaN: every pixel is coded")
    n, channels, height, width = x.shape
    symbols = torch.round(x.double() * (coder.levels - 1)).to(torch.int32)
    encoder = coder.queue.RangeEncoder()
    for index, image in enumerate(symbols):
        parameters = coder.sampler.parameters(coder.image(image), _of_image(context, index, n))
        encoder.encode(_in_order(image), coder.model, coder.probabilities(parameters))
    words = encoder.get_compressed().astype("<u4")
    header = Header(
        MAGIC, VERSION, coder.impl, coder.likelihood, coder.levels, n, channels, height, width,
        _digest(network.state_dict()), _digest_context(context), _checksum(symbols), len(words),
    )  # fmt: skip
    content = LAYOUT.pack(*header) + words.tobytes()
    return content + CRC.pack(zlib.crc32(content))


def decompress_images(network: PixelNetwork, data: bytes, context: Tensor | None = None) -> Tensor:
    """The images that :func:`compress_images` took.

    Args:
        network: the network that compressed them.
        data: the file.
        context: the context that they were compressed with.

    Returns:
        Images ``(N, C, H, W)`` in the dtype that the network computes in.

    Raises:
        TypeError: ``network`` is no :class:`~fastvae.nn.PixelNetwork`.
        ValueError: likelihood or device of the network do not fit.
        RuntimeError: the network's ``impl`` cannot sample here.
        RecipeError: ``data`` is no such file, is truncated or damaged, was made with other weights, another context or
            another implementation, or the numbers of this machine differ from those of the encoder.
    """
    header = read_header(data)
    coder = _Coder(network)
    _check_origin(header, coder, context)
    payload = _Payload(coder, np.frombuffer(data, "<u4", header.words, LAYOUT.size).astype(np.uint32))
    images = torch.empty(0, *header.shape[1:], dtype=torch.int32)
    if header.images:
        decoded = (coder.decode(payload, header.shape[1:], _of_image(context, index, header.images))
                   for index in range(header.images))  # fmt: skip
        images = torch.stack(list(decoded))
    if _checksum(images) != header.checksum:
        raise RecipeError(DIFFER)
    return coder.values(images)


def levels_of(network: PixelNetwork) -> int:
    """The number of values of a pixel: k / (levels - 1), k from 0.

    Raises:
        ValueError: the likelihood is neither Bernoulli nor categorical.
    """
    likelihood = network.likelihood
    if type(likelihood) not in LIKELIHOODS:
        raise ValueError(
            f"network must have a Bernoulli or categorical likelihood to compress, got {type(likelihood).__name__}"
        )
    return likelihood.levels if isinstance(likelihood, Categorical) else 2


class _Coder:
    """A network as encoder and decoder see it: a sampler, and its parameters as probabilities."""

    def __init__(self, network: PixelNetwork) -> None:
        if not isinstance(network, PixelNetwork):
            raise TypeError(
                f"network must be a PixelNetwork such as PixelCNN or GatedPixelCNN, got {type(network).__name__}"
            )
        self.levels = levels_of(network)
        if self.levels >= 2**16:
            raise ValueError(f"network must have less than 65536 levels to compress, got {self.levels}")
        weights = next(network.parameters())
        if not weights.is_cpu:
            raise ValueError(
                f"network must be on a CPU, where parameters are equal to the last bit; it is on {weights.device}"
            )
        self.likelihood = LIKELIHOODS.index(type(network.likelihood))
        impl = resolve(network.impl, weights, network.likelihood, network.in_channels)
        self.impl = IMPLEMENTATIONS.index(impl)
        self.sampler = CausalSampler(network, network.likelihood, in_channels=network.in_channels, impl=impl)
        self.network, self.reach = network, _reach(network)
        self.queue, self.model = _range_coder()

    def values(self, symbols: Tensor) -> Tensor:
        """Pixels of levels, as the likelihood draws them."""
        dtype = torch.float64 if next(self.network.parameters()).dtype == torch.float64 else torch.float32
        return symbols.to(dtype) / (self.levels - 1)

    def image(self, symbols: Tensor) -> Tensor:
        return self.values(symbols).unsqueeze(0)

    def probabilities(self, parameters: Tensor, first: int = 0) -> np.ndarray:
        """Weights of all levels of the numbers of an image from ``first`` on, ``(numbers, levels)``.

        Args:
            parameters: ``(1, P, H, W)``.
            first: number of H * W * C that is the first one.

        It calls numpy function by function: the results depend neither on a number's address nor on threads.
        """
        logits = parameters[0].double().unflatten(0, (self.network.in_channels, -1)).permute(2, 3, 0, 1).numpy()
        logits = np.ascontiguousarray(logits).reshape(-1, logits.shape[-1])[first:]
        if not np.isfinite(logits).all():
            raise ValueError("network must give finite parameters to compress, got some that are not")
        if logits.shape[-1] == 1:
            logits = np.concatenate([np.zeros_like(logits), logits], 1)
        return np.exp(logits - logits.max(1, keepdims=True))

    def decode(self, payload: _Payload, shape: tuple[int, int, int], context: Tensor | None) -> Tensor:
        """The next image of a file, ``(C, H, W)`` levels.

        Only a window is guessed: the rows that hold the decoded pixels and a few more, or part of the first row. Pixels
        beyond the window change none of their parameters.
        """
        channels, height, width = shape
        found, ahead = np.zeros(0, np.int32), LEAST_AHEAD
        # The guesses do not touch the default generator.
        generator = torch.Generator().manual_seed(0)
        while found.size < channels * height * width:
            window = height, width
            # A map as context has the image's size.
            if self.reach is not None and (context is None or context.dim() < 3):
                window = _window(found.size // channels + ahead, height, width, self.reach)
            symbols = torch.zeros(*window, channels, dtype=torch.int32)
            symbols.view(-1)[: found.size] = torch.from_numpy(found)
            given = self.values(symbols)
            given.view(-1)[found.size :] = torch.nan
            guess, parameters = self.sampler.sample_with_parameters(
                1, window, context=context, given=given.permute(2, 0, 1).unsqueeze(0),
                temperature=GUESSING_TEMPERATURE, generator=generator,
            )  # fmt: skip
            guessed = _in_order(torch.round(guess[0].double() * (self.levels - 1)).to(torch.int32))[found.size :]
            levels = payload.decode(self.probabilities(parameters, found.size), guessed)
            ahead = LEAST_AHEAD if levels[-1] != guessed[len(levels) - 1] else 2 * ahead
            found = np.concatenate([found, levels])
        return torch.from_numpy(found).view(height, width, channels).permute(2, 0, 1)


class _Payload:
    """The words of a file as they are decoded, and the bits that are left of them."""

    def __init__(self, coder: _Coder, words: np.ndarray) -> None:
        self.decoder, self.model = coder.queue.RangeDecoder(words), coder.model
        self.bits_left, self.least_bits = float(WORD_BITS * len(words)), least_bits(coder.levels)

    def decode(self, weights: np.ndarray, guessed: np.ndarray) -> np.ndarray:
        """The next levels, up to the first wrong guess.

        Args:
            weights: of all levels of the next numbers, ``(numbers, levels)``.
            guessed: their likeliest levels, ``(numbers,)``.

        Raises:
            RecipeError: no file with so few words holds them.
        """
        levels = np.zeros(len(guessed), np.int32)
        count, right = 0, True
        try:
            while right and count < len(guessed):
                levels[count] = self.decoder.decode(self.model, weights[count : count + 1])[0]
                right = levels[count] == guessed[count]
                count += 1
        except AssertionError:
            # The range decoder's error for words that these probabilities cannot have made.
            raise RecipeError(DIFFER) from None
        taken = weights[np.arange(count), levels[:count]] / weights[:count].sum(1)
        # The coder's own probabilities exceed these by no more than two of its steps.
        bits = -np.log2(np.minimum(taken + 4 * 2.0**-PRECISION_BITS, 1.0))
        self.bits_left -= float(np.maximum(bits, self.least_bits).sum())
        if self.bits_left < 0:
            raise RecipeError(DIFFER)
        return levels[:count]


def _window(pixels: int, height: int, width: int, reach: int) -> tuple[int, int]:
    """Rows and columns that hold the first pixels of an image: part of the first row and its margin, or whole rows."""
    return (1, pixels + reach) if pixels + reach <= width else (min(-(-pixels // width), height), width)


def _reach(network: PixelNetwork) -> int | None:
    """Columns to the right of a pixel that its parameters may depend on; None of a network of unknown layers.

    Layers do not read the numbers there, but compute them inside the image, and not beyond its border.
    """
    if type(network) not in (PixelCNN, GatedPixelCNN):
        return None
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    return sum((layer.kernel_size[1] - 1) * layer.dilation[1] for layer in layers)


def _check_origin(header: Header, coder: _Coder, context: Tensor | None) -> None:
    """Raises unless this network has made the file, with this context and by this implementation."""
    described = [
        ("likelihood", header.likelihood, coder.likelihood, [kind.__name__ for kind in LIKELIHOODS]),
        ("implementation", header.impl, coder.impl, list(IMPLEMENTATIONS)),
    ]
    for what, stored, own, names in described:
        if stored != own:
            made = names[stored] if stored < len(names) else f"unknown ({stored})"
            raise RecipeError(f"the compressed file was made with the {what} {made}, the network's is {names[own]}")
    for what, count, own in (
        ("levels", header.levels, coder.levels), ("channels", header.channels, coder.network.in_channels)
    ):  # fmt: skip
        if count != own:
            raise RecipeError(f"the compressed file holds images of {count} {what}, the network's have {own}")
    if header.model != _digest(coder.network.state_dict()):
        raise RecipeError("the compressed file was made with other weights: decompress with those that compressed it")
    if header.context != _digest_context(context):
        raise RecipeError("the compressed file was made with another context: decompress with its own")


def _range_coder() -> tuple[Any, Any]:
    """The module of the range coder, and the model of symbols with given probabilities."""
    try:
        stream = importlib.import_module("constriction").stream
    except ModuleNotFoundError:
        raise RecipeError('compression needs constriction: pip install "fastvae-kernels[compress]"') from None
    return stream.queue, stream.model.Categorical(perfect=False)


def _of_image(context: Tensor | None, index: int, images: int) -> Tensor | None:
    """The context of one image. Images are coded one by one: torch may round a batch's products otherwise."""
    if context is None:
        return None
    if context.dim() < 1 or context.shape[0] not in (1, images):
        raise ValueError(f"context must belong to 1 or {images} images, got shape {tuple(context.shape)}")
    # Memory of its own, because products may also depend on its alignment.
    return context[index if context.shape[0] > 1 else 0].unsqueeze(0).clone()


def _in_order(image: Tensor) -> np.ndarray:
    """The numbers of ``(C, H, W)`` in the order in which they are coded: pixel by pixel, in each channel by channel."""
    return image.permute(1, 2, 0).contiguous().view(-1).numpy()


def _checksum(symbols: Tensor) -> int:
    return zlib.crc32(symbols.numpy().astype("<u2").tobytes())


def _digest(tensors: Mapping[str, Tensor]) -> bytes:
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()


def _digest_context(context: Tensor | None) -> bytes:
    return _digest({} if context is None else {"context": context})
