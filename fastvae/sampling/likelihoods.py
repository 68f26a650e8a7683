"""The likelihoods of :mod:`fastvae.likelihoods.pixels`, by the name of the sampler that draws from them."""

from ..likelihoods.pixels import LIKELIHOODS, Bernoulli, Categorical, LogisticMixture, PixelLikelihood, resolve

__all__ = ["LIKELIHOODS", "Bernoulli", "Categorical", "LogisticMixture", "PixelLikelihood", "resolve"]
