"""Fixed flows: a permutation of the features, and an affine map of each."""

import copy
import pickle

import pytest
import torch
from torch.func import jacrev, vmap

from fastvae.nn import AffineTransform, FlowSequence, MaskedAutoregressiveFlow, Permutation

FLOWS = {
    "permutation": lambda: Permutation([2, 0, 3, 1]),
    "affine": lambda: AffineTransform(torch.tensor([1.0, -2.0, 3.0, 0.5]), torch.tensor([2.0, -0.5, 1e-3, 1e3])),
    "learnable": lambda: AffineTransform(torch.randn(4), torch.rand(4) + 0.5, learnable=True),
}
every_flow = pytest.mark.parametrize("name", FLOWS)


@every_flow
@pytest.mark.parametrize("batch", [(), (0,), (3,), (2, 3)])
def test_jacobian_and_inverse(name, batch):
    flow, z = FLOWS[name]().double(), torch.randn(*batch, 4, dtype=torch.float64)
    for direction, back in ((flow.forward, flow.inverse), (flow.inverse, flow.forward)):
        out, log_det = direction(z)
        assert (out.shape, log_det.shape) == ((*batch, 4), batch)
        again, minus_log_det = back(out)
        torch.testing.assert_close(again, z)
        torch.testing.assert_close(minus_log_det, -log_det)
        jacobian = vmap(jacrev(lambda row, f=direction: f(row)[0]))(z.reshape(-1, 4))
        expected = torch.linalg.slogdet(jacobian).logabsdet if len(jacobian) else log_det.reshape(-1)
        torch.testing.assert_close(log_det.reshape(-1), expected)


@every_flow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(name, dtype):
    flow, z = FLOWS[name](), torch.randn(8, 4).to(dtype)
    for direction in (flow.forward, flow.inverse):
        out, log_det = direction(z)
        assert (out.dtype, log_det.dtype) == (dtype, torch.float64 if dtype == torch.float64 else torch.float32)


def test_values():
    z = torch.tensor([[10.0, 11.0, 12.0]])
    assert Permutation(torch.tensor([2, 0, 1]))(z)[0].tolist() == [[12.0, 10.0, 11.0]]
    assert Permutation([2, 0, 1]).inverse(z)[0].tolist() == [[11.0, 12.0, 10.0]]
    affine = AffineTransform(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, -2.0, 4.0]))
    assert affine(z)[0].tolist() == [[21.0, -20.0, 51.0]]


@every_flow
def test_is_a_module_like_any_other(name):
    flow, z = FLOWS[name](), torch.randn(5, 4)
    assert len(list(flow.parameters())) == (2 if name == "learnable" else 0)
    twin = Permutation(range(4)) if name == "permutation" else AffineTransform(torch.zeros(4), torch.ones(4))
    twin.load_state_dict(flow.state_dict(), strict=True)
    for other in (twin, copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        torch.testing.assert_close(other(z), flow(z))
        torch.testing.assert_close(other.inverse(z), flow.inverse(z))
    compiled = torch.compile(flow, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(z), flow(z))


def test_gradients():
    z = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    for name in FLOWS:
        flow = FLOWS[name]().double()
        inputs = (z, *flow.parameters())
        assert torch.autograd.gradcheck(lambda x, *_, f=flow: f(x), inputs)
        assert torch.autograd.gradcheck(lambda x, *_, f=flow: f.inverse(x), inputs)


def test_copies_what_it_is_given():
    loc, scale = torch.zeros(2), torch.ones(2)
    flow = AffineTransform(loc, scale)
    loc.fill_(5.0)
    assert not flow.loc.any()


def test_in_a_chain_context_goes_past_them():
    chain = FlowSequence(
        Permutation([1, 0, 2]),
        MaskedAutoregressiveFlow(3, (8,), context_features=2),
        AffineTransform(torch.ones(3), torch.full((3,), 2.0)),
    )
    z, context = torch.randn(5, 3), torch.randn(5, 2)
    x, log_det = chain(z, context)
    back, minus_log_det = chain.inverse(x, context)
    torch.testing.assert_close(back, z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(minus_log_det, -log_det, atol=1e-5, rtol=1e-5)


@every_flow
def test_errors(name):
    flow = FLOWS[name]()
    for direction in (flow.forward, flow.inverse):
        with pytest.raises(ValueError, match=r"z must have shape \(\*, 4\), got \(2, 5\)"):
            direction(torch.randn(2, 5))
        with pytest.raises(ValueError, match=f"context must be None: {type(flow).__name__} takes none"):
            direction(torch.randn(2, 4), torch.randn(2, 3))


@pytest.mark.parametrize("permutation", [[], [0, 0, 1], [1, 2, 3]])
def test_no_permutation(permutation):
    with pytest.raises(ValueError, match=r"permutation must be one of 0, \.\.\., D - 1, got \["):
        Permutation(permutation)


@pytest.mark.parametrize(
    ("loc", "scale", "error", "message"),
    [
        ([0.0], torch.ones(1), TypeError, "loc must be a floating-point tensor, got list"),
        (torch.zeros(1), torch.ones(1).int(), TypeError, "scale must be a floating-point tensor, got torch.int32"),
        (torch.zeros(2), torch.ones(3), ValueError, r"must have shape \(D,\), got loc \(2,\) and scale \(3,\)"),
        (torch.tensor(0.0), torch.tensor(1.0), ValueError, r"must have shape \(D,\), got loc \(\) and scale \(\)"),
        (torch.zeros(2), torch.tensor([1.0, 0.0]), ValueError, r"scale must not be zero, got \[1.0, 0.0\]"),
    ],
)
def test_affine_errors(loc, scale, error, message):
    with pytest.raises(error, match=message):
        AffineTransform(loc, scale)
