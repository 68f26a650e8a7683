"""Every public function: ``import fastvae.functional as F``."""

from .likelihoods.logistic import discretized_logistic_log_prob, logistic_mixture_sample
from .ops.affine_flow import affine_flow
from .ops.attention_window import attention_filters, attention_read, attention_write
from .ops.bernoulli import bernoulli_sample
from .ops.class_linear import class_linear
from .ops.diag_gaussian import diag_gaussian_rsample
from .ops.diag_gaussian_density import diag_gaussian_kl, diag_gaussian_log_prob
from .ops.diag_gaussian_with_kl import diag_gaussian_rsample_with_kl
from .ops.gated_activation import gated_activation
from .ops.gaussian_merge import gaussian_merge, gaussian_merge_rsample
from .ops.latent_gradient import latent_gradient
from .ops.latent_hessian_product import latent_hessian_product
from .ops.linear_bernoulli import linear_bernoulli_log_prob
from .ops.linear_tril_gaussian import linear_tril_gaussian_rsample_with_kl
from .ops.logistic_mixture import logistic_mixture_log_prob
from .ops.masked_conv2d import masked_conv2d
from .ops.masked_linear import masked_linear
from .ops.mlp_bernoulli import mlp_bernoulli_log_prob
from .ops.tril_gaussian import tril_gaussian_rsample
from .ops.tril_gaussian_density import tril_gaussian_kl, tril_gaussian_log_prob
from .ops.tril_gaussian_with_kl import tril_gaussian_rsample_with_kl

__all__ = [
    "affine_flow",
    "attention_filters",
    "attention_read",
    "attention_write",
    "bernoulli_sample",
    "class_linear",
    "diag_gaussian_kl",
    "diag_gaussian_log_prob",
    "diag_gaussian_rsample",
    "diag_gaussian_rsample_with_kl",
    "discretized_logistic_log_prob",
    "gated_activation",
    "gaussian_merge",
    "gaussian_merge_rsample",
    "latent_gradient",
    "latent_hessian_product",
    "linear_bernoulli_log_prob",
    "linear_tril_gaussian_rsample_with_kl",
    "logistic_mixture_log_prob",
    "logistic_mixture_sample",
    "masked_conv2d",
    "masked_linear",
    "mlp_bernoulli_log_prob",
    "tril_gaussian_kl",
    "tril_gaussian_log_prob",
    "tril_gaussian_rsample",
    "tril_gaussian_rsample_with_kl",
]

from .ops import flops as _flops  # noqa: F401  # last: registers formulas for the ops above
