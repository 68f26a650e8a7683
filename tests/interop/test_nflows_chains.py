"""Compositions of nflows' transforms as flows."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

from fastvae.interop import from_nflows
from fastvae.nn import AffineTransform, FlowSequence, InverseAutoregressiveFlow, MaskedAutoregressiveFlow, Permutation

try:
    from nflows import transforms
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.flows import MaskedAutoregressiveFlow as TheirFlow
except ImportError:
    pytest.skip("needs the extra peers: nflows", allow_module_level=True)

D, C = 5, 3
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def step(context=0, **settings):
    made = transforms.MaskedAffineAutoregressiveTransform(D, 24, context_features=context or None, **settings)
    with torch.no_grad():  # blocks start at zero
        for p in made.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return made


def compare(theirs, dtype, context=0):
    theirs, c = theirs.to(dtype), torch.randn(6, C, dtype=dtype) if context else None
    flow, x, tolerance = from_nflows(theirs), torch.randn(6, D, dtype=dtype), TOLERANCE[dtype]
    noise, log_det = flow.inverse(x, c)
    expected, expected_log_det = theirs(x, c)
    torch.testing.assert_close(noise, expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(log_det, expected_log_det, atol=tolerance, rtol=tolerance)
    base = StandardNormal([D])
    density = base.log_prob(noise) + log_det
    torch.testing.assert_close(density, Flow(theirs, base).log_prob(x, c), atol=2 * tolerance, rtol=tolerance)
    z = torch.randn(6, D, dtype=dtype)
    for a, e in zip(flow(z, c), theirs.inverse(z, c), strict=True):
        torch.testing.assert_close(a, e, atol=20 * tolerance, rtol=20 * tolerance)
    return flow


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("context", [0, C])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("kind", ["reverse", "random", "given"])
@pytest.mark.parametrize("steps", [1, 3])
def test_steps_and_permutations(steps, kind, residual, context, dtype):
    parts = []
    for _ in range(steps):
        permutation = {
            "reverse": lambda: transforms.ReversePermutation(D),
            "random": lambda: transforms.RandomPermutation(D),
            "given": lambda: transforms.Permutation(torch.tensor([3, 0, 4, 1, 2])),
        }[kind]()
        parts += [permutation, step(context, use_residual_blocks=residual, activation=functional.elu)]
    flow = compare(transforms.CompositeTransform(parts), dtype, context)
    autoregressive = flow if isinstance(flow, MaskedAutoregressiveFlow) else flow[0]
    assert isinstance(autoregressive, MaskedAutoregressiveFlow)
    assert len(autoregressive.networks) == steps


def test_permutations_that_cancel_leave_one_flow():
    parts = [step(), transforms.ReversePermutation(D), step(), step(), transforms.ReversePermutation(D)]
    flow = compare(transforms.CompositeTransform(parts), torch.float64)
    assert isinstance(flow, MaskedAutoregressiveFlow)
    orders = [network.structure.order for network in flow.networks]
    assert orders[1] == orders[2] == tuple(reversed(orders[0]))


def test_what_permutations_leave_is_one_permutation():
    parts = [transforms.RandomPermutation(D), step(), transforms.ReversePermutation(D), step()]
    flow = compare(transforms.CompositeTransform(parts), torch.float64)
    assert [type(part) for part in flow] == [MaskedAutoregressiveFlow, Permutation]
    parts[2] = transforms.Permutation(parts[0]._permutation.argsort())
    assert isinstance(compare(transforms.CompositeTransform(parts), torch.float64), MaskedAutoregressiveFlow)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("context", [0, C])
def test_nested_inverted_and_affine(context, dtype):
    loc, scale = torch.randn(D, dtype=dtype), torch.rand(D, dtype=dtype) + 0.5
    inner = transforms.CompositeTransform([step(context), transforms.RandomPermutation(D), step(context)])
    whole = transforms.CompositeTransform(
        [
            transforms.RandomPermutation(D),
            transforms.PointwiseAffineTransform(loc, scale),
            transforms.InverseTransform(inner),
            transforms.PointwiseAffineTransform(0.5, 2.0),
            inner,
            transforms.InverseTransform(transforms.Permutation(torch.tensor([3, 0, 4, 1, 2]))),
        ]
    )
    flow = compare(whole, dtype, context)
    assert [type(part) for part in flow] == [
        MaskedAutoregressiveFlow,
        AffineTransform,
        InverseAutoregressiveFlow,
        AffineTransform,
        Permutation,
    ]


def test_flow_as_sbi_builds_it():
    # A z-score, then tanh networks without residual blocks, each followed by a random permutation.
    blocks = [
        transforms.CompositeTransform(
            [step(C, use_residual_blocks=False, activation=torch.tanh), transforms.RandomPermutation(D)]
        )
        for _ in range(4)
    ]
    mean, deviation = torch.tensor([1.0, -20.0, 3.0, 0.0, 5.0]), torch.tensor([0.1, 2.0, 30.0, 1.0, 4.0])
    z_score = transforms.PointwiseAffineTransform(-mean / deviation, 1 / deviation)
    flow = compare(transforms.CompositeTransform([z_score, transforms.CompositeTransform(blocks)]), torch.float64, C)
    assert len(flow[0].networks) == 4


def test_flow_of_nflows():
    theirs = TheirFlow(D, 16, num_layers=3, num_blocks_per_layer=1)
    compare(theirs._transform, torch.float64)


def test_gradients():
    parts = [step(C), transforms.RandomPermutation(D), step(C), transforms.PointwiseAffineTransform(0.5, 2.0)]
    theirs = transforms.CompositeTransform(parts).double()
    flow = from_nflows(theirs)
    x, c = torch.randn(6, D).double().requires_grad_(), torch.randn(6, C).double().requires_grad_()
    of_each = [
        torch.autograd.grad(y.square().sum() + log_det.sum(), (x, c), retain_graph=True)
        for y, log_det in (flow.inverse(x, c), theirs(x, c))
    ]
    for ours, expected in zip(*of_each, strict=True):
        torch.testing.assert_close(ours, expected)
    y, log_det = flow.inverse(x, c)
    (y.square().sum() + log_det.sum()).backward()
    assert all(p.grad is not None for p in flow.parameters())


def test_is_a_module_like_any_other():
    theirs = transforms.CompositeTransform([step(C), transforms.RandomPermutation(D), step(C)]).eval()
    flow, twin = from_nflows(theirs), from_nflows(theirs)
    assert not any(module.training for module in flow.modules() if isinstance(module, MaskedAutoregressiveFlow))
    x, c = torch.randn(6, D), torch.randn(6, C)
    for p in twin.parameters():
        nn.init.zeros_(p)
    twin.load_state_dict(flow.state_dict(), strict=True)
    for other in (twin, copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        torch.testing.assert_close(other.inverse(x, c)[0], theirs(x, c)[0], atol=1e-5, rtol=1e-5)


def test_empty():
    flow = from_nflows(transforms.CompositeTransform([]))
    assert isinstance(flow, FlowSequence)
    assert len(flow) == 0


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (lambda: transforms.LULinear(D), r"transform 1 \(LULinear\) cannot be expressed, only nflows' Masked"),
        (lambda: transforms.ActNorm(D), r"transform 1 \(ActNorm\) cannot be expressed"),
        (lambda: transforms.BatchNorm(D), r"transform 1 \(BatchNorm\) cannot be expressed"),
        (
            lambda: transforms.CompositeTransform([step(), transforms.InverseTransform(transforms.LULinear(D))]),
            r"transform 1.1 \(LULinear\) cannot be expressed",
        ),
        (lambda: step(use_batch_norm=True), "transform 1: use_batch_norm=True cannot be expressed"),
        (lambda: transforms.Permutation(torch.arange(D), dim=2), "transform 1: dim of a permutation must be 1"),
        (lambda: transforms.ReversePermutation(4), r"must have the same number of features, got \[4, 5\]"),
    ],
)
def test_what_cannot_be_expressed(part, message):
    with pytest.raises(ValueError, match=message):
        from_nflows(transforms.CompositeTransform([step(), part()]))
