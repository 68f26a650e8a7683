"""Likelihoods: of binary data given logits, of pixels given logistics, and what samplers draw pixels from."""

from .bernoulli import bernoulli_log_prob
from .logistic import discretized_logistic_log_prob, logistic_mixture_log_prob, logistic_mixture_sample

__all__ = [
    "bernoulli_log_prob",
    "discretized_logistic_log_prob",
    "logistic_mixture_log_prob",
    "logistic_mixture_sample",
]
