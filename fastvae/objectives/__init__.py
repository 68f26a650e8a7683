"""Objectives of training and evaluation: bounds, estimates of log p(x), free bits and schedules."""

from .bounds import checkpointed_iwae_bound, elbo, iwae_bound, monte_carlo_elbo, standard_normal_log_prob
from .classes import class_bound
from .doubly_reparameterized import dreg_bound
from .importance import LogMeanExp, importance_log_prob
from .regularisation import free_bits
from .schedules import CyclicSchedule, LinearSchedule, SigmoidSchedule

__all__ = [
    "CyclicSchedule",
    "LinearSchedule",
    "LogMeanExp",
    "SigmoidSchedule",
    "checkpointed_iwae_bound",
    "class_bound",
    "dreg_bound",
    "elbo",
    "free_bits",
    "importance_log_prob",
    "iwae_bound",
    "monte_carlo_elbo",
    "standard_normal_log_prob",
]
