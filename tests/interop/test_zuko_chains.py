"""Compositions of zuko's transforms as flows, among them a flow as sbi builds it."""

import pytest
import torch
from torch import nn
from torch.distributions import AffineTransform as TorchAffine

from fastvae.interop import from_zuko, to_zuko
from fastvae.nn import AffineTransform, InverseAutoregressiveFlow, MaskedAutoregressiveFlow, Permutation

try:
    import zuko
    from zuko.flows import MAF, MaskedAutoregressiveTransform
    from zuko.lazy import Flow, LazyComposedTransform, Unconditional, UnconditionalTransform
    from zuko.transforms import ExpTransform, MonotonicAffineTransform, PermutationTransform
except ImportError:
    pytest.skip("needs the extra peers: zuko", allow_module_level=True)

D, C = 5, 3
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
dtypes = pytest.mark.parametrize("dtype", TOLERANCE)
contexts = pytest.mark.parametrize("context", [0, C])


class Standardize(nn.Module):
    """What sbi puts in front of the embedding of the condition."""

    def __init__(self, values):
        super().__init__()
        self.register_buffer("mean", values.mean(0))
        self.register_buffer("deviation", values.std(0))

    def forward(self, values):
        return (values - self.mean) / self.deviation


def z_score(values, structured=False):
    """sbi's standardising transform of the parameters: the data's mean and standard deviation, in an affine map."""
    mean, deviation = (values.mean(), values.std(1).mean()) if structured else (values.mean(0), values.std(0))
    return UnconditionalTransform(TorchAffine, loc=-mean / deviation, scale=1 / deviation, buffer=True)


def step(context=0, **settings):
    return MaskedAutoregressiveTransform(D, context, hidden_features=(16, 12), **settings)


def compare(theirs, dtype, context=0):
    theirs, c, x = theirs.to(dtype), torch.randn(6, C, dtype=dtype) if context else None, torch.randn(6, D, dtype=dtype)
    flow, tolerance, lazy = from_zuko(theirs), TOLERANCE[dtype], theirs(c)
    for a, e in zip(flow.inverse(x, c), lazy.call_and_ladj(x), strict=True):
        torch.testing.assert_close(a, e, atol=tolerance, rtol=tolerance)
    for a, e in zip(flow(x, c), lazy.inv.call_and_ladj(x), strict=True):
        torch.testing.assert_close(a, e, atol=20 * tolerance, rtol=20 * tolerance)
    return flow


@dtypes
@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_flow_as_sbi_builds_it(first, structured, dtype):
    # Older versions of sbi put the z-score before the other transforms, newer ones behind them.
    theta = torch.tensor([0.1, 2.0, 30.0, 1.0, 4.0]) * torch.randn(100, D) + torch.tensor([1.0, -20.0, 3.0, 0.0, 5.0])
    condition = 3.0 * torch.randn(100, C) + 7.0
    maf = MAF(D, C, transforms=4, randperm=True, hidden_features=[20] * 4)
    embedding = nn.Sequential(Standardize(condition), nn.Identity()).to(dtype)
    parts = [*maf.transform.transforms]
    parts.insert(0 if first else len(parts), z_score(theta, structured))
    theirs = Flow(parts, maf.base).to(dtype)
    flow, x, c = from_zuko(theirs), theta[:6].to(dtype), embedding(condition[:6].to(dtype))
    order = [MaskedAutoregressiveFlow, AffineTransform]
    assert [type(part) for part in flow] == (order if first else order[::-1])
    assert len(flow[0 if first else 1].networks) == 4
    assert not list(flow[1 if first else 0].parameters())
    z, log_det = flow.inverse(x, c)
    density = maf.base(None).log_prob(z) + log_det
    expected = theirs(c).log_prob(x)
    tolerance = 10 * TOLERANCE[dtype]
    torch.testing.assert_close(density, expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(Flow(to_zuko(flow), maf.base)(c).log_prob(x), expected, atol=tolerance, rtol=tolerance)
    noise = torch.randn(6, D, dtype=dtype)
    sample = theirs(c).transform.inv(noise)
    torch.testing.assert_close(flow(noise, c)[0], sample, atol=tolerance, rtol=tolerance)


@dtypes
@contexts
def test_steps_of_both_directions(context, dtype):
    flow = compare(LazyComposedTransform(step(context), step(context).inv, step(context).inv), dtype, context)
    assert [type(part) for part in flow] == [InverseAutoregressiveFlow, MaskedAutoregressiveFlow]
    assert len(flow[0].networks) == 2


@dtypes
@contexts
def test_fixed_parts_and_inverses(context, dtype):
    order = torch.tensor([3, 0, 4, 1, 2])
    affine = z_score(3.0 * torch.randn(50, D) + 1.0)
    monotonic = UnconditionalTransform(MonotonicAffineTransform, torch.randn(D), torch.randn(D))
    permutation = UnconditionalTransform(PermutationTransform, order, buffer=True)
    composed = LazyComposedTransform(affine, step(context), permutation, monotonic, step(context), affine.inv)
    for theirs in (composed, composed.inv):
        flow = compare(theirs, dtype, context)
        # Base noise to data: what is composed, from its end.
        whole = theirs is composed
        expected = [AffineTransform, MaskedAutoregressiveFlow if whole else InverseAutoregressiveFlow] * 2
        expected = [*expected, AffineTransform, Permutation]
        assert [type(part) for part in flow] == expected
        assert isinstance(flow[2].loc, nn.Parameter)
        assert not isinstance(flow[0].loc, nn.Parameter)


def test_deprecated_unconditional():
    with pytest.warns(DeprecationWarning, match="Unconditional"):
        affine = Unconditional(TorchAffine, torch.randn(D), torch.rand(D) + 0.5, buffer=True)
    assert isinstance(compare(LazyComposedTransform(step(), affine), torch.float64)[0], AffineTransform)


def test_lone_affine():
    theirs, x = z_score(torch.randn(50, D)), torch.randn(6, D)
    flow = from_zuko(theirs)
    assert isinstance(flow, AffineTransform)
    torch.testing.assert_close(flow.inverse(x)[0], theirs()(x))
    torch.testing.assert_close(flow.inverse(x)[1], theirs().log_abs_det_jacobian(x, x).sum(-1))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            lambda: UnconditionalTransform(ExpTransform),
            r"transform 1 \(ExpTransform\) cannot be expressed, only zuko's",
        ),
        (lambda: zuko.flows.ElementWiseTransform(D), r"transform 1 \(ElementWiseTransform\) cannot be expressed"),
        (lambda: LazyComposedTransform(step(), step(residual=True)), "transform 1.1: residual=True cannot be"),
    ],
)
def test_what_cannot_be_expressed(part, message):
    with pytest.raises(ValueError, match=message):
        from_zuko(LazyComposedTransform(step(), part()))
