"""The ops of ``torch.ops.fastvae`` refuse what their kernels could not read."""

import pytest
import torch

import fastvae.functional as F
from fastvae import nn
from fastvae.reference.affine_flow import KINDS
from tests.support.processes import run_module

OPS = torch.ops.fastvae


def test_calls_that_do_not_fit_are_refused():
    done = run_module("mutated_calls")
    assert done.returncode == 0, done.stderr
    *let_through, count = done.stdout.splitlines()
    assert not let_through
    assert int(count) > 1500


def test_a_refusal_names_op_argument_and_what_came():
    mu = torch.zeros(3, 5)
    with pytest.raises(
        ValueError, match=r"diag_gaussian_kl_fwd: log_sigma must have shape \(N = 3, D = 5\), got \(3, 4"
    ):
        OPS.diag_gaussian_kl_fwd(mu, torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"affine_flow_fwd: kind must be one of .*, got 'cubic'"):
        OPS.affine_flow_fwd(mu, mu, mu, "cubic", False, False)


# What `degrees` is of: numbers, whether to keep, whether shares are wanted, description.
OF_SWEEP = ([3, 2, 0, 1, 0, 0], False, False, "2 identity 0 blocked;0 1 2;0 1")
SWEEP = {
    "features that are not in an order": [[1, 1, 3], [0, 1], [0, 0, 2, 0, 0, 2]],
    "a unit that no feature is found for": [[1, 2, 3], [0, 9], [0, 1, 2, 0, 1, 2]],
    "a feature that depends on itself": [[1, 2, 3], [0, 1], [1, 1, 2, 0, 1, 2]],
}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2 identity 0 blocked;0 1 2", "network must be the description of a structure"),
        ("2 identity 0;0 1 2;0 1", "network must be the description of a structure"),
        ("2 identity 0 blocked;0 1 1;0 1", "network must be the description of a structure: order must be"),
        ("2 identity 0 blocked;0 1 2;0 1 2", "network must describe a network of"),
        ("2 relu 0 blocked;0 1 2;0 1", "network must describe a network of"),
    ],
    ids=["no layer", "a word less", "no order", "another width", "another activation"],
)
def test_a_sweep_is_that_of_the_network_described(text, message):
    degrees = [torch.tensor(d) for d in ([1, 2, 3], [0, 1], [0, 1, 2, 0, 1, 2])]
    tensors = [torch.randn(2, 3), torch.randn(6, 2)]
    with pytest.raises(ValueError, match=f"autoregressive_inverse_fwd: {message}"):
        OPS.autoregressive_inverse_fwd(torch.randn(4, 3), tensors, [False] * 5, degrees, *OF_SWEEP[:3], text)


@pytest.mark.parametrize("degrees", SWEEP.values(), ids=SWEEP)
def test_a_sweep_takes_autoregressive_networks_only(degrees):
    tensors = [torch.randn(2, 3), torch.randn(6, 2)]
    with pytest.raises(ValueError, match="autoregressive_inverse_fwd: degrees"):
        OPS.autoregressive_inverse_fwd(
            torch.randn(4, 3), tensors, [False] * 5, [torch.tensor(d) for d in degrees], *OF_SWEEP
        )


def test_sound_calls_before_do_not_let_others_through():
    """Calls that passed are remembered by all that the checks look at."""
    mu, log_sigma = torch.zeros(3, 5), torch.zeros(3, 5)
    changed = [
        (log_sigma.double(), "log_sigma must be of float32"),
        (log_sigma[:2], "log_sigma must have shape"),
        (torch.zeros(5, 3).T, "log_sigma must have contiguous rows"),
    ]
    for other, message in changed:
        OPS.diag_gaussian_kl_fwd(mu, log_sigma)
        with pytest.raises(ValueError, match=message):
            OPS.diag_gaussian_kl_fwd(mu, other)
    degrees = [torch.tensor(d) for d in ([1, 2, 3], [0, 1], [0, 1, 2, 0, 1, 2])]
    tensors = [torch.randn(2, 3), torch.randn(6, 2)]
    for layer in (0, 2):
        arguments = torch.randn(4, 3), tensors, [False] * 5, degrees, *OF_SWEEP
        OPS.autoregressive_inverse_fwd(*arguments)
        before = degrees[layer].clone()
        degrees[layer].fill_(1)
        with pytest.raises(ValueError, match="autoregressive_inverse_fwd: degrees"):
            OPS.autoregressive_inverse_fwd(*arguments)
        degrees[layer].copy_(before)


MU = torch.zeros(2, 3)
IMAGE, KERNEL = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 3, 3)
OVERFLOWING = {
    "sample_shape": lambda: F.diag_gaussian_rsample(MU, MU, (2**57,)),
    "sample_shape of several": lambda: F.tril_gaussian_rsample(MU, MU, MU, (2**31, 2**31)),
    "sample_shape ": lambda: F.diag_gaussian_rsample(MU, MU, (2**70,), impl="reference"),
    "row_offset": lambda: F.diag_gaussian_rsample(MU, MU, row_offset=2**63),
    "padding": lambda: F.masked_conv2d(IMAGE, KERNEL, mask_type="A", padding=2**62),
    "padding of the reference": lambda: F.masked_conv2d(IMAGE, KERNEL, mask_type="A", padding=2**62, impl="reference"),
    "padding of a layer": lambda: nn.MaskedConv2d(1, 1, 3, padding=2**62)(IMAGE),
    "dilation": lambda: F.masked_conv2d(IMAGE, KERNEL, mask_type="A", padding=1, dilation=2**62),
}


@pytest.mark.parametrize("what", OVERFLOWING)
def test_sizes_that_overflow_are_errors(what):
    name = "x must have a height" if what == "dilation" else f"{what.split()[0]} must"
    with pytest.raises(ValueError, match=name):
        OVERFLOWING[what]()


@pytest.mark.parametrize("impl", ["cpp", "reference"])
@pytest.mark.parametrize("rows", ["one row", "one column", "one matrix"])
@pytest.mark.parametrize("d", [1, 2, 3, 4, 7])
def test_a_dense_factor_is_dense_whatever_its_strides(d, rows, impl):
    """Its rows may be one row of memory, and so may its Gaussians be."""
    shape = {"one row": (5, 1, d), "one column": (5, d, 1), "one matrix": (1, d, d)}[rows]
    factor = torch.randn(shape, dtype=torch.float64).expand(5, d, d)
    mu, log_sigma, z = torch.randn(3, 5, d, dtype=torch.float64)
    inputs = [mu, log_sigma, factor]
    for function in (
        lambda *p: F.tril_gaussian_log_prob(z, *p, impl=impl),
        lambda *p: F.tril_gaussian_rsample(*p, eps=z, impl=impl)[0],
        lambda *p: F.tril_gaussian_kl(*p, impl=impl),
    ):
        torch.testing.assert_close(function(*inputs), function(mu, log_sigma, factor.contiguous()))
        at = [t.detach().requires_grad_() for t in inputs]
        copies = [t.detach().contiguous().requires_grad_() for t in inputs]
        found = torch.autograd.grad(function(*at).sum(), at)
        torch.testing.assert_close(found, torch.autograd.grad(function(*copies).sum(), copies))


@pytest.mark.parametrize("impl", ["cpp", "reference"])
@pytest.mark.parametrize("kind", ["diagonal", "packed", "dense"])
def test_the_density_alone_has_a_gradient_where_sigma_is_infinite(kind, impl):
    mu, eps = torch.randn(3, 4), torch.randn(2, 3, 4)
    log_sigma = torch.tensor([88.0, 89.0, 500.0, 3.0]).repeat(3, 1).requires_grad_()
    tril = {"diagonal": [], "packed": [torch.randn(3, 6)], "dense": [torch.randn(3, 4, 4)]}[kind]
    function = F.tril_gaussian_rsample if tril else F.diag_gaussian_rsample
    _, log_q = function(mu, log_sigma, *tril, (2,), eps=eps, impl=impl)
    (found,) = torch.autograd.grad(log_q.sum(), log_sigma)
    assert torch.equal(found, torch.full((3, 4), -2.0))
    _, log_q = function(mu, log_sigma, *tril, (0,), impl=impl)
    (found,) = torch.autograd.grad(log_q.sum(), log_sigma)
    assert torch.equal(found, torch.zeros(3, 4))


@pytest.mark.parametrize("impl", ["cpp", "reference"])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_log_determinant_alone_has_a_gradient_whatever_the_points_are(kind, inverse, impl):
    z, shift = (torch.full((3, 4), value, requires_grad=True) for value in (torch.nan, torch.inf))
    scale = None if kind == "location_only" else torch.randn(3, 4, requires_grad=True)
    _, log_det = F.affine_flow(z, shift, scale, kind=kind, inverse=inverse, impl=impl)
    at = [t for t in (z, shift, scale) if t is not None]
    found = torch.autograd.grad(log_det.sum(), at, allow_unused=True) if log_det.requires_grad else []
    assert all(g is None or bool(g.isfinite().all()) for g in found)
    if scale is not None:
        assert found[2].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rows_of_half_precision_that_overlap(dtype):
    mu, z = torch.randn(2, 4, 6).to(dtype)
    log_sigma = torch.randn(9).to(dtype).as_strided((4, 6), (1, 1))
    tril = torch.randn(15 + 3).to(dtype).as_strided((4, 15), (1, 1))
    degrees = torch.arange(6)
    for function in (
        lambda s, t, impl: F.diag_gaussian_log_prob(z, mu, s, impl=impl),
        lambda s, t, impl: F.tril_gaussian_log_prob(z, mu, s, t, impl=impl),
        lambda s, t, impl: F.affine_flow(z, mu, s, impl=impl)[1],
        lambda s, t, impl: F.masked_linear(s, z[:1].expand(6, 6), in_degrees=degrees, out_degrees=degrees, impl=impl),
    ):
        found = function(log_sigma, tril, "cpp")
        torch.testing.assert_close(found, function(log_sigma.clone(), tril.clone(), "cpp"))
