"""A user's program, which mypy checks against the types that fastvae declares; nothing runs it."""

import torch
from torch import Tensor
from typing_extensions import assert_type

import fastvae
import fastvae.functional as F
from fastvae.distributions import DiagonalGaussian
from fastvae.nn import MADE, InverseAutoregressiveFlow


def sample(mu: Tensor, log_sigma: Tensor) -> Tensor:
    z, log_q = F.diag_gaussian_rsample(mu, log_sigma, (3,))
    assert_type(z, Tensor)
    assert_type(log_q, Tensor)
    flow = InverseAutoregressiveFlow(mu.shape[-1], (64, 64), steps=2)
    z_next, log_det = flow.inverse(z)
    assert_type(z_next, Tensor)
    assert_type(log_det, Tensor)
    assert_type(F.diag_gaussian_kl(mu, log_sigma), Tensor)
    posterior = DiagonalGaussian(mu, log_sigma)
    assert_type(posterior.rsample(), Tensor)
    F.diag_gaussian_kl(mu, "log_sigma")  # type: ignore[arg-type]
    return z_next


def describe() -> str:
    with fastvae.backend.use("reference"):
        network = MADE(5, (16,))
    assert_type(fastvae.backend.resolve("auto", torch.zeros(1)), str)
    network.forward(torch.zeros(2, 5))
    return fastvae.backend.report()
