"""Flows as transforms of torch.distributions."""

import copy
import pickle
import subprocess
import sys
import weakref

import pytest
import torch
from torch.distributions import ComposeTransform, Independent, Normal, TransformedDistribution

from fastvae.interop import FlowTransform, to_torch_transform
from fastvae.nn import (
    FlowSequence,
    HouseholderFlow,
    InverseAutoregressiveFlow,
    MaskedAutoregressiveFlow,
    PlanarFlow,
)

D, C = 4, 3
FLOWS = {
    "iaf": lambda c: InverseAutoregressiveFlow(D, (16,), steps=2, context_features=c),
    "maf": lambda c: MaskedAutoregressiveFlow(D, (16,), steps=2, context_features=c, kind="exp"),
    "sequence": lambda c: FlowSequence(InverseAutoregressiveFlow(D, (16,), context_features=c), HouseholderFlow(D, 2)),
}
every_flow = pytest.mark.parametrize("name", FLOWS)


def base(*batch):
    return Independent(Normal(torch.zeros(*batch, D).double(), torch.ones(*batch, D).double()), 1)


class Counting(torch.nn.Module):
    """A flow that counts its calls."""

    def __init__(self, flow):
        super().__init__()
        self.flow, self.forwards, self.inverses = flow, 0, 0

    def forward(self, z, context=None):
        self.forwards += 1
        return self.flow(z, context)

    def inverse(self, z, context=None):
        self.inverses += 1
        return self.flow.inverse(z, context)


@every_flow
@pytest.mark.parametrize("context_features", [0, C])
def test_transform(name, context_features):
    flow = FLOWS[name](context_features).double()
    context = torch.randn(5, C).double() if context_features else None
    t, z = to_torch_transform(flow, context), torch.randn(2, 5, D).double()
    assert (t.event_dim, t.bijective, t.inv.inv is t) == (1, True, True)
    out, log_det = flow(z, context)
    y = t(z)
    torch.testing.assert_close(y, out)
    torch.testing.assert_close(t.log_abs_det_jacobian(z, y), log_det)
    torch.testing.assert_close(t.inv(y), z)
    torch.testing.assert_close(t.inv.log_abs_det_jacobian(y, z), -log_det)
    for actual, expected in zip(t.call_and_ladj(z), (out, log_det), strict=True):
        torch.testing.assert_close(actual, expected)


@every_flow
def test_density_of_samples(name):
    q = TransformedDistribution(base(), [to_torch_transform(FLOWS[name](0).double())])
    z = torch.randn(6, D).double()
    x, log_det = q.transforms[0].flow(z)
    torch.testing.assert_close(q.log_prob(x.detach()), base().log_prob(z) - log_det)
    assert q.rsample((2, 3)).shape == (2, 3, D)
    assert q.event_shape == (D,)


def test_density_integrates_to_one():
    flow = InverseAutoregressiveFlow(2, (16,), kind="exp").double()
    q = TransformedDistribution(
        Independent(Normal(torch.zeros(2).double(), torch.ones(2).double()), 1), [to_torch_transform(flow)]
    )
    axis = torch.linspace(-12, 12, 301).double()
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        total = q.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert abs(total - 1) < 1e-3


def test_batch_of_the_context():
    q = TransformedDistribution(base(), [to_torch_transform(FLOWS["iaf"](C).double(), torch.randn(5, C).double())])
    assert (q.batch_shape, q.event_shape) == ((5,), (D,))
    x = q.rsample((7,))
    assert (x.shape, q.log_prob(x).shape) == ((7, 5, D), (7, 5))


def test_compose_and_inverse_distribution():
    t = to_torch_transform(FLOWS["iaf"](0).double())
    z = torch.randn(6, D).double()
    both = ComposeTransform([t, t.inv])
    torch.testing.assert_close(both(z), z)
    data_to_latent = TransformedDistribution(base(), [t.inv])
    assert data_to_latent.log_prob(z).shape == (6,)


@pytest.mark.parametrize("cache_size", [0, 1])
def test_density_computes_once(cache_size):
    flow = Counting(FLOWS["iaf"](0).double())
    q = TransformedDistribution(base(), [to_torch_transform(flow, cache_size=cache_size)])
    q.log_prob(torch.randn(3, D).double())
    assert (flow.forwards, flow.inverses) == (0, 1)
    x = q.rsample((3,))
    q.log_prob(x)
    assert (flow.forwards, flow.inverses) == (1, 2 - cache_size)


@pytest.mark.parametrize("cache_size", [0, 1])
def test_nothing_stale(cache_size):
    flow = FLOWS["iaf"](C).double()
    context = torch.randn(3, C).double()
    t, z = to_torch_transform(flow, context, cache_size=cache_size), torch.randn(3, D).double()

    def check_change(change):
        y = t(z)
        change(y)
        torch.testing.assert_close(t.inv(y), flow.inverse(y, context)[0])
        y = t(z)
        change(y)
        torch.testing.assert_close(t.log_abs_det_jacobian(z, y), flow(z, context)[1])

    with torch.no_grad():
        check_change(lambda y: next(flow.parameters()).add_(1.0))
        check_change(lambda y: context.mul_(2.0))
        check_change(lambda y: z.mul_(2.0))
        y = t(z)
    # What was computed without gradients does not serve where they are wanted.
    assert t.log_abs_det_jacobian(z, y).requires_grad


def test_repeated_backward():
    t, z = to_torch_transform(FLOWS["iaf"](0).double()), torch.randn(3, D).double().requires_grad_()
    y = t(z)
    for _ in range(2):
        t.log_abs_det_jacobian(z, y).sum().backward()
    assert z.grad.isfinite().all()


def test_keeps_no_values_alive():
    t = to_torch_transform(FLOWS["iaf"](0).double())
    with torch.no_grad():
        z = torch.randn(3, D).double()
        y = t(z)
        alive = weakref.ref(z), weakref.ref(y)
        del z, y
    assert [ref() for ref in alive] == [None, None]


@pytest.mark.parametrize("cache_size", [0, 1])
@every_flow
def test_gradients(name, cache_size):
    flow = FLOWS[name](C).double()
    context = torch.randn(6, C).double().requires_grad_()
    q = TransformedDistribution(base(), [to_torch_transform(flow, context, cache_size=cache_size)])
    x = q.rsample()
    (x.square().sum() - q.log_prob(x).sum()).backward()
    # The first feature's shift and scale are biases; all other parameters count.
    assert context.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in flow.parameters())


def test_gradients_agree_with_the_flow():
    flow, z = FLOWS["iaf"](0).double(), torch.randn(6, D).double()
    parameters = list(flow.parameters())
    x, log_det = flow(z)
    expected = torch.autograd.grad((base().log_prob(z) - log_det).sum() + x.sum(), parameters)
    q = TransformedDistribution(base(), [to_torch_transform(flow, cache_size=1)])
    x = q.transforms[0](z)
    actual = torch.autograd.grad(q.log_prob(x).sum() + x.sum(), parameters)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


def test_with_cache_copies_and_pickles():
    t = to_torch_transform(FLOWS["iaf"](C), torch.randn(3, C))
    z = torch.randn(3, D)
    y = t(z)
    assert t.with_cache(0) is t
    cached = t.with_cache(1)
    assert (type(cached), cached._cache_size, cached.flow, cached.context is t.context) == (
        FlowTransform, 1, t.flow, True,
    )  # fmt: skip
    for twin in (pickle.loads(pickle.dumps(t)), copy.deepcopy(t)):
        assert torch.equal(twin(z), y)
    assert repr(t) == "FlowTransform(InverseAutoregressiveFlow)"


@pytest.mark.parametrize("cache_size", [0, 1])
def test_vmap(cache_size):
    t, z = to_torch_transform(FLOWS["iaf"](0).double(), cache_size=cache_size), torch.randn(2, 3, D).double()

    def density(z):
        y = t(z)
        return t.inv(y), t.log_abs_det_jacobian(z, y)

    back, log_det = torch.func.vmap(density)(z)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(log_det, t.flow(z)[1])


def test_flow_without_inverse():
    t = to_torch_transform(PlanarFlow(D).double(), cache_size=1)
    q = TransformedDistribution(base(), [t])
    with pytest.raises(NotImplementedError, match="the transform has no inverse: PlanarFlow has none"):
        q.log_prob(torch.randn(D).double())
    # Its own samples need none.
    x = q.rsample((3,))
    assert q.log_prob(x).shape == (3,)


def test_errors():
    with pytest.raises(TypeError, match="flow must be a module with forward"):
        to_torch_transform(lambda z: z)
    with pytest.raises(ValueError, match=r"the transform takes shape \(\*, 4\), got \(5,\)"):
        TransformedDistribution(
            Independent(Normal(torch.zeros(5), torch.ones(5)), 1), [to_torch_transform(FLOWS["iaf"](0))]
        )


WITHOUT_PEERS = """
import importlib.abc
import sys

PEERS = {"pyro": "pyro-ppl", "zuko": "zuko", "nflows": "nflows", "normflows": "normflows"}


class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in PEERS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


import fastvae.interop as interop
from fastvae.nn import PlanarFlow

assert not PEERS.keys() & sys.modules.keys(), "importing fastvae.interop imports another library"
sys.meta_path.insert(0, Blocked())
functions = [name for name in interop.__all__ if name.partition("_")[2] in PEERS]
assert len(functions) == 7, functions
for name in functions:
    package = PEERS[name.partition("_")[2]]
    try:
        getattr(interop, name)(PlanarFlow(2))
    except ImportError as error:
        assert f"pip install {package}, or fastvae-kernels[peers]" in str(error), error
    else:
        raise AssertionError(name)
"""


def test_without_other_libraries():
    subprocess.run([sys.executable, "-c", WITHOUT_PEERS], check=True)
