"""The model M2: p(x | y, z) with a class y that is known of a few data points, and q(y | x)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...distributions import DiagonalGaussian
from ...nn import initialize_from_data
from ...objectives import LogMeanExp, class_bound, importance_log_prob
from .conditional import ConditionalVAE, list_layers

__all__ = ["ClassPosterior", "SemiSupervisedVAE"]


class ClassPosterior(NamedTuple):
    """q(z | x, y) for every class, and the logits ``(N, C)`` of q(y | x)."""

    latents: DiagonalGaussian
    class_logits: Tensor


class SemiSupervisedVAE(ConditionalVAE):
    r"""A :class:`ConditionalVAE` with uniform p(y) and a classifier q(y | x), a multilayer perceptron.

    .. math::
        \mathcal{L}(x, y) = \log p(x \mid y, z) + \log p(y) - D_{KL}(q(z \mid x, y) \,\|\, p(z)), \qquad
        \mathcal{U}(x) = \sum_y q(y \mid x) \left(\mathcal{L}(x, y) - \log q(y \mid x)\right)

    Args:
        config: as of :class:`ConditionalVAE`.
        data_features: numbers that the encoder and the classifier are given.
        outputs: numbers that the decoder returns.

    Reference:
        *Semi-Supervised Learning with Deep Generative Models* (Kingma, Rezende, Mohamed, Welling, 2014).
    """

    def __init__(self, config: Any, data_features: int, outputs: int) -> None:
        super().__init__(config, data_features, outputs)
        widths = config.hidden_features
        layers = list_layers((data_features, *widths), config.activation)
        self.classifier = nn.Sequential(*layers, nn.Linear(widths[-1], config.classes))

    def class_logits(self, x: Tensor) -> Tensor:
        """Logits of q(y | x), ``(N, C)``."""
        logits: Tensor = self.classifier(x)
        return logits

    @torch.no_grad()
    def initialize_from(self, x: Tensor, labels: Tensor | None = None, **noise: Any) -> None:
        """As of the class above. The hidden layers of the classifier start so, too."""
        super().initialize_from(x, labels, **noise)
        hidden = [layer for layer in list(self.classifier)[:-1] if isinstance(layer, nn.Linear)]
        initialize_from_data(self, x, run=self.class_logits, plain=hidden)

    @property
    def knows_classes(self) -> bool:
        """Whether q(y | x) was trained. Weights that came without it have zeros in its place."""
        return any(bool(parameter.any()) for parameter in self.classifier.parameters())

    def labelled_bound(self, x: Tensor, labels: Tensor, **noise: Any) -> Tensor:
        """The bound of log p(x, y), ``(N,)``, nats, from one sample of z."""
        log_p_x, kl = self.measure_classes(x, labels, **noise)
        return log_p_x - kl - math.log(self.config.classes)

    def unlabelled_bound(self, x: Tensor, **noise: Any) -> Tensor:
        """The bound of log p(x), ``(N,)``, nats, from one sample of z for each class."""
        log_p_x, kl = self.measure_classes(x, **noise)
        return class_bound(log_p_x, kl, self.class_logits(x))[0]

    def encode(self, x: Tensor) -> ClassPosterior:
        return ClassPosterior(self.posterior(x), self.class_logits(x))

    def measure(self, x: Tensor, posterior: ClassPosterior | None = None, **noise: Any) -> tuple[Tensor, Tensor]:
        """The mean of log p(x | y, z) under q(y | x), ``(N,)``, and the divergences of z and of y, ``(N, 2)``, nats.

        Without a trained q(y | x) it is the distribution of classes with the largest bound, given the sample.
        """
        latents, class_logits = self.encode(x) if posterior is None else posterior
        z, kl = self.sample_posterior(latents, **noise)
        log_p_x = self.log_likelihood(x, z)
        # The bound is largest with the softmax of the bounds of log p(x, y).
        log_q = (class_logits if self.knows_classes else log_p_x - kl).log_softmax(-1)
        q = log_q.exp()
        of_classes = (q * (log_q + math.log(self.config.classes))).sum(-1)
        return (q * log_p_x).sum(-1), torch.stack([(q * kl).sum(-1), of_classes], -1)

    @torch.no_grad()
    def infer_classes(
        self, x: Tensor, samples: int, *, sample_chunk: int = 4, joint: LogMeanExp | None = None, **noise: Any
    ) -> Tensor:
        """log p(x, y), ``(N, C)``, nats, by importance samples: logits of the model's own p(y | x).

        Args:
            x: data ``(N, features)``.
            samples: of z, for each class.
            sample_chunk: samples at a time.
            joint: takes in the log-weights of log p(x), if it is given.
            noise: a ``generator``.
        """
        q, log_p_y = self.posterior(x), -math.log(self.config.classes)

        def draw(count: int) -> Tensor:
            weights = self.weigh_classes(x, q, count, **noise) + log_p_y
            if joint is not None:
                joint.update(weights.logsumexp(-1))
            return weights

        return importance_log_prob(draw, samples, sample_chunk)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Intensities ``(N, pixels)`` of p(x | y, z), with the likeliest class and a z ~ q(z | x, y)."""
        logits = self.class_logits(x) if self.knows_classes else self.infer_classes(x, 1, generator=generator)
        labels = logits.argmax(-1)
        z, _ = self.posterior(x, labels).rsample_with_log_prob(generator=generator)
        return self.to_intensities(self.decode(z, labels))
