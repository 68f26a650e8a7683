"""Networks over binary images of 28 x 28 pixels."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ....nn.gated_pixelcnn import GatedPixelCNN
from ....nn.pixelcnn import PixelCNN, PixelNetwork

__all__ = ["SIDE", "make_network", "to_images"]

SIDE = 28


def to_images(x: Tensor) -> Tensor:
    """Rows of pixels ``(N, 784)`` as ``(N, 1, 28, 28)``."""
    return x.unflatten(-1, (1, SIDE, SIDE))


def make_network(config: Any, **context: int) -> PixelNetwork:
    """The network over pixels of these settings; ``context`` is ``context_features`` or ``context_channels``."""
    kinds: dict[str, Any] = {"gated": GatedPixelCNN, "plain": PixelCNN}
    network: PixelNetwork = kinds[config.network](
        1,
        config.maps,
        config.layers,
        config.filter_size,
        first_kernel_size=config.first_filter_size,
        head_channels=config.head_maps or None,
        weight_norm=config.weight_norm,
        impl=config.impl,
        **context,
    )
    return network
