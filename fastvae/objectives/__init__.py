"""Objectives of training and evaluation: bounds, score functions, estimates of log p(x), free bits and schedules."""

from .antithetic import antithetic_gradient
from .bounds import checkpointed_iwae_bound, elbo, iwae_bound, monte_carlo_elbo, standard_normal_log_prob
from .classes import class_bound
from .doubly_reparameterized import dreg_bound
from .importance import LogMeanExp, importance_log_prob
from .regularisation import free_bits
from .relaxations import concrete_sample, rebar
from .schedules import CyclicSchedule, LinearSchedule, SigmoidSchedule
from .score_function import RunningBaseline, leave_one_out, score_function, vimco_bound

__all__ = [
    "CyclicSchedule",
    "LinearSchedule",
    "LogMeanExp",
    "RunningBaseline",
    "SigmoidSchedule",
    "antithetic_gradient",
    "checkpointed_iwae_bound",
    "class_bound",
    "concrete_sample",
    "dreg_bound",
    "elbo",
    "free_bits",
    "importance_log_prob",
    "iwae_bound",
    "leave_one_out",
    "monte_carlo_elbo",
    "rebar",
    "score_function",
    "standard_normal_log_prob",
    "vimco_bound",
]
