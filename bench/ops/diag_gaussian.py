"""Diagonal Gaussian: sample with log-density, log-density of given points, divergence from N(0, I)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from .. import gaussian
from ..task import Case, Function, Peer, Shape, Task, Work

SHAPES = {"cpu": gaussian.CPU_SHAPES, "cuda": (*gaussian.CPU_SHAPES, Shape(65536, 1024))}


def _fastvae_rsample(case: Case, impl: str) -> Function:
    from fastvae import functional

    shape = case.shape.sample_shape
    return lambda mu, log_sigma: functional.diag_gaussian_rsample(mu, log_sigma, shape, impl=impl)


def _fastvae_rsample_with_kl(case: Case, impl: str) -> Function:
    from fastvae import functional

    shape = case.shape.sample_shape
    return lambda mu, log_sigma: functional.diag_gaussian_rsample_with_kl(mu, log_sigma, shape, impl=impl)


def _fastvae_log_prob(case: Case, impl: str) -> Function:
    from fastvae import functional

    return lambda z, mu, log_sigma: functional.diag_gaussian_log_prob(z, mu, log_sigma, impl=impl)


def _fastvae_kl(case: Case, impl: str) -> Function:
    from fastvae import functional

    return lambda mu, log_sigma: functional.diag_gaussian_kl(mu, log_sigma, impl=impl)


# Called without the library's checks and dispatch, so that the times are those of plain PyTorch code.
def _reference_rsample(case: Case) -> Function:
    from fastvae.reference import diag_gaussian

    shape = case.shape.sample_shape
    return lambda mu, log_sigma: diag_gaussian.rsample(mu, log_sigma, shape, None, None)


def _reference_rsample_with_kl(case: Case) -> Function:
    from fastvae.reference import diag_gaussian

    shape = case.shape.sample_shape
    return lambda mu, log_sigma: diag_gaussian.rsample_with_kl(mu, log_sigma, shape, None, None, False)


def _log_prob(z: Tensor, mu: Tensor, log_sigma: Tensor) -> Tensor:
    from fastvae.reference import diag_gaussian

    return diag_gaussian.log_prob(z, mu, log_sigma)


def _kl(mu: Tensor, log_sigma: Tensor) -> Tensor:
    from fastvae.reference import diag_gaussian

    return diag_gaussian.kl(mu, log_sigma, None, None)


def _normal(mu: Tensor, sigma: Tensor) -> Independent:
    return Independent(Normal(mu, sigma, validate_args=False), 1, validate_args=False)


def _peer_rsample(case: Case) -> Function:
    shape = torch.Size(case.shape.sample_shape)

    def run(mu: Tensor, log_sigma: Tensor) -> tuple[Tensor, Tensor]:
        q = _normal(mu, log_sigma.exp())
        z = q.rsample(shape)
        return z, q.log_prob(z)

    return run


def _peer_log_prob(case: Case) -> Function:
    return lambda z, mu, log_sigma: _normal(mu, log_sigma.exp()).log_prob(z)


def _peer_kl(case: Case) -> Function:
    return lambda mu, log_sigma: _divergence(_normal(mu, log_sigma.exp()))


def _divergence(q: Independent) -> Tensor:
    return kl_divergence(q, _normal(torch.zeros_like(q.mean), torch.ones_like(q.mean)))


def _peer_rsample_with_kl(case: Case) -> Function:
    shape = torch.Size(case.shape.sample_shape)

    def run(mu: Tensor, log_sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = _normal(mu, log_sigma.exp())
        z = q.rsample(shape)
        return z, q.log_prob(z), _divergence(q)

    return run


def _work(case: Case, elements: int, densities: int, flops: int) -> Work:
    return Work(elements * case.itemsize + densities * case.density_itemsize, flops)


def _rsample_work(case: Case) -> Work:
    parameter = case.shape.rows * case.shape.columns
    sample, density = case.shape.draws * parameter, case.shape.draws * case.shape.rows
    # mu, log_sigma -> z, log_q
    if case.mode == "fwd":
        return _work(case, 2 * parameter + sample, density, 6 * sample)
    # Then d_z, d_log_q, log_sigma -> d_log_sigma; d_mu is d_z itself, unless it is a sum over samples.
    d_mu = 0 if case.shape.samples is None else parameter
    return _work(case, 4 * parameter + d_mu + 2 * sample, 2 * density, 11 * sample)


def _rsample_with_kl_work(case: Case) -> Work:
    parameter = case.shape.rows * case.shape.columns
    sample, density = case.shape.draws * parameter, case.shape.draws * case.shape.rows
    # mu, log_sigma -> z, log_q, kl
    if case.mode == "fwd":
        return _work(case, 2 * parameter + sample, density + case.shape.rows, 6 * (sample + parameter))
    # Then d_z, d_log_q, d_kl, mu, log_sigma -> d_mu, d_log_sigma
    densities = 2 * (density + case.shape.rows)
    return _work(case, 6 * parameter + 2 * sample, densities, 11 * sample + 10 * parameter)


def _log_prob_work(case: Case) -> Work:
    parameter = case.shape.rows * case.shape.columns
    sample, density = case.shape.draws * parameter, case.shape.draws * case.shape.rows
    # z, mu, log_sigma -> log_q
    if case.mode == "fwd":
        return _work(case, 2 * parameter + sample, density, 6 * sample)
    # Then the same and d_log_q -> d_z, d_mu, d_log_sigma
    return _work(case, 6 * parameter + 3 * sample, 2 * density, 14 * sample)


def _kl_work(case: Case) -> Work:
    parameter = case.shape.rows * case.shape.columns
    # mu, log_sigma -> kl
    if case.mode == "fwd":
        return _work(case, 2 * parameter, case.shape.rows, 6 * parameter)
    # Then the same and d_kl -> d_mu, d_log_sigma
    return _work(case, 6 * parameter, 2 * case.shape.rows, 10 * parameter)


TASKS = (
    Task(
        op="diag_gaussian",
        entry="rsample",
        inputs=gaussian.location_and_scale,
        fastvae=_fastvae_rsample,
        reference=_reference_rsample,
        peers={"distributions": Peer(_peer_rsample)},
        work=_rsample_work,
        check=gaussian.check_rsample(_log_prob),
        shapes=SHAPES,
    ),
    Task(
        op="diag_gaussian",
        entry="rsample_with_kl",
        inputs=gaussian.location_and_scale,
        fastvae=_fastvae_rsample_with_kl,
        reference=_reference_rsample_with_kl,
        peers={"distributions": Peer(_peer_rsample_with_kl)},
        work=_rsample_with_kl_work,
        check=gaussian.check_rsample_with_kl(_log_prob, _kl),
        shapes=SHAPES,
    ),
    Task(
        op="diag_gaussian",
        entry="log_prob",
        inputs=lambda case, generator: (
            gaussian.points(case, generator),
            *gaussian.location_and_scale(case, generator),
        ),
        fastvae=_fastvae_log_prob,
        reference=lambda case: _log_prob,
        peers={"distributions": Peer(_peer_log_prob)},
        work=_log_prob_work,
        check=gaussian.check_log_prob(_log_prob),
        shapes=SHAPES,
    ),
    Task(
        op="diag_gaussian",
        entry="kl",
        inputs=gaussian.location_and_scale,
        fastvae=_fastvae_kl,
        reference=lambda case: _kl,
        peers={"distributions": Peer(_peer_kl)},
        work=_kl_work,
        check=gaussian.check_kl(_kl),
        shapes=SHAPES,
        sampled=False,
    ),
)
