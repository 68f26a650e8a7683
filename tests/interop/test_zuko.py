"""Flows for and from zuko."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn

from fastvae.interop import from_zuko, to_zuko
from fastvae.nn import FlowSequence, InverseAutoregressiveFlow, MaskedAutoregressiveFlow, check_autoregressive

try:
    import zuko
    from zuko.flows import MAF, MaskedAutoregressiveTransform
    from zuko.lazy import LazyComposedTransform
except ImportError:
    pytest.skip("needs the extra peers: zuko", allow_module_level=True)

D, C = 5, 3
contexts = pytest.mark.parametrize("context", [0, C])


def compare(transform, flow, context, parallel):
    """``transform`` maps data to latents; ``parallel`` says in which direction it computes all at once."""
    c, x = torch.randn(6, C) if context else None, torch.randn(6, D, requires_grad=True)
    lazy = transform(c)
    theirs, ours = (
        (lazy.call_and_ladj(x), flow.inverse(x, c)) if parallel == "data" else (lazy.inv.call_and_ladj(x), flow(x, c))
    )
    for actual, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    sequential = flow(ours[0].detach(), c) if parallel == "data" else flow.inverse(ours[0].detach(), c)
    torch.testing.assert_close(sequential[0], x.detach(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sequential[1], -ours[1], atol=1e-4, rtol=1e-4)
    gradients = [torch.autograd.grad(y.square().sum() + ld.sum(), x, retain_graph=True)[0] for y, ld in (ours, theirs)]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)
    (ours[0].square().sum() + ours[1].sum()).backward()
    assert all(p.grad is not None for p in flow.parameters())


@contexts
@pytest.mark.parametrize("widths", [(32,), (32, 17), (4, 6)])
@pytest.mark.parametrize("order", [None, [3, 0, 4, 1, 2]])
def test_from_zuko(context, widths, order):
    order = None if order is None else torch.tensor(order)
    t = MaskedAutoregressiveTransform(D, context, order=order, hidden_features=widths)
    flow = from_zuko(t)
    assert isinstance(flow, MaskedAutoregressiveFlow)
    assert order is None or flow.networks[0].structure.order == tuple(order.tolist())
    compare(t, flow, context, parallel="data")
    check_autoregressive(flow, require_used=min(widths) >= 2 * D)


@pytest.mark.parametrize(("passes", "context"), [(1, C), (2, 0), (2, C), (3, 0), (3, C)])
def test_coupling(context, passes):
    # Features of one group do not see each other.
    t = MaskedAutoregressiveTransform(D, context, passes=passes, hidden_features=(20, 20))
    flow = from_zuko(t)
    compare(t, flow, context, parallel="data")
    check_autoregressive(flow, require_used=False)


@contexts
@pytest.mark.parametrize("randperm", [False, True])
def test_maf(context, randperm):
    maf = MAF(D, context, transforms=3, randperm=randperm, hidden_features=(24, 24), activation=nn.ELU)
    flow = from_zuko(maf)
    assert len(flow.networks) == 3
    assert flow.networks[0].structure.activation == "elu"
    compare(maf.transform, flow, context, parallel="data")


@contexts
def test_inverse_autoregressive(context):
    parts = [MaskedAutoregressiveTransform(D, context, hidden_features=(16,)) for _ in range(2)]
    flow = from_zuko(parts[0].inv)
    assert isinstance(flow, InverseAutoregressiveFlow)
    compare(parts[0].inv, flow, context, parallel="latent")
    for composed in (LazyComposedTransform(*(t.inv for t in parts)), LazyComposedTransform(*parts).inv):
        compare(composed, from_zuko(composed), context, parallel="latent")


def test_density_of_a_flow():
    maf, c, x = MAF(D, C, transforms=2), torch.randn(6, C), torch.randn(6, D)
    ours = zuko.flows.Flow(to_zuko(from_zuko(maf)), maf.base)
    torch.testing.assert_close(ours(c).log_prob(x), maf(c).log_prob(x), atol=1e-5, rtol=1e-5)


def test_double_and_mode():
    t, x = MaskedAutoregressiveTransform(D).double().eval(), torch.randn(6, D).double()
    flow = from_zuko(t)
    assert not flow.training
    torch.testing.assert_close(flow.inverse(x)[0], t()(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"residual": True}, "residual=True cannot be expressed"),
        ({"activation": nn.Sigmoid}, r"the activation Sigmoid\(\) cannot be expressed"),
        ({"hidden_features": ()}, "hidden_features must name one or more layers"),
        (
            {"univariate": zuko.transforms.MonotonicRQSTransform, "shapes": [(8,), (8,), (7,)]},
            "univariate must be MonotonicAffineTransform with its default slope, got MonotonicRQSTransform",
        ),
        ({"univariate": partial(zuko.transforms.MonotonicAffineTransform, slope=0.1)}, "with its default slope, got"),
        (
            {"adjacency": torch.tensor([[1, 0, 0, 1], [0, 1, 0, 1], [1, 1, 1, 0]], dtype=torch.bool), "context": 1},
            r"the mask of hyper.0 cannot be expressed: not every unit sees all of the context",
        ),
        (
            {"adjacency": torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1]], dtype=torch.bool)},
            "the mask of hyper.0 cannot be written as in_degrees <= out_degrees: the sets",
        ),
    ],
)
def test_what_cannot_be_expressed(arguments, message):
    features = len(arguments["adjacency"]) if "adjacency" in arguments else D
    with pytest.raises(ValueError, match=message):
        from_zuko(MaskedAutoregressiveTransform(features, **{"hidden_features": (16, 16), **arguments}))


def test_other_transforms():
    with pytest.raises(TypeError, match=r"must be zuko's MaskedAutoregressiveTransform, .*, got ElementWise"):
        from_zuko(MaskedAutoregressiveTransform(1))


@pytest.mark.parametrize("flow_class", [InverseAutoregressiveFlow, MaskedAutoregressiveFlow])
def test_to_zuko(flow_class):
    flow = FlowSequence(flow_class(D, (16,), context_features=C), flow_class(D, (16,), context_features=C))
    lazy, c, x = to_zuko(flow), torch.randn(6, C), torch.randn(6, D)
    assert isinstance(lazy, zuko.lazy.LazyTransform)
    assert {id(p) for p in lazy.parameters()} == {id(p) for p in flow.parameters()}
    for actual, expected in zip(lazy(c).call_and_ladj(x), flow.inverse(x, c), strict=True):
        torch.testing.assert_close(actual, expected)
    for actual, expected in zip(lazy(c).inv.call_and_ladj(x), flow(x, c), strict=True):
        torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(lazy.inv(c)(x), flow(x, c)[0])
    torch.testing.assert_close(copy.deepcopy(lazy)(c)(x), lazy(c)(x))


def test_trains_as_a_flow():
    base = zuko.lazy.UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.zeros(D), torch.ones(D), buffer=True
    )
    model = zuko.flows.Flow(to_zuko(MaskedAutoregressiveFlow(D, (16,), context_features=C, kind="exp")), base)
    c = torch.randn(64, C)
    x = 0.3 * torch.randn(64, D) + c[:, :1]
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = -model(c).log_prob(x).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1
    assert model(c).sample((2,)).shape == (2, 64, D)
    z, log_prob = model(c).rsample_and_log_prob((2,))
    torch.testing.assert_close(model(c).log_prob(z), log_prob, atol=1e-3, rtol=1e-3)


def test_converted_flow_is_a_module_like_any_other():
    flow, twin = (from_zuko(MAF(D, C, transforms=2, hidden_features=(16,))) for _ in range(2))
    x, c = torch.randn(6, D), torch.randn(6, C)
    twin.load_state_dict(flow.state_dict(), strict=True)
    for other in (twin, copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        torch.testing.assert_close(other.inverse(x, c)[0], flow.inverse(x, c)[0])
