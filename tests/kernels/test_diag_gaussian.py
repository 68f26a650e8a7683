"""Every launcher against formulas in float64, on awkward shapes and strides, with the noise given and drawn."""

import math

import pytest
import torch
from torch import Tensor

from fastvae.kernels import diag_gaussian, diag_gaussian_density, tril_gaussian, tril_gaussian_density
from tests.support.implementations import DTYPES
from tests.support.oracle import assert_as_close_as_eager

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Rows, columns, and how rows lie in memory.
CASES = [
    (0, 5, "contiguous"),
    (9, 1, "contiguous"),
    (9, 2, "strided"),
    (5, 3, "broadcast"),
    (3, 63, "strided"),
    (4, 64, "contiguous"),
    (3, 65, "broadcast"),
    (2, 130, "contiguous"),
]
cases = pytest.mark.parametrize(("n", "d", "layout"), CASES)
samples_of = pytest.mark.parametrize("samples", [1, 4])
noises = pytest.mark.parametrize("given", [False, True], ids=["seed", "eps"])
draws = pytest.mark.parametrize(("samples", "given"), [(1, False), (3, False), (4, True)])
triangles = pytest.mark.parametrize("dense", [False, True], ids=["packed", "dense"])


def rows(n: int, *shape: int, layout: str = "contiguous", scale: float = 1.0) -> Tensor:
    """Random rows whose innermost stride is 1 and whose other strides are those of `layout`."""
    if layout == "broadcast":
        return (scale * torch.randn(1, *shape)).expand(n, *shape)
    if layout == "strided":
        wide = scale * torch.randn(n, *(size + 3 for size in shape))
        return wide[(slice(None), *(slice(1, size + 1) for size in shape))]
    return scale * torch.randn(n, *shape)


def moved(t: Tensor, dtype: torch.dtype) -> Tensor:
    """`t` on the device, with its strides, in `dtype`."""
    strides = t.stride()
    base = torch.as_strided(t, (t.untyped_storage().size() // t.element_size(),), (1,), 0)
    return torch.as_strided(base.to(DEVICE, dtype), t.shape, strides, t.storage_offset())


def below_diagonal(d: int) -> Tensor:
    return torch.ones(d, d, dtype=torch.bool, device=DEVICE).tril(-1)


def triangle(n: int, d: int, dense: bool, layout: str = "contiguous") -> Tensor:
    """T, with NaN wherever nothing may be read."""
    scale = 1.0 / math.sqrt(d)
    if not dense:
        return rows(n, d * (d - 1) // 2, layout=layout, scale=scale)
    tril = rows(n, d, d, layout=layout, scale=scale)
    distinct = tril[:1] if layout == "broadcast" else tril
    distinct.masked_fill_(~below_diagonal(d).cpu(), float("nan"))
    return tril


def factor(log_sigma: Tensor, tril: Tensor) -> Tensor:
    """diag(sigma) + T."""
    below = below_diagonal(log_sigma.shape[1])
    if tril.dim() == 3:
        strict = torch.where(below, tril, 0.0)
    else:
        strict = tril.new_zeros(*log_sigma.shape, log_sigma.shape[1])
        strict[:, below] = tril
    return strict + torch.diag_embed(log_sigma.exp())


def diag_sample(mu: Tensor, log_sigma: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    return mu + log_sigma.exp() * eps, standard_log_prob(eps) - log_sigma.sum(-1)


def diag_log_prob(z: Tensor, mu: Tensor, log_sigma: Tensor) -> tuple[Tensor]:
    return (standard_log_prob((z - mu) / log_sigma.exp()) - log_sigma.sum(-1),)


def diag_kl(mu: Tensor, log_sigma: Tensor) -> tuple[Tensor]:
    return (0.5 * (mu**2 + (2 * log_sigma).exp() - 1 - 2 * log_sigma).sum(-1),)


def diag_kl_prior(mu: Tensor, log_sigma: Tensor, prior_mu: Tensor, prior_log_sigma: Tensor) -> tuple[Tensor]:
    ratio = log_sigma - prior_log_sigma
    whitened = (mu - prior_mu) / prior_log_sigma.exp()
    return (0.5 * (whitened**2 + (2 * ratio).exp() - 1 - 2 * ratio).sum(-1),)


def tril_sample(mu: Tensor, log_sigma: Tensor, tril: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    z = mu + torch.einsum("nij,knj->kni", factor(log_sigma, tril), eps)
    return z, standard_log_prob(eps) - log_sigma.sum(-1)


def tril_log_prob(z: Tensor, mu: Tensor, log_sigma: Tensor, tril: Tensor) -> tuple[Tensor]:
    eps = torch.linalg.solve_triangular(factor(log_sigma, tril), (z - mu)[..., None], upper=False)[..., 0]
    return (standard_log_prob(eps) - log_sigma.sum(-1),)


def tril_kl(mu: Tensor, log_sigma: Tensor, tril: Tensor) -> tuple[Tensor]:
    squares = factor(log_sigma, tril).square().sum((-1, -2)) + mu.square().sum(-1) - mu.shape[-1]
    return (0.5 * squares - log_sigma.sum(-1),)


def standard_log_prob(eps: Tensor) -> Tensor:
    return (-0.5 * eps**2 - 0.5 * math.log(2 * math.pi)).sum(-1)


class Expected:
    """A formula's outputs and gradients in float64, and those of eager PyTorch in the dtype of the inputs.

    Half types are computed in float32. Where float64 would be compared with itself, eager gets inputs with one more
    rounding. `upstream` are the random gradients of the outputs.
    """

    def __init__(self, formula, inputs: list[Tensor], constants: tuple[Tensor, ...] = ()):
        self.dtype = inputs[0].dtype
        compute = torch.float64 if self.dtype == torch.float64 else torch.float32
        leaves = [t.detach().clone() for t in inputs]
        if self.dtype == torch.float64:
            leaves = [torch.nextafter(t, t + torch.randn_like(t)) for t in leaves]
        leaves = [t.requires_grad_() for t in leaves]
        eager = formula(*(t.to(compute) for t in leaves), *(t.to(compute) for t in constants))
        exact_leaves = [t.detach().double().requires_grad_() for t in inputs]
        exact = formula(*exact_leaves, *(t.double() for t in constants))
        # z has the dtype of the inputs, densities that of the computation.
        eager = [o.to(self.dtype) if o.dim() == 3 else o for o in eager]
        self.upstream = [torch.randn(o.shape, device=DEVICE).to(o.dtype) for o in eager]
        gradients = torch.autograd.grad(eager, leaves, self.upstream, allow_unused=True, materialize_grads=True)
        exact_upstream = [u.double() for u in self.upstream]
        exact_gradients = torch.autograd.grad(
            exact, exact_leaves, exact_upstream, allow_unused=True, materialize_grads=True
        )
        self.outputs = list(zip(eager, exact, strict=True))
        self.gradients = list(zip(gradients, exact_gradients, strict=True))

    def check(self, outputs=(), gradients=()):
        for kind, actual, pairs in (("output", outputs, self.outputs), ("gradient", gradients, self.gradients)):
            for index, (value, (eager, exact)) in enumerate(zip(actual, pairs, strict=bool(actual))):
                assert_as_close_as_eager(value, eager.detach(), exact.detach(), f"{kind} {index}")


def noise_of(given: bool, samples: int, n: int, d: int) -> tuple[Tensor, Tensor, int]:
    """(what the launcher gets, the normals it stands for, the row offset); test_noise_triton.py tests the normals."""
    row_offset = 3
    if given:
        eps = torch.randn(samples, n, d, device=DEVICE)
        return eps, eps, row_offset
    seed, zeros = torch.randint(2**62, (), device=DEVICE), torch.zeros(n, d, device=DEVICE)
    eps, _ = diag_gaussian.diag_gaussian_fwd(zeros, zeros, seed, samples, row_offset)
    return seed, eps, row_offset


def check_diag_sample(n, d, layout, samples, given, dtype=torch.float32):
    mu, log_sigma = (moved(rows(n, d, layout=layout, scale=scale), dtype) for scale in (1.0, 0.5))
    noise, eps, row_offset = noise_of(given, samples, n, d)
    expected = Expected(diag_sample, [mu, log_sigma], (eps,))
    outputs = diag_gaussian.diag_gaussian_fwd(mu, log_sigma, noise, samples, row_offset)
    upstream = (*expected.upstream, log_sigma, noise, row_offset)
    expected.check(outputs, diag_gaussian.diag_gaussian_bwd_samples(*upstream))
    if samples == 1:
        expected.check(gradients=[expected.upstream[0][0], diag_gaussian.diag_gaussian_bwd(*upstream)])


@cases
@draws
def test_diag_sample(n, d, layout, samples, given):
    check_diag_sample(n, d, layout, samples, given)


@noises
@pytest.mark.parametrize("dtype", DTYPES)
def test_diag_sample_dtypes(dtype, given):
    check_diag_sample(3, 96, "contiguous", 2, given, dtype)


def check_diag_log_prob(n, d, layout, samples, dtype=torch.float32):
    mu, log_sigma = (moved(rows(n, d, layout=layout, scale=scale), dtype) for scale in (1.0, 0.5))
    z = moved(rows(samples, n, d, layout=layout), dtype)
    expected = Expected(diag_log_prob, [z, mu, log_sigma])
    log_q = diag_gaussian_density.diag_gaussian_log_prob_fwd(z, mu, log_sigma)
    gradients = diag_gaussian_density.diag_gaussian_log_prob_bwd(*expected.upstream, z, mu, log_sigma)
    expected.check([log_q], gradients)


@cases
@samples_of
def test_diag_log_prob(n, d, layout, samples):
    check_diag_log_prob(n, d, layout, samples)


@pytest.mark.parametrize("dtype", DTYPES)
def test_diag_log_prob_dtypes(dtype):
    check_diag_log_prob(3, 96, "contiguous", 2, dtype)


def check_diag_kl(n, d, layout, prior, dtype=torch.float32):
    scales = (1.0, 0.5, 1.0, 0.5) if prior else (1.0, 0.5)
    inputs = [moved(rows(n, d, layout=layout, scale=scale), dtype) for scale in scales]
    expected = Expected(diag_kl_prior if prior else diag_kl, inputs)
    name = "diag_gaussian_kl_prior" if prior else "diag_gaussian_kl"
    kl = getattr(diag_gaussian_density, f"{name}_fwd")(*inputs)
    expected.check([kl], getattr(diag_gaussian_density, f"{name}_bwd")(*expected.upstream, *inputs))


@cases
@pytest.mark.parametrize("prior", [False, True])
def test_diag_kl(n, d, layout, prior):
    check_diag_kl(n, d, layout, prior)


@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_diag_kl_dtypes(dtype, prior):
    check_diag_kl(3, 96, "contiguous", prior, dtype)


def tril_inputs(n, d, layout, dense, dtype) -> list[Tensor]:
    parameters = [rows(n, d, layout=layout), rows(n, d, layout=layout, scale=0.5), triangle(n, d, dense, layout)]
    return [moved(t, dtype) for t in parameters]


def assert_zero_above(d_tril: Tensor) -> None:
    if d_tril.dim() == 3:
        assert (d_tril[:, ~below_diagonal(d_tril.shape[1])] == 0).all()


def check_tril_sample(n, d, layout, samples, given, dense, dtype=torch.float32):
    mu, log_sigma, tril = tril_inputs(n, d, layout, dense, dtype)
    noise, eps, row_offset = noise_of(given, samples, n, d)
    expected = Expected(tril_sample, [mu, log_sigma, tril], (eps,))
    outputs = tril_gaussian.tril_gaussian_fwd(mu, log_sigma, tril, noise, samples, row_offset)
    gradients = tril_gaussian.tril_gaussian_bwd(*expected.upstream, log_sigma, noise, row_offset, dense)
    expected.check(outputs, gradients)
    assert_zero_above(gradients[2])


@cases
@draws
@triangles
def test_tril_sample(n, d, layout, samples, given, dense):
    check_tril_sample(n, d, layout, samples, given, dense)


@noises
@triangles
@pytest.mark.parametrize("dtype", DTYPES)
def test_tril_sample_dtypes(dtype, given, dense):
    check_tril_sample(3, 37, "contiguous", 2, given, dense, dtype)


def check_tril_log_prob(n, d, layout, samples, dense, dtype=torch.float32):
    mu, log_sigma, tril = tril_inputs(n, d, layout, dense, dtype)
    z = moved(rows(samples, n, d, layout=layout), dtype)
    expected = Expected(tril_log_prob, [z, mu, log_sigma, tril])
    log_q, eps = tril_gaussian_density.tril_gaussian_log_prob_fwd(z, mu, log_sigma, tril)
    gradients = tril_gaussian_density.tril_gaussian_log_prob_bwd(*expected.upstream, eps, log_sigma, tril)
    expected.check([log_q], gradients)
    assert_zero_above(gradients[3])


@cases
@samples_of
@triangles
def test_tril_log_prob(n, d, layout, samples, dense):
    check_tril_log_prob(n, d, layout, samples, dense)


@triangles
@pytest.mark.parametrize("dtype", DTYPES)
def test_tril_log_prob_dtypes(dtype, dense):
    check_tril_log_prob(3, 37, "contiguous", 2, dense, dtype)


def check_tril_kl(n, d, layout, dense, dtype=torch.float32):
    inputs = tril_inputs(n, d, layout, dense, dtype)
    expected = Expected(tril_kl, inputs)
    kl = tril_gaussian_density.tril_gaussian_kl_fwd(*inputs)
    gradients = tril_gaussian_density.tril_gaussian_kl_bwd(*expected.upstream, *inputs)
    expected.check([kl], gradients)
    assert_zero_above(gradients[2])


@cases
@triangles
def test_tril_kl(n, d, layout, dense):
    check_tril_kl(n, d, layout, dense)


@triangles
@pytest.mark.parametrize("dtype", DTYPES)
def test_tril_kl_dtypes(dtype, dense):
    check_tril_kl(3, 37, "contiguous", dense, dtype)


def test_no_samples_leave_zero_gradients():
    log_sigma = torch.zeros(2, 5, device=DEVICE)
    d_z, d_log_q, seed = log_sigma.new_empty(0, 2, 5), log_sigma.new_empty(0, 2), torch.tensor(1, device=DEVICE)
    gradients = [
        *diag_gaussian.diag_gaussian_bwd_samples(d_z, d_log_q, log_sigma, seed, 0),
        *tril_gaussian.tril_gaussian_bwd(d_z, d_log_q, log_sigma, seed, 0, True),
    ]
    assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("x", [float("inf"), -float("inf"), float("nan"), 200.0, -200.0])
def test_extreme_scales(x):
    log_sigma = torch.full((1, 2), x, device=DEVICE)
    z, _ = diag_gaussian.diag_gaussian_fwd(
        torch.zeros_like(log_sigma), log_sigma, torch.ones(1, 1, 2, device=DEVICE), 1, 0
    )
    torch.testing.assert_close(z[0], log_sigma.exp(), equal_nan=True)
