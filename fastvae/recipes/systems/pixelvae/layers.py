"""Encoders and upsamplers of images of 28 x 28 pixels, with 7 x 7 and 4 x 4 positions within."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

__all__ = ["MAP_SIDE", "bottom_encoder", "top_encoder", "upsampler_of_map", "upsampler_of_vector"]

MAP_SIDE, SMALL_SIDE = 7, 4


def _convolution(before: int, after: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(before, after, 3, stride, padding=1), nn.ReLU()


def _upsample(before: int, after: int, added: int = 1) -> nn.Module:
    """A side of n to one of 2 n - 1 + added."""
    return nn.ConvTranspose2d(before, after, 3, 2, padding=1, output_padding=added)


def bottom_encoder(maps: Sequence[int]) -> nn.Sequential:
    """Images to features ``(N, maps[1], 7, 7)``."""
    a, b, _ = maps
    return nn.Sequential(*_convolution(1, a), *_convolution(a, a, 2), *_convolution(a, a), *_convolution(a, b, 2))


def top_encoder(maps: Sequence[int]) -> nn.Sequential:
    """Features ``(N, maps[1], 7, 7)``, padded to 8 x 8, to ``(N, 16 * maps[2])``."""
    _, b, c = maps
    return nn.Sequential(
        nn.ZeroPad2d((0, 1, 0, 1)),
        *_convolution(b, b),
        *_convolution(b, c, 2),
        *_convolution(c, c),
        *_convolution(c, c),
        nn.Flatten(),
    )


def upsampler_of_map(in_maps: int, maps: Sequence[int], out_maps: int) -> nn.Sequential:
    """``(N, in_maps, 7, 7)`` to ``(N, out_maps, 28, 28)``."""
    a, b, _ = maps
    return nn.Sequential(
        *_convolution(in_maps, b),
        _upsample(b, a),
        nn.ReLU(),
        *_convolution(a, a),
        _upsample(a, out_maps),
        nn.ReLU(),
    )


def upsampler_of_vector(in_features: int, maps: Sequence[int], out_maps: int) -> nn.Sequential:
    """``(N, in_features)`` to ``(N, out_maps, 28, 28)``."""
    _, b, c = maps
    return nn.Sequential(
        nn.Linear(in_features, c * SMALL_SIDE**2),
        nn.ReLU(),
        nn.Unflatten(-1, (c, SMALL_SIDE, SMALL_SIDE)),
        *_convolution(c, c),
        _upsample(c, b, 0),
        nn.ReLU(),
        *upsampler_of_map(b, maps, out_maps),
    )
