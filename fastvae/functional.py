"""Every public function: ``import fastvae.functional as F``."""

from .ops.diag_gaussian import diag_gaussian_rsample
from .ops.diag_gaussian_density import diag_gaussian_kl, diag_gaussian_log_prob
from .ops.tril_gaussian import tril_gaussian_rsample
from .ops.tril_gaussian_density import tril_gaussian_kl, tril_gaussian_log_prob

__all__ = [
    "diag_gaussian_kl",
    "diag_gaussian_log_prob",
    "diag_gaussian_rsample",
    "tril_gaussian_kl",
    "tril_gaussian_log_prob",
    "tril_gaussian_rsample",
]
