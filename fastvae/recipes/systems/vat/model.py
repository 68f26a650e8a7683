"""A classifier of fully connected layers with batch norm, and the loss that smooths its predictions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ...batch_statistics import CollectedBatchNorm
from .config import VATConfig
from .perturbation import adversarial_direction, prediction_divergence

__all__ = ["VATClassifier"]


class VATClassifier(nn.Module):
    r"""p(y | x) by a multilayer perceptron with batch norm and ReLU.

    Logits have batch norm, too, unless ``norm_logits`` is off. Without it predictions become smooth where one class
    takes over the images of another. It keeps the mean and the variance of every logit over a batch.

    Args:
        config: sizes.

    Reference:
        *Virtual Adversarial Training: A Regularization Method for Supervised and Semi-Supervised Learning* (Miyato,
        Maeda, Koyama, Ishii, 2018).

    Example:
        >>> model = VATClassifier(VATConfig(hidden_features=(16,)))
        >>> model(torch.rand(4, 784)).shape
        torch.Size([4, 10])
    """

    def __init__(self, config: VATConfig) -> None:
        super().__init__()
        self.config = config
        widths = (config.data_features, *config.hidden_features)
        self.features = nn.Sequential(*_layers(widths))
        self.to_logits = nn.Linear(widths[-1], config.classes, bias=not config.norm_logits)
        self.logits_norm = CollectedBatchNorm(config.classes) if config.norm_logits else nn.Identity()
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, classes)`` of inputs ``(N, pixels)``."""
        found: Tensor = self.logits_norm(self.to_logits(self.features(x)))
        return found

    def class_logits(self, x: Tensor) -> Tensor:
        """As :meth:`forward`."""
        found: Tensor = self(x)
        return found

    def smoothness(self, x: Tensor, noise: Tensor, logits: Tensor | None = None) -> Tensor:
        r"""KL(p(x) || p(x + r)) of every input, ``(N,)``, nats, with :math:`r = \epsilon g / \lVert g \rVert`.

        No gradient goes through p(x) and r.

        Args:
            x: inputs, ``(N, pixels)``.
            noise: normals ``(N, pixels)``, where the search for r begins.
            logits: of p(x), where they are known, ``(N, classes)``.
        """
        with torch.no_grad():
            log_p = (self(x) if logits is None else logits).log_softmax(-1)
        r = self.config.epsilon * adversarial_direction(
            self, x, log_p, noise, step=self.config.xi, turns=self.config.power_iterations
        )
        return prediction_divergence(log_p, self(x + r))


def _layers(widths: Sequence[int]) -> Iterator[nn.Module]:
    for before, after in itertools.pairwise(widths):
        # Batch norm takes away what a bias adds.
        yield nn.Linear(before, after, bias=False)
        yield CollectedBatchNorm(after)
        yield nn.ReLU()
