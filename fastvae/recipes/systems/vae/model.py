"""A variational auto-encoder of binary images with a diagonal or a triangular Gaussian posterior."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from ..distributions import DiagonalGaussian, StandardNormal, TriangularGaussian
from ..likelihoods import bernoulli_log_prob
from ..nn import DiagonalGaussianHead, TriangularGaussianHead
from ..objectives import LogMeanExp, elbo, importance_log_prob, monte_carlo_elbo, standard_normal_log_prob
from .batches import EVALUATION, stream_seed
from .config import VAEConfig

__all__ = ["VAE", "Evaluation", "LatentVariableModel", "evaluate"]

HEADS = {"diagonal": DiagonalGaussianHead, "triangular": TriangularGaussianHead}


class LatentVariableModel(Protocol):
    """What evaluation and pictures ask of a model; ``encode`` returns what has ``rsample_with_log_prob``."""

    @property
    def config(self) -> Any: ...
    def encode(self, x: Tensor) -> Any: ...
    def decode(self, z: Tensor) -> Tensor: ...
    def kl(self, q: Any, z: Tensor, log_q: Tensor) -> Tensor: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...


class VAE(nn.Module):
    r"""Encoder and decoder are multilayer perceptrons, p(z) = N(0, I), and p(x | z) is Bernoulli.

    Args:
        config: sizes, posterior and implementation.

    Reference:
        *Auto-Encoding Variational Bayes* (Kingma, Welling, 2013).

    Example:
        >>> from fastvae.recipes.config import VAEConfig
        >>> model = VAE(VAEConfig("triangular", latent_features=8, hidden_features=(32,)))
        >>> model.bound(torch.rand(4, 784).round()).shape
        torch.Size([4])
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.hidden_features
        self.encoder = nn.Sequential(*_layers([config.data_features, *widths]))
        self.head = HEADS[config.posterior](widths[-1], config.latent_features, impl=config.impl)
        self.decoder = nn.Sequential(*_layers([config.latent_features, *reversed(widths)]))
        self.to_logits = nn.Linear(widths[0], config.data_features)
        self.prior = StandardNormal(config.latent_features, impl=config.impl)

    def encode(self, x: Tensor) -> DiagonalGaussian | TriangularGaussian:
        """The posterior q(z | x) of binary images ``(*, pixels)``."""
        features = self.encoder(x)
        if self.config.posterior == "diagonal":
            return self.head(features)
        mu, log_sigma, tril = self.head.posterior_parameters(features)
        return TriangularGaussian(mu, log_sigma, self.config.tril_scale * tril, impl=self.config.impl)

    def decode(self, z: Tensor) -> Tensor:
        """Logits ``(*, pixels)`` of p(x | z)."""
        return self.to_logits(self.decoder(z))

    @torch.no_grad()
    def start_at(self, pixel_means: Tensor) -> None:
        """Sets the decoder's last bias such that a new model starts at these intensities, ``(pixels,)``."""
        self.to_logits.bias.copy_(pixel_means.clamp(1e-3, 1.0 - 1e-3).logit())

    def kl(self, q: DiagonalGaussian | TriangularGaussian, z: Tensor, log_q: Tensor) -> Tensor:
        """The KL divergence of q from the prior, ``(N,)``: in closed form, whatever the sample."""
        return kl_divergence(q, self.prior)

    def bound(self, x: Tensor, *, beta: float = 1.0, **noise: Any) -> Tensor:
        """The evidence lower bound of every image of ``(N, pixels)`` from one sample: ``(N,)``, nats.

        Args:
            x: binary images.
            beta: weight of the KL term.
            noise: ``generator``, ``row_offset`` or ``eps`` of the posterior's ``rsample_with_log_prob``.
        """
        q = self.encode(x)
        z, log_q = q.rsample_with_log_prob(**noise)
        log_p_x = bernoulli_log_prob(x, self.decode(z))
        if self.config.kl == "analytic":
            return elbo(log_p_x, self.kl(q, z, log_q), beta=beta)
        return monte_carlo_elbo(log_p_x, standard_normal_log_prob(z), log_q, beta=beta)


def _layers(widths: Sequence[int]) -> Iterator[nn.Module]:
    for before, after in itertools.pairwise(widths):
        yield nn.Linear(before, after)
        yield nn.ELU()


@dataclass(frozen=True)
class Evaluation:
    """Means over test images, in nats: the ELBO and its KL part, and the importance-sampled log p(x)."""

    elbo: float
    kl: float
    elbo_images: int
    log_p: float
    log_p_images: int
    samples: int
    effective_samples: float


@torch.no_grad()
def evaluate(
    model: LatentVariableModel,
    x: Tensor,
    *,
    samples: int = 128,
    log_p_images: int = 10_000,
    seed: int = 0,
    image_chunk: int = 100,
    sample_chunk: int = 32,
    progress: bool = False,
) -> Evaluation:
    """Test ELBO and importance-sampled log p(x) of a trained model.

    Args:
        model: the model; its device is used.
        x: binary test images ``(N, pixels)``.
        samples: number K of importance samples.
        log_p_images: how many of the first images log p(x) is estimated on.
        seed: of the posterior noise.
        image_chunk: images at a time.
        sample_chunk: samples at a time.
        progress: whether to show a progress bar.

    Returns:
        The means. The ELBO takes one sample for each image, and the analytic KL where there is one.
    """
    from tqdm import tqdm

    parameter = next(model.parameters())
    generator = torch.Generator(parameter.device).manual_seed(stream_seed(seed, EVALUATION, 0))
    count = min(log_p_images, len(x))
    bounds, divergences, log_ps, effective = [], [], [], []
    starts = tqdm(range(0, len(x), image_chunk), desc="evaluating", unit="chunk", disable=not progress, leave=False)
    for start in starts:
        rows = x[start : start + image_chunk].to(parameter)
        q = model.encode(rows)
        z, log_q = q.rsample_with_log_prob(generator=generator)
        kl = model.kl(q, z, log_q)
        bounds.append(elbo(bernoulli_log_prob(rows, model.decode(z)), kl).sum())
        divergences.append(kl.sum())
        if start >= count:
            continue

        def log_weights(k: int, rows: Tensor = rows, q: Any = q) -> Tensor:
            z, log_q = q.rsample_with_log_prob((k,), generator=generator)
            return monte_carlo_elbo(bernoulli_log_prob(rows, model.decode(z)), standard_normal_log_prob(z), log_q)

        accumulator = LogMeanExp()
        log_ps.append(importance_log_prob(log_weights, samples, sample_chunk, accumulator=accumulator))
        effective.append(accumulator.effective_sample_size())
    return Evaluation(
        elbo=float(torch.stack(bounds).sum() / len(x)),
        kl=float(torch.stack(divergences).sum() / len(x)),
        elbo_images=len(x),
        log_p=float(torch.cat(log_ps)[:count].mean()),
        log_p_images=count,
        samples=samples,
        effective_samples=float(torch.cat(effective)[:count].mean()),
    )
