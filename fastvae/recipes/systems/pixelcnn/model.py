"""PixelCNN over binary images, without latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .config import PixelCNNConfig
from .layers import SIDE, make_network, to_images

__all__ = ["BinaryPixelCNN"]


class BinaryPixelCNN(nn.Module):
    r""":math:`p(x) = \prod_i p(x_i \mid x_{<i})`, Bernoulli, by a PixelCNN or a gated PixelCNN.

    Args:
        config: sizes, kind of network and implementation.

    Reference:
        *Conditional Image Generation with PixelCNN Decoders* (van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves,
        Kavukcuoglu, 2016).

    Example:
        >>> model = BinaryPixelCNN(PixelCNNConfig(layers=2, maps=4))
        >>> model.log_prob(torch.rand(3, 784).round()).shape
        torch.Size([3])
    """

    quantity = "log_p"
    kl_names: tuple[str, ...] = ()
    noise_features = 0

    def __init__(self, config: PixelCNNConfig) -> None:
        super().__init__()
        self.config = config
        self.network = make_network(config)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) of binary images ``(N, 784)``: ``(N,)``, nats."""
        return self.network.log_prob(to_images(x))

    def encode(self, x: Tensor) -> None:
        """There are no latents."""

    def measure(self, x: Tensor, posterior: None = None, **noise: Any) -> tuple[Tensor, Tensor]:
        """log p(x), ``(N,)``, and no KL term, ``(N, 0)``."""
        log_p = self.log_prob(x)
        return log_p, log_p.new_zeros(len(x), 0)

    def log_weights(self, x: Tensor, posterior: None, samples: int, **noise: Any) -> Tensor:
        """log p(x) for every sample, ``(samples, N)``; nothing is drawn."""
        return self.log_prob(x).expand(samples, -1)

    def sample(
        self,
        n: int,
        *,
        given: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Binary images ``(n, 784)``.

        Args:
            n: number of images.
            given: pixels that are kept, ``(n, 784)``, and NaN where one is to be drawn.
            temperature: below 1, likelier images.
            generator: source of the seed.
        """
        kept = None if given is None else to_images(given)
        images = self.network.sample(n, (SIDE, SIDE), given=kept, temperature=temperature, generator=generator)
        return images.flatten(1)
