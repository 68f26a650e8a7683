"""Auxiliary and skip deep generative models."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .... import functional as F
from ....distributions import DiagonalGaussian
from ....objectives import class_bound
from ...data.noise import Noise
from .config import ADGMConfig
from .networks import ClassNetwork, Network, make_head
from .statistics import BatchStatistics

__all__ = ["ADGM", "Terms", "TrainingBounds"]

NO_NOISE = Noise()


class Terms(NamedTuple):
    """The terms of the bound for N images and S samples of a, nats; C classes where there are no labels.

    Args:
        log_p_x: log-likelihood of the data, ``(N, S, C)`` or ``(N, S)``.
        kl_a: log q(a | x) - log p(a | ...), of the same shape.
        kl_z: divergence of N(0, I) from q(z | a, x, y), of the same shape.
        class_logits: logits of q(y | a, x), ``(N, S, C)``.
    """

    log_p_x: Tensor
    kl_a: Tensor
    kl_z: Tensor
    class_logits: Tensor


class TrainingBounds(NamedTuple):
    """What a training step maximises, nats, for each image, and the logits of the labelled ones.

    Args:
        unlabelled: bound of log p(x), ``(N,)``.
        labelled: bound of log p(x, y), ``(N_l,)``.
        log_q: mean of log q(y | a, x) over samples of a, ``(N_l,)``.
        logits: of that, ``(N_l, S, C)``.
    """

    unlabelled: Tensor
    labelled: Tensor
    log_q: Tensor
    logits: Tensor


class ADGM(nn.Module):
    r"""A model of data x, classes y, latents z and auxiliary latents a.

    .. math::
        p(x, a, y, z) = p(y)\, p(z)\, p(a \mid x, y, z)\, p(x \mid y, z) \quad\text{(ADGM)}, \qquad
        p(y)\, p(z)\, p(a \mid y, z)\, p(x \mid a, y, z) \quad\text{(SDGM)}

    .. math::
        \mathcal{L}(x, y, a) = \mathbb{E}_{q(z \mid a, x, y)} \log \frac{p(x, a, y, z)}{q(a \mid x) q(z \mid a, x, y)},
        \qquad \mathcal{U}(x) = \mathbb{E}_{q(a \mid x)} \sum_y q(y \mid a, x)
        \left(\mathcal{L}(x, y, a) - \log q(y \mid a, x)\right)

    The mean over a is outside of the sum over the classes. p(y) is uniform, p(z) = N(0, I).

    Args:
        config: kind, sizes and implementation; its ``data_features``, ``classes`` and ``likelihood`` are known.

    Raises:
        ValueError: the config leaves one of them to the data.

    Reference:
        *Auxiliary Deep Generative Models* (Maaløe, Sønderby, Sønderby, Winther, 2016).

    Example:
        >>> from fastvae.recipes.systems.adgm.config import ADGMConfig
        >>> sizes = {"latent_features": 4, "auxiliary_features": 3, "hidden_features": (16, 16)}
        >>> model = ADGM(ADGMConfig("sdgm", data_features=64, classes=10, likelihood="bernoulli", **sizes))
        >>> x = torch.rand(5, 64).round()
        >>> model.unlabelled_bound(x).shape, model.labelled_bound(x, torch.arange(5)).shape
        (torch.Size([5]), torch.Size([5]))
    """

    def __init__(self, config: ADGMConfig) -> None:
        super().__init__()
        for name, known in (("data_features", config.data_features), ("classes", config.classes)):
            if not known:
                raise ValueError(f"{name} must be >= 1 for a model, got {known}")
        if config.likelihood == "auto":
            raise ValueError("likelihood must be 'bernoulli' or 'gaussian' for a model, got 'auto'")
        self.config = config
        pixels, a, z = config.data_features, config.auxiliary_features, config.latent_features
        widths, last, classes, impl = config.hidden_features, config.hidden_features[-1], config.classes, config.impl
        skips = config.kind == "sdgm"
        self.encode_a = Network([pixels], widths)
        self.a_head = make_head(last, a, impl)
        self.classify = Network([pixels, a], widths)
        self.to_classes = nn.Linear(last, classes)
        self.encode_z = ClassNetwork([pixels, a], classes, widths, impl)
        self.z_head = make_head(last, z, impl)
        self.decode_a = ClassNetwork([z] if skips else [pixels, z], classes, widths, impl)
        self.prior_head = make_head(last, a, impl)
        self.decode_x = ClassNetwork([a, z] if skips else [z], classes, widths, impl)
        self.to_data = nn.Linear(last, pixels) if config.likelihood == "bernoulli" else make_head(last, pixels, impl)

    def posterior_a(self, x: Tensor, statistics: BatchStatistics | None = None) -> DiagonalGaussian:
        """q(a | x), of data ``(*, pixels)``."""
        found: DiagonalGaussian = self.a_head(self.encode_a(x, statistics=statistics))
        return found

    def draw_a(
        self, x: Tensor, samples: int, noise: Noise, statistics: BatchStatistics | None = None
    ) -> tuple[Tensor, Tensor]:
        """Samples of q(a | x), ``(N, S, A)``, and their log-densities, ``(N, S)``."""
        q = self.posterior_a(x[:, None], statistics).expand((len(x), samples))
        return q.rsample_with_log_prob(**noise.options(0, q.mu, self.config.impl))

    def logits_given_a(self, x: Tensor, a: Tensor, statistics: BatchStatistics | None = None) -> Tensor:
        """Logits of q(y | a, x), ``(N, S, C)``."""
        logits: Tensor = self.to_classes(self.classify(x[:, None], a, statistics=statistics))
        return logits

    def measure_terms(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        *,
        samples: int = 1,
        noise: Noise = NO_NOISE,
        statistics: BatchStatistics | None = None,
    ) -> Terms:
        """The terms of the bound, for every class or for labels.

        Args:
            x: data ``(N, pixels)``.
            labels: classes ``(N,)``; None for all.
            samples: S, of a for each image, with one z each.
            noise: of a and z.
            statistics: of the training step; None outside of training.
        """
        a, log_q_a = self.draw_a(x, samples, noise, statistics)
        logits = self.logits_given_a(x, a, statistics)
        if statistics is not None and statistics.are_taken:
            statistics.class_weights = logits.detach().softmax(-1)
        own = None if labels is None else labels[:, None]
        q_z = self.z_head(self.encode_z(x[:, None], a, labels=own, statistics=statistics))
        z, _, kl_z = q_z.rsample_with_kl(**noise.options(1, q_z.mu, self.config.impl))
        if labels is None:
            x, a, log_q_a = x[:, None, None], a[:, :, None], log_q_a[..., None]
        else:
            x = x[:, None]
        kl_a = log_q_a - self.log_prior_a(x, a, z, own, statistics)
        return Terms(self.log_likelihood(x, a, z, own, statistics), kl_a, kl_z, logits)

    # Below, labels are ``(N, 1)`` for tensors ``(N, S, ...)``; None for tensors ``(N, S, C, ...)`` of all classes.

    def prior_a(
        self, x: Tensor, z: Tensor, labels: Tensor | None, statistics: BatchStatistics | None = None
    ) -> DiagonalGaussian:
        """p(a | x, y, z), or p(a | y, z)."""
        inputs = (z,) if self.config.kind == "sdgm" else (x, z)
        labels = self.decode_a.classes if labels is None else labels
        found: DiagonalGaussian = self.prior_head(self.decode_a(*inputs, labels=labels, statistics=statistics))
        return found

    def log_prior_a(
        self, x: Tensor, a: Tensor, z: Tensor, labels: Tensor | None, statistics: BatchStatistics | None = None
    ) -> Tensor:
        p = self.prior_a(x, z, labels, statistics)
        return F.diag_gaussian_log_prob(a.expand(p.mu.shape), p.mu, p.log_sigma, impl=self.config.impl)

    def decode_features(
        self, a: Tensor, z: Tensor, labels: Tensor | None, statistics: BatchStatistics | None = None
    ) -> Tensor:
        """What the last layer of p(x | ...) is given."""
        inputs = (a, z) if self.config.kind == "sdgm" else (z,)
        labels = self.decode_x.classes if labels is None else labels
        features: Tensor = self.decode_x(*inputs, labels=labels, statistics=statistics)
        return features

    def log_likelihood(
        self, x: Tensor, a: Tensor, z: Tensor, labels: Tensor | None, statistics: BatchStatistics | None = None
    ) -> Tensor:
        features = self.decode_features(a, z, labels, statistics)
        if isinstance(self.to_data, nn.Linear):
            layer = self.to_data
            return F.linear_bernoulli_log_prob(features, layer.weight, layer.bias, x, impl=self.config.impl)
        p = self.to_data(features)
        return F.diag_gaussian_log_prob(x.expand(p.mu.shape), p.mu, p.log_sigma, impl=self.config.impl)

    # The bounds

    def unlabelled_bound(self, x: Tensor, *, samples: int = 1, noise: Noise = NO_NOISE) -> Tensor:
        """The bound of log p(x), ``(N,)``, nats, outside of training."""
        return bound_unlabelled(self.measure_terms(x, samples=samples, noise=noise))

    def labelled_bound(self, x: Tensor, labels: Tensor, *, samples: int = 1, noise: Noise = NO_NOISE) -> Tensor:
        """The bound of log p(x, y), ``(N,)``, nats, outside of training."""
        return bound_labelled(self.measure_terms(x, labels, samples=samples, noise=noise))

    def unlabelled_training_bound(self, x: Tensor, *, samples: int = 1, noise: Noise = NO_NOISE) -> Tensor:
        """The bound of log p(x), ``(N,)``, nats, with batch statistics of ``x``, which must be 2 images or more."""
        statistics = BatchStatistics(len(x))
        return bound_unlabelled(self.measure_terms(x, samples=samples, noise=noise, statistics=statistics))

    def training_bounds(
        self,
        x_u: Tensor,
        x_l: Tensor,
        y_l: Tensor,
        *,
        samples: int = 1,
        noise_u: Noise = NO_NOISE,
        noise_l: Noise = NO_NOISE,
        rows: int | None = None,
        kl_weight: float = 1.0,
    ) -> TrainingBounds:
        """The bounds of a training step; the unlabelled images give the batch statistics.

        Args:
            x_u: unlabelled data ``(N, pixels)``.
            x_l: labelled data ``(N_l, pixels)``.
            y_l: its classes ``(N_l,)``.
            samples: S, of a for each image.
            noise_u: of the unlabelled data.
            noise_l: of the labelled data.
            rows: unlabelled images of all processes; N if None.
            kl_weight: of the divergences of a and z.

        Raises:
            ValueError: there are fewer than 2 unlabelled images, or widths differ.
        """
        if x_u.shape[-1] != x_l.shape[-1]:
            raise ValueError(f"x_u must have the width of x_l, {x_l.shape[-1]}, got shape {tuple(x_u.shape)}")
        statistics = BatchStatistics(len(x_u) if rows is None else rows)
        unlabelled = self.measure_terms(x_u, samples=samples, noise=noise_u, statistics=statistics)
        statistics.are_taken = False
        labelled = self.measure_terms(x_l, y_l, samples=samples, noise=noise_l, statistics=statistics)
        log_q = labelled.class_logits.log_softmax(-1)
        own = y_l[:, None, None].expand(-1, log_q.shape[1], 1)
        return TrainingBounds(
            bound_unlabelled(unlabelled, kl_weight),
            bound_labelled(labelled, kl_weight),
            log_q.gather(-1, own).squeeze(-1).mean(1),
            labelled.class_logits,
        )

    # Outside of training

    @torch.no_grad()
    def class_probabilities(self, x: Tensor, *, samples: int = 10, noise: Noise = NO_NOISE) -> Tensor:
        """The mean of q(y | a, x) over samples of a, ``(N, C)``."""
        a, _ = self.draw_a(x, samples, noise)
        return self.logits_given_a(x, a).softmax(-1).mean(1)

    def predict(self, x: Tensor, *, samples: int = 10, noise: Noise = NO_NOISE) -> Tensor:
        """The likeliest class of each image, int64 ``(N,)``."""
        return self.class_probabilities(x, samples=samples, noise=noise).argmax(-1)

    @torch.no_grad()
    def start_at(self, pixel_means: Tensor) -> None:
        """Sets the last bias of p(x | ...) such that a new model starts at these intensities, ``(pixels,)``."""
        if isinstance(self.to_data, nn.Linear):
            self.to_data.bias.copy_(pixel_means.clamp(1e-3, 1.0 - 1e-3).logit())

    def to_means(self, features: Tensor) -> Tensor:
        """Means of p(x | ...), given :meth:`decode_features`."""
        if isinstance(self.to_data, nn.Linear):
            return self.to_data(features).sigmoid()
        means: Tensor = self.to_data(features).mu
        return means

    @torch.no_grad()
    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Means ``(n, pixels)`` of p(x | ...) for z, and a, of the prior; without labels the classes take turns."""
        like = self.to_classes.weight
        labels = torch.arange(n) % self.config.classes if labels is None else labels
        labels, sizes = labels.to(like.device), (self.config.latent_features, self.config.auxiliary_features)
        z, a = (torch.randn(n, size, generator=generator, dtype=like.dtype, device=like.device) for size in sizes)
        # p(x | y, z) of an ADGM does not depend on a.
        if self.config.kind == "sdgm":
            a, _ = self.prior_a(z, z, labels).rsample_with_log_prob(eps=a)
        return self.to_means(self.decode_features(a, z, labels))

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Means ``(N, pixels)`` of p(x | ...) with a ~ q(a | x), the likeliest class, and z ~ q(z | a, x, y)."""
        noise = Noise(generator)
        a, _ = self.draw_a(x, 1, noise)
        labels = self.logits_given_a(x, a).argmax(-1)
        q_z = self.z_head(self.encode_z(x[:, None], a, labels=labels))
        z, _ = q_z.rsample_with_log_prob(**noise.options(1, q_z.mu, self.config.impl))
        return self.to_means(self.decode_features(a, z, labels))[:, 0]


def bound_unlabelled(terms: Terms, kl_weight: float = 1.0) -> Tensor:
    """The sum over classes of each sample of a, then the mean over these: ``(N,)``."""
    kl = kl_weight * (terms.kl_a + terms.kl_z)
    return class_bound(terms.log_p_x, kl, terms.class_logits)[0].mean(1)


def bound_labelled(terms: Terms, kl_weight: float = 1.0) -> Tensor:
    bounds = terms.log_p_x - kl_weight * (terms.kl_a + terms.kl_z) - math.log(terms.class_logits.shape[-1])
    return bounds.mean(1)
