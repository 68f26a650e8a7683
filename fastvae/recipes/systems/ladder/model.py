"""The ladder network: a classifier whose layers are denoised from above, each against its own clean value."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...batch_statistics import EPS, CollectedBatchNorm, normalize_rows
from .combinator import Combinator
from .config import LadderConfig

__all__ = ["CleanLayer", "Ladder"]


class CleanLayer(NamedTuple):
    """What a layer is denoised towards.

    Args:
        z: values ``(N, units)`` before batch norm.
        scale: the reciprocal of their standard deviation, ``(units,)``.
    """

    z: Tensor
    scale: Tensor


class Ladder(nn.Module):
    r"""p(y | x) by a multilayer perceptron with batch norm, and a decoder that denoises its layers.

    With noise :math:`n`, batch norm :math:`N`, weights :math:`W_l` down to up and :math:`V_l` up to down, the noisy
    pass and the decoder are

    .. math::

        \tilde z_l = N(W_l \tilde h_{l-1}) + n_l, \qquad \tilde h_l = \phi(\tilde z_l + \beta_l), \qquad
        u_l = N(V_{l+1} \hat z_{l+1}), \qquad \hat z_l = g_l(\tilde z_l, u_l).

    The clean pass has no noise. The cost of a layer is the mean over rows and units of
    :math:`((\hat z_l - \mu_l) / \sigma_l - z_l)^2`, with mean and standard deviation of the clean pass before its batch
    norm, through which gradients go, too. Labelled and unlabelled rows have batch statistics of their own. Whatever is
    denoised is normalised by the statistics of its batch, in training and in evaluation.

    Args:
        config: sizes and noise.

    Reference:
        *Semi-Supervised Learning with Ladder Networks* (Rasmus, Berglund, Honkala, Valpola, Raiko, 2015).

    Example:
        >>> model = Ladder(LadderConfig(hidden_features=(16, 8)))
        >>> logits, costs = model.denoise(torch.rand(3, 784), torch.rand(4, 784), torch.randn(7, model.noise_features))
        >>> logits.shape, costs.shape
        (torch.Size([3, 10]), torch.Size([4]))
    """

    def __init__(self, config: LadderConfig) -> None:
        super().__init__()
        self.config = config
        pairs = list(itertools.pairwise(config.widths))
        self.up = nn.ModuleList(nn.Linear(below, above, bias=False) for below, above in pairs)
        self.down = nn.ModuleList(nn.Linear(above, below, bias=False) for below, above in pairs)
        for layer in (*self.up, *self.down):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        self.norms = nn.ModuleList(CollectedBatchNorm(above, affine=False) for _, above in pairs)
        self.shifts = nn.ParameterList(torch.zeros(above) for _, above in pairs)
        # Only the classes have a scale: the next layer's weights are one for ReLU.
        self.top_scale = nn.Parameter(torch.ones(config.classes))
        self.combinators = nn.ModuleList(Combinator(width) for width in config.widths)
        self.noise_features = sum(config.widths)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, classes)`` of inputs ``(N, pixels)``, without noise."""
        h = x
        for index, (linear, norm) in enumerate(zip(self.up, self.norms, strict=True)):
            h = self.activate(index, norm(linear(h)))
        return h

    def class_logits(self, x: Tensor) -> Tensor:
        """As :meth:`forward`."""
        found: Tensor = self(x)
        return found

    def activate(self, index: int, z: Tensor) -> Tensor:
        """What goes up from a layer: ReLU, or the logits of the classes."""
        shifted = z + self.shifts[index]
        return shifted * self.top_scale if index == len(self.up) - 1 else shifted.relu()

    def encode_noisy(self, x: Tensor, noise: Tensor, labelled: int) -> tuple[Tensor, list[Tensor]]:
        """The noisy pass: logits, and the noisy values of every layer from the input up.

        Args:
            x: inputs ``(N, pixels)``, labelled ones first.
            noise: normals ``(N, noise_features)``.
            labelled: how many are labelled.
        """
        first, *others = (self.config.noise * noise).split(self.config.widths, 1)
        layers = [x + first]
        h = layers[0]
        halves = [rows for rows in (labelled, len(x) - labelled) if rows]
        for index, linear in enumerate(self.up):
            z = torch.cat([normalize_rows(half) for half in linear(h).split(halves)]) + others[index]
            layers.append(z)
            h = self.activate(index, z)
        return h, layers

    def encode_clean(self, x: Tensor) -> list[CleanLayer]:
        """The clean pass over unlabelled inputs: what every layer is denoised towards, from the input up."""
        layers, h = [CleanLayer(x, x.new_ones(()))], x
        for index, linear in enumerate(self.up):
            z = linear(h)
            layers.append(CleanLayer(z, (z.var(0, correction=0) + EPS).rsqrt()))
            h = self.activate(index, normalize_rows(z))
        return layers

    def decode(self, logits: Tensor, noisy: list[Tensor]) -> list[Tensor]:
        """Estimates of the clean values of every layer from the input up.

        Args:
            logits: of the noisy pass, ``(N, classes)``.
            noisy: the noisy values of every layer.
        """
        found, guess = [], logits.softmax(-1)
        for index in reversed(range(len(noisy))):
            z_hat = self.combinators[index](noisy[index], normalize_rows(guess))
            found.append(z_hat)
            if index:
                guess = self.down[index - 1](z_hat)
        return found[::-1]

    def denoise(self, x_l: Tensor, x_u: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Noisy logits of the labelled inputs, and the cost of every layer at the unlabelled ones, ``(layers + 1,)``.

        Args:
            x_l: labelled inputs ``(N, pixels)``.
            x_u: unlabelled inputs ``(M, pixels)``.
            noise: normals ``(N + M, noise_features)``.

        Raises:
            ValueError: there is one labelled input, or fewer than 2 unlabelled ones.
        """
        labelled = len(x_l)
        logits, layers = self.encode_noisy(torch.cat([x_l, x_u]), noise, labelled)
        found = self.decode(logits[labelled:], [z[labelled:] for z in layers])
        # Both sides of the difference have the same mean, which goes out.
        costs = [
            ((z_hat - clean.z) * clean.scale).square().mean()
            for z_hat, clean in zip(found, self.encode_clean(x_u), strict=True)
        ]
        return logits[:labelled], torch.stack(costs)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Inputs ``(N, pixels)`` with noise and denoised, in [0, 1].

        Raises:
            ValueError: there are fewer than 2.
        """
        noise = torch.randn((len(x), self.noise_features), dtype=x.dtype, device=x.device, generator=generator)
        logits, layers = self.encode_noisy(x, noise, 0)
        return self.decode(logits, layers)[0].clamp(0.0, 1.0)
