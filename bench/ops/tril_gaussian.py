"""Full-covariance Gaussian with a triangular factor, dense and packed."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from .. import gaussian
from ..task import Case, Function, Inputs, Peer, Shape, Task, Work

CPU_SHAPES = (Shape(128, 32), Shape(512, 64), Shape(256, 256), Shape(100, 50, samples=50))
SHAPES = {"cpu": CPU_SHAPES, "cuda": (*CPU_SHAPES, Shape(4096, 256), Shape(65536, 64))}


def _parameters(case: Case, generator: torch.Generator) -> Inputs:
    rows, columns = case.shape.rows, case.shape.columns
    size = (rows, columns * (columns - 1) // 2) if case.variant == "packed" else (rows, columns, columns)
    tril = torch.randn(size, **gaussian.options(case, generator)) * (0.1 * columns**-0.5)
    return (*gaussian.location_and_scale(case, generator), tril)


def _points_and_parameters(case: Case, generator: torch.Generator) -> Inputs:
    return (gaussian.points(case, generator), *_parameters(case, generator))


def _fastvae_rsample(case: Case, impl: str) -> Function:
    from fastvae import functional

    shape = case.shape.sample_shape
    return lambda mu, log_sigma, tril: functional.tril_gaussian_rsample(mu, log_sigma, tril, shape, impl=impl)


def _fastvae_rsample_with_kl(case: Case, impl: str) -> Function:
    from fastvae import functional

    shape = case.shape.sample_shape
    return lambda mu, log_sigma, tril: functional.tril_gaussian_rsample_with_kl(mu, log_sigma, tril, shape, impl=impl)


def _fastvae_log_prob(case: Case, impl: str) -> Function:
    from fastvae import functional

    return lambda z, mu, log_sigma, tril: functional.tril_gaussian_log_prob(z, mu, log_sigma, tril, impl=impl)


def _fastvae_kl(case: Case, impl: str) -> Function:
    from fastvae import functional

    return lambda mu, log_sigma, tril: functional.tril_gaussian_kl(mu, log_sigma, tril, impl=impl)


# Called without the library's checks and dispatch, so that the times are those of plain PyTorch code.
def _reference_rsample(case: Case) -> Function:
    from fastvae.reference import tril_gaussian

    shape, packed = case.shape.sample_shape, case.variant == "packed"
    return lambda mu, log_sigma, tril: tril_gaussian.rsample(mu, log_sigma, tril, packed, shape, None, None)


def _reference_rsample_with_kl(case: Case) -> Function:
    from fastvae.reference import tril_gaussian

    shape, packed = case.shape.sample_shape, case.variant == "packed"
    return lambda mu, log_sigma, tril: tril_gaussian.rsample_with_kl(
        mu, log_sigma, tril, packed, shape, None, None, False
    )


def _log_prob(z: Tensor, mu: Tensor, log_sigma: Tensor, tril: Tensor, packed: bool) -> Tensor:
    from fastvae.reference import tril_gaussian

    return tril_gaussian.log_prob(z, mu, log_sigma, tril, packed)


def _kl(mu: Tensor, log_sigma: Tensor, tril: Tensor, packed: bool) -> Tensor:
    from fastvae.reference import tril_gaussian

    return tril_gaussian.kl(mu, log_sigma, tril, packed)


def _scale_tril(case: Case, inputs: Inputs) -> Inputs:
    """``(..., mu, L)``: users of a dense factor have it ready, so the peer need not assemble it."""
    *before, log_sigma, tril = inputs
    return (*before, tril.tril(-1) + torch.diag_embed(log_sigma.exp()))


def _make_normal(mu: Tensor, scale_tril: Tensor) -> MultivariateNormal:
    return MultivariateNormal(mu, scale_tril=scale_tril, validate_args=False)


def _make_normal_of_packed(mu: Tensor, log_sigma: Tensor, tril: Tensor) -> MultivariateNormal:
    """A normal from the packed outputs of a network, scattered into a dense factor, as its users must do."""
    features = mu.shape[-1]
    row, column = torch.tril_indices(features, features, -1, device=mu.device)
    lower = tril.new_zeros((*tril.shape[:-1], features, features))
    lower[..., row, column] = tril
    return _make_normal(mu, lower + torch.diag_embed(log_sigma.exp()))


def _peer_rsample(case: Case) -> Function:
    make, shape = (
        _make_normal_of_packed if case.variant == "packed" else _make_normal,
        torch.Size(case.shape.sample_shape),
    )

    def run(*parameters: Tensor) -> tuple[Tensor, Tensor]:
        q = make(*parameters)
        z = q.rsample(shape)
        return z, q.log_prob(z)

    return run


def _peer_log_prob(case: Case) -> Function:
    make = _make_normal_of_packed if case.variant == "packed" else _make_normal
    return lambda z, *parameters: make(*parameters).log_prob(z)


def _peer_kl(case: Case) -> Function:
    make = _make_normal_of_packed if case.variant == "packed" else _make_normal

    return lambda *parameters: _divergence(make(*parameters))


def _divergence(q: MultivariateNormal) -> Tensor:
    eye = torch.eye(q.event_shape[0], dtype=q.mean.dtype, device=q.mean.device)
    return kl_divergence(q, _make_normal(torch.zeros_like(q.mean[0]), eye))


def _peer_rsample_with_kl(case: Case) -> Function:
    make = _make_normal_of_packed if case.variant == "packed" else _make_normal
    shape = torch.Size(case.shape.sample_shape)

    def run(*parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = make(*parameters)
        z = q.rsample(shape)
        return z, q.log_prob(z), _divergence(q)

    return run


def _sizes(case: Case) -> tuple[int, int, int, int, int]:
    """Elements of mu, of the strict lower triangles, of d_tril, of z; densities."""
    rows, columns, draws = case.shape.rows, case.shape.columns, case.shape.draws
    triangle = rows * columns * (columns - 1) // 2
    d_tril = triangle if case.variant == "packed" else rows * columns * columns
    return rows * columns, triangle, d_tril, draws * rows * columns, draws * rows


def _work(case: Case, elements: int, densities: int, flops: int) -> Work:
    return Work(elements * case.itemsize + densities * case.density_itemsize, flops)


def _rsample_work(case: Case) -> Work:
    vector, triangle, d_tril, sample, density = _sizes(case)
    product = 2 * case.shape.draws * triangle
    # mu, log_sigma, tril -> z, log_q
    if case.mode == "fwd":
        return _work(case, 2 * vector + triangle + sample, density, product + 6 * sample)
    # Then d_z, d_log_q, log_sigma -> d_log_sigma, d_tril; d_mu as in diag_gaussian.
    d_mu = 0 if case.shape.samples is None else vector
    elements = 4 * vector + d_mu + triangle + d_tril + 2 * sample
    return _work(case, elements, 2 * density, 2 * product + 11 * sample)


def _rsample_with_kl_work(case: Case) -> Work:
    vector, triangle, d_tril, sample, density = _sizes(case)
    product, rows = 2 * case.shape.draws * triangle, case.shape.rows
    # mu, log_sigma, tril -> z, log_q, kl
    if case.mode == "fwd":
        flops = product + 2 * triangle + 6 * (sample + vector)
        return _work(case, 2 * vector + triangle + sample, density + rows, flops)
    # Then d_z, d_log_q, d_kl, mu, log_sigma, tril -> d_mu, d_log_sigma, d_tril
    elements = 6 * vector + 2 * triangle + d_tril + 2 * sample
    return _work(case, elements, 2 * (density + rows), 2 * product + 4 * triangle + 11 * sample + 10 * vector)


def _log_prob_work(case: Case) -> Work:
    vector, triangle, d_tril, sample, density = _sizes(case)
    solve = 2 * case.shape.draws * triangle
    # z, mu, log_sigma, tril -> log_q
    if case.mode == "fwd":
        return _work(case, 2 * vector + triangle + sample, density, solve + 6 * sample)
    # Then the same and d_log_q -> d_z, d_mu, d_log_sigma, d_tril: a transposed solve and an outer product.
    elements = 6 * vector + 2 * triangle + d_tril + 3 * sample
    return _work(case, elements, 2 * density, 3 * solve + 14 * sample)


def _kl_work(case: Case) -> Work:
    vector, triangle, d_tril, _, _ = _sizes(case)
    # mu, log_sigma, tril -> kl
    if case.mode == "fwd":
        return _work(case, 2 * vector + triangle, case.shape.rows, 2 * triangle + 6 * vector)
    # Then the same and d_kl -> d_mu, d_log_sigma, d_tril
    elements = 6 * vector + 2 * triangle + d_tril
    return _work(case, elements, 2 * case.shape.rows, 3 * triangle + 10 * vector)


def _tasks(variant: str) -> tuple[Task, ...]:
    packed = variant == "packed"
    log_prob, kl = partial(_log_prob, packed=packed), partial(_kl, packed=packed)
    adapt = {} if packed else {"adapt": _scale_tril}
    return (
        Task(
            op="tril_gaussian",
            entry="rsample",
            variant=variant,
            inputs=_parameters,
            fastvae=_fastvae_rsample,
            reference=_reference_rsample,
            peers={"distributions": Peer(_peer_rsample, **adapt)},
            work=_rsample_work,
            check=gaussian.check_rsample(log_prob),
            shapes=SHAPES,
        ),
        Task(
            op="tril_gaussian",
            entry="rsample_with_kl",
            variant=variant,
            inputs=_parameters,
            fastvae=_fastvae_rsample_with_kl,
            reference=_reference_rsample_with_kl,
            peers={"distributions": Peer(_peer_rsample_with_kl, **adapt)},
            work=_rsample_with_kl_work,
            check=gaussian.check_rsample_with_kl(log_prob, kl),
            shapes=SHAPES,
        ),
        Task(
            op="tril_gaussian",
            entry="log_prob",
            variant=variant,
            inputs=_points_and_parameters,
            fastvae=_fastvae_log_prob,
            reference=lambda case: log_prob,
            peers={"distributions": Peer(_peer_log_prob, **adapt)},
            work=_log_prob_work,
            check=gaussian.check_log_prob(log_prob),
            shapes=SHAPES,
        ),
        Task(
            op="tril_gaussian",
            entry="kl",
            variant=variant,
            inputs=_parameters,
            fastvae=_fastvae_kl,
            reference=lambda case: kl,
            peers={"distributions": Peer(_peer_kl, **adapt)},
            work=_kl_work,
            check=gaussian.check_kl(kl),
            shapes=SHAPES,
            sampled=False,
        ),
    )


TASKS = (*_tasks("dense"), *_tasks("packed"))
