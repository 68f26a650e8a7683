"""Sampling of images from causal networks, each activation being computed once."""

from ..likelihoods.pixels import Bernoulli, Categorical, LogisticMixture, PixelLikelihood
from .sampler import CausalSampler

__all__ = ["Bernoulli", "Categorical", "CausalSampler", "LogisticMixture", "PixelLikelihood"]
