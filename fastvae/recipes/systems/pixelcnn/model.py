"""PixelCNN over binary images, without latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .config import PixelCNNConfig
from .layers import SIDE, make_network, to_images

__all__ = ["CLASSES", "BinaryPixelCNN"]

CLASSES = 10


class BinaryPixelCNN(nn.Module):
    r""":math:`p(x) = \prod_i p(x_i \mid x_{<i})`, Bernoulli, by a PixelCNN or a gated PixelCNN.

    A conditional one is p(x | y): its methods need the ``labels`` of the images.

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
        context = {"context_features": config.maps} if config.conditional else {}
        self.network = make_network(config, **context)
        self.embedding = nn.Embedding(CLASSES, config.maps) if config.conditional else None

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """log p(x) of binary images ``(N, 784)``: ``(N,)``, nats."""
        return self.network.log_prob(to_images(x), self.embed(labels))

    def embed(self, labels: Tensor | None) -> Tensor | None:
        """The context of images of these classes, ``(N, maps)``; None for a model that has none."""
        return None if self.embedding is None or labels is None else self.embedding(labels)

    def encode(self, x: Tensor, labels: Tensor | None = None) -> None:
        """There are no latents."""

    def measure(
        self, x: Tensor, posterior: None = None, labels: Tensor | None = None, **noise: Any
    ) -> tuple[Tensor, Tensor]:
        """log p(x), ``(N,)``, and no KL term, ``(N, 0)``."""
        log_p = self.log_prob(x, labels)
        return log_p, log_p.new_zeros(len(x), 0)

    def log_weights(
        self, x: Tensor, posterior: None, samples: int, labels: Tensor | None = None, **noise: Any
    ) -> Tensor:
        """log p(x) for every sample, ``(samples, N)``; nothing is drawn."""
        return self.log_prob(x, labels).expand(samples, -1)

    def sample(
        self,
        n: int,
        *,
        labels: Tensor | None = None,
        given: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Binary images ``(n, 784)``.

        Args:
            n: number of images.
            labels: their classes, ``(n,)``, for a conditional model; without them the classes take turns.
            given: pixels that are kept, ``(n, 784)``, and NaN where one is to be drawn.
            temperature: below 1, likelier images.
            generator: source of the seed.
        """
        kept = None if given is None else to_images(given)
        if self.embedding is not None and labels is None:
            labels = torch.arange(n, device=self.embedding.weight.device) % CLASSES
        how: dict[str, Any] = {"given": kept, "temperature": temperature, "generator": generator}
        images = self.network.sample(n, (SIDE, SIDE), context=self.embed(labels), **how)
        return images.flatten(1)
