"""Shares of the log-determinant: of every flow, in both directions."""

from __future__ import annotations

import pytest
import torch

import fastvae.functional as F
from fastvae import nn
from fastvae.reference.affine_flow import KINDS

D = 5
FLOWS = {
    "iaf": lambda: nn.InverseAutoregressiveFlow(D, (8, 8), steps=3, context_features=2),
    "iaf, exp": lambda: nn.InverseAutoregressiveFlow(D, (8,), kind="exp", weight_norm=True),
    "iaf, location only": lambda: nn.InverseAutoregressiveFlow(D, (8,), steps=2, kind="location_only"),
    "maf": lambda: nn.MaskedAutoregressiveFlow(D, (8,), steps=2, kind="softplus", order=[2, 0, 1, 4, 3]),
    "maf, one order": lambda: nn.MaskedAutoregressiveFlow(D, (8,), steps=2, reverse=False, order=[2, 0, 1, 4, 3]),
    "planar": lambda: nn.PlanarFlow(D, 2),
    "planar, leaky relu": lambda: nn.PlanarFlow(D, activation="leaky_relu"),
    "sylvester, orthogonal": lambda: nn.SylvesterFlow(D, "orthogonal", 2, columns=3),
    "sylvester, householder": lambda: nn.SylvesterFlow(D, "householder", 2, reflections=3),
    "sylvester, triangular": lambda: nn.SylvesterFlow(D, "triangular", permutation=[4, 3, 2, 1, 0]),
    "householder": lambda: nn.HouseholderFlow(D, 2),
    "linear iaf": lambda: nn.LinearInverseAutoregressiveFlow(D, 2),
    "permutation": lambda: nn.Permutation([2, 0, 1, 4, 3]),
    "affine": lambda: nn.AffineTransform(torch.randn(D), torch.rand(D) + 0.5),
    "sequence": lambda: nn.FlowSequence(
        nn.InverseAutoregressiveFlow(D, (8,), context_features=2),
        nn.Permutation([2, 0, 1, 4, 3]),
        nn.FlowSequence(nn.AffineTransform(torch.randn(D), torch.rand(D) + 0.5), nn.Permutation([1, 2, 3, 4, 0])),
        nn.PlanarFlow(D, activation="leaky_relu"),
    ),
    "convolutional": lambda: nn.ConvInverseAutoregressiveFlow(2, (6,), steps=2, context_channels=2),
}
# The Jacobian is a triangle, maybe after a reordering: a share is the logarithm of an entry on its diagonal.
TRIANGULAR = ("iaf, exp", "maf, one order", "affine", "linear iaf")


def problem(name, dtype=torch.float64):
    torch.manual_seed(3)
    flow = FLOWS[name]()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    flow = flow.to(dtype).eval()
    size = (4, 2, 3, 3) if name == "convolutional" else (4, D)
    z = torch.randn(size, dtype=dtype)
    takes = getattr(flow, "context_features", 2 if name in ("sequence", "convolutional") else 0)
    context = [torch.randn(size if name == "convolutional" else (4, 2), dtype=dtype)] if takes else []
    return flow, z, context


def directions(flow):
    yield flow
    if hasattr(flow, "inverse"):
        yield flow.inverse


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", FLOWS)
def test_shares_add_up(name, dtype):
    flow, z, context = problem(name, dtype)
    for run in directions(flow):
        out, log_det = run(z, *context)
        same, shares = run(z, *context, log_det_map=True)
        assert (shares.shape, shares.dtype) == (z.shape, log_det.dtype)
        torch.testing.assert_close(same, out)
        scale = shares.abs().flatten(1).sum(1).clamp(min=1.0)
        assert ((shares.flatten(1).sum(1) - log_det).abs() <= 1e-6 * scale).all()
        assert run(z[:0], *(c[:0] for c in context), log_det_map=True)[1].shape == z[:0].shape


@pytest.mark.parametrize("name", TRIANGULAR)
def test_a_share_is_the_derivative_of_its_feature(name):
    flow, z, context = problem(name)
    for run in directions(flow):
        shares = run(z[:1], *(c[:1] for c in context), log_det_map=True)[1]
        jacobian = torch.autograd.functional.jacobian(lambda z, run=run: run(z, *(c[:1] for c in context))[0], z[:1])
        expected = jacobian[0, :, 0].diagonal().abs().log()
        torch.testing.assert_close(shares[0], expected)


@pytest.mark.parametrize("name", ["planar", "planar, leaky relu"])
def test_a_share_is_on_the_diagonal_of_the_logarithm_of_the_jacobian(name):
    flow, z, context = problem(name)
    for run in directions(flow):
        shares = run(z[:1], *(c[:1] for c in context), log_det_map=True)[1]
        jacobian = torch.autograd.functional.jacobian(lambda z, run=run: run(z, *(c[:1] for c in context))[0], z[:1])
        values, vectors = torch.linalg.eig(jacobian[0, :, 0])
        logarithm = vectors @ values.log().diag() @ torch.linalg.inv(vectors)
        torch.testing.assert_close(shares[0], logarithm.diagonal().real)


def test_shares_of_a_planar_flow_at_its_start():
    """Where the map is the identity the quotient of the formula is 0 / 0."""
    flow, z = nn.PlanarFlow(3), torch.randn(4, 3)
    shares = flow(z, log_det_map=True)[1]
    assert shares.sum(-1).abs().max() < 1e-6
    assert all(g.isfinite().all() for g in torch.autograd.grad(shares.square().sum(), list(flow.parameters())))


def test_shares_move_with_their_features():
    _, z, context = problem("iaf")
    first, turn = nn.InverseAutoregressiveFlow(D, (8,), context_features=2).double(), nn.Permutation([2, 0, 1, 4, 3])
    shares = first(z, *context, log_det_map=True)[1]
    chain = nn.FlowSequence(first, turn)
    moved = chain(z, *context, log_det_map=True)[1]
    assert torch.equal(moved, shares[:, [2, 0, 1, 4, 3]])
    assert torch.equal(chain.carry(shares), moved)
    assert torch.equal(chain.carry(moved, inverse=True), shares)
    back = nn.FlowSequence(turn, first)
    out = back(z, *context)[0]
    torch.testing.assert_close(
        back.inverse(out, *context, log_det_map=True)[1],
        turn.carry(first.inverse(out, *context, log_det_map=True)[1], inverse=True),
    )


@pytest.mark.parametrize("name", ["iaf", "maf", "planar, leaky relu", "sylvester, householder", "sequence"])
def test_gradients(name):
    flow, z, context = problem(name)
    for run in directions(flow):
        if name == "sequence" and run is not flow:
            continue
        leaf = z[:2].clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda z, run=run: run(z, *(c[:2] for c in context), log_det_map=True), leaf)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("impl", ["cpp", pytest.param("triton", marks=pytest.mark.thorough)])
def test_implementations_agree(impl, direction):
    flow, z, context = problem("iaf", torch.float32)
    for module in flow.modules():
        module.impl = "reference"
    expected = getattr(flow, direction)(z, *context, log_det_map=True)
    for module in flow.modules():
        module.impl = impl
    for actual, wanted in zip(getattr(flow, direction)(z, *context, log_det_map=True), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=2e-5)


def test_second_derivatives():
    flow, z, context = problem("iaf")
    leaf = z[:2].clone().requires_grad_()
    weights = torch.rand(2, D, dtype=torch.float64)

    def weighted(z):
        out, shares = flow(z, context[0][:2], log_det_map=True)
        return out.sin().sum() + (weights * shares).sum()

    assert torch.autograd.gradgradcheck(weighted, leaf)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_weighted_shares_in_one_graph(direction):
    flow, z, context = problem("iaf", torch.float32)
    weights, found = torch.rand_like(z), []
    run = getattr(flow, direction)
    for call in (run, torch.compile(run, backend="aot_eager", fullgraph=True)):
        leaf = z.clone().requires_grad_()
        out, shares = call(leaf, *context, log_det_map=True)
        found.append(torch.autograd.grad((weights * shares).sum() + out.sum(), [leaf, *flow.parameters()]))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", ["iaf", "maf", "convolutional"])
def test_shares_on_meta(name):
    flow, z, context = problem(name, torch.float32)
    out, shares = flow.to("meta")(z.to("meta"), *(c.to("meta") for c in context), log_det_map=True)
    assert (out.shape, shares.shape, shares.device.type) == (z.shape, z.shape, "meta")


@pytest.mark.parametrize("name", ["iaf", "convolutional"])
def test_shares_under_autocast(name):
    flow, z, context = problem(name, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, shares = flow(z, *context, log_det_map=True)
        same, log_det = flow(z, *context)
    assert (shares.dtype, out.dtype) == (log_det.dtype, same.dtype)
    torch.testing.assert_close(shares.flatten(1).sum(1), log_det, rtol=1e-5, atol=1e-5)


def test_compiles_whole():
    flow, z, context = problem("sequence", torch.float32)
    compiled = torch.compile(lambda z, c: flow(z, c, log_det_map=True), backend="eager", fullgraph=True)
    for actual, wanted in zip(compiled(z, *context), flow(z, *context, log_det_map=True), strict=True):
        torch.testing.assert_close(actual, wanted)


def test_hooks_of_a_network_see_its_calls():
    flow, z, context = problem("iaf")
    seen = []
    flow.networks[1].register_forward_hook(lambda *_: seen.append(1))
    flow(z, *context, log_det_map=True)
    assert len(seen) == 1


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_affine_flow(kind, inverse):
    z, shift = torch.randn(3, 2, 4), torch.randn(2, 4, requires_grad=True)
    logit = None if kind == "location_only" else (5.0 * torch.randn(2, 4)).requires_grad_()
    out, shares = F.affine_flow(z, shift, logit, kind=kind, inverse=inverse, log_det_map=True)
    expected, log_det = F.affine_flow(z, shift, logit, kind=kind, inverse=inverse)
    assert torch.equal(out, expected)
    assert shares.shape == z.shape
    torch.testing.assert_close(shares.sum(-1), log_det)
    if logit is not None:
        upstream = torch.randn(3, 2, 1)
        (found,) = torch.autograd.grad(shares, logit, upstream.expand_as(shares))
        torch.testing.assert_close(found, torch.autograd.grad(log_det, logit, upstream[..., 0])[0])
