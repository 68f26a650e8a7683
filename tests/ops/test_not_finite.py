"""Where numbers are infinite or huge, kernels give what eager PyTorch gives."""

import math

import pytest
import torch

import fastvae.functional as F
from fastvae import backend, nn
from fastvae.ops.masked_linear import masked_norm

IMPLS = ["cpp", "triton"]
INF = math.inf


def place(impl):
    """Where ``impl`` runs here: Triton on the GPU, or interpreted on the CPU."""
    return "cuda" if impl == "triton" and torch.cuda.is_available() else "cpu"


def gradients(call, inputs, upstream):
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    outputs = call(*leaves)
    return torch.autograd.grad(outputs, leaves, upstream)


def compare(call, inputs, upstream, impl):
    """``call(impl)`` is a function of ``inputs``."""
    inputs, upstream = [t.to(place(impl)) for t in inputs], upstream.to(place(impl))
    ours = gradients(call(impl), inputs, upstream)
    theirs = gradients(call("reference"), inputs, upstream)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("value", [INF, math.nan])
def test_closed_relu_of_a_layer_stops_what_is_not_finite(impl, value):
    torch.manual_seed(0)
    degrees = torch.arange(5)

    def call(impl):
        place_of = degrees.to(place(impl))
        return lambda x, w, b: F.masked_linear(
            x, w, b, in_degrees=place_of, out_degrees=place_of, activation="relu", impl=impl
        )

    # The first output is closed for all rows: its gradient is lost, though it is not finite.
    inputs = torch.randn(3, 5), torch.randn(5, 5), torch.tensor([-100.0, 0, 0, 0, 0])
    upstream = torch.randn(3, 5)
    upstream[:, 0] = value
    compare(call, inputs, upstream, impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_closed_relu_of_a_convolution_stops_what_is_not_finite(impl):
    torch.manual_seed(0)

    def call(impl):
        return lambda x, w, b: F.masked_conv2d(x, w, b, mask_type="B", padding=1, activation="relu", impl=impl)

    inputs = torch.randn(2, 3, 4, 4), torch.randn(3, 3, 3, 3), torch.tensor([-100.0, 0, 0])
    upstream = torch.randn(2, 3, 4, 4)
    upstream[:, 0] = INF
    compare(call, inputs, upstream, impl)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]], ids=["sorted", "unsorted"])
def test_infinite_input_of_a_layer_with_row_factors(impl, order):
    torch.manual_seed(0)
    in_degrees, out_degrees = torch.tensor(order), torch.tensor([2, 0, 1, 3])

    def call(impl):
        degrees = {"in_degrees": in_degrees.to(place(impl)), "out_degrees": out_degrees.to(place(impl))}
        return lambda w, s: F.masked_linear(x.to(w), w, weight_scale=s, **degrees, impl=impl)

    # Every output reads the infinite one: past a mask, infinity spreads in the reference alone.
    x = torch.where(in_degrees == 0, -INF, torch.tensor([[3.0, -89.0, 1.5]]))
    compare(call, (torch.randn(4, 3), torch.rand(4) + 0.5), torch.ones(1, 4), impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_mixture_keeps_its_digits_under_large_logits(impl):
    torch.manual_seed(0)
    x = torch.randint(0, 256, (2, 1, 3, 4)) / 127.5 - 1
    params = torch.randn(2, 6, 3, 4)
    params[:, 1] += 1e6
    x, params = x.to(place(impl)), params.to(place(impl))
    expected = F.logistic_mixture_log_prob(x.double(), params.double(), impl="reference")
    # Rounded in float32 beside a logit of 1e6, a log-probability would be off by 0.06 for each of the 12 pixels.
    torch.testing.assert_close(
        F.logistic_mixture_log_prob(x, params, impl=impl).double(), expected, rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("impl", [*IMPLS, "reference"])
@pytest.mark.parametrize("log_scale", [30.0, 1000.0])
def test_mixture_of_very_wide_logistics(impl, log_scale):
    """The bin's share of such a logistic is its width times the density at the mean, e^-s / 4."""
    x = torch.zeros(1, 1, 1, 1, device=place(impl))
    params = torch.tensor([0.0, 0.2, log_scale], device=place(impl)).view(1, 3, 1, 1).requires_grad_()
    log_prob = F.logistic_mixture_log_prob(x, params, impl=impl)
    expected = math.log(2 / 255) - log_scale - math.log(4)
    assert log_prob.item() == pytest.approx(expected, rel=1e-6)
    (d_params,) = torch.autograd.grad(log_prob.sum(), params)
    torch.testing.assert_close(d_params.flatten().cpu(), torch.tensor([0.0, 0.0, -1.0]), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("impl", [*IMPLS, "reference"])
@pytest.mark.parametrize("components", [1, 3])
def test_pixel_that_no_component_gives(impl, components):
    x = torch.zeros(1, 1, 1, 2, device=place(impl))
    params = torch.zeros(1, 3 * components, 1, 2, device=place(impl))
    params[:, components : 2 * components, :, 1] = INF
    assert F.logistic_mixture_log_prob(x, params, impl=impl).item() == -INF


@pytest.mark.parametrize("impl", IMPLS)
def test_log_det_alone_of_an_infinite_point(impl):
    """Of one feature, the log-determinant does not depend on the point, and no product with it is formed."""
    torch.manual_seed(0)
    z = torch.tensor([[0.5], [-INF], [3.0]], device=place(impl))
    flow = nn.InverseAutoregressiveFlow(1, (6,), kind="softplus").to(place(impl))
    parameters, results = tuple(flow.parameters()), []
    for chosen in (impl, "reference"):
        with backend.use(chosen):
            _, log_det = flow.inverse(z)
            results.append([log_det, *torch.autograd.grad(log_det.sum(), parameters)])
    for ours, theirs in zip(*results, strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, theirs)


CLAMPED = ["gated", "clamped_exp", "iaf_release"]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kind", CLAMPED)
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_logit_beyond_the_clamp_has_no_gradient(impl, kind, inverse):
    """Though the product with the gradient of the scale is infinite."""

    def call(impl):
        return lambda z, m, s: F.affine_flow(z, m, s, kind=kind, inverse=inverse, impl=impl)[0]

    z, m = torch.tensor([[INF, 0.5, 0.5, -INF, 0.5]]), torch.tensor([[0.3, INF, -INF, 0.3, math.nan]])
    s = torch.tensor([[400.0, 400.0, -400.0, math.nan, 400.0]])
    compare(call, (z, m, s), torch.ones(1, 5), impl)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kind", CLAMPED)
@pytest.mark.parametrize("method", ["forward", "inverse"])
def test_clamped_logit_of_an_infinite_point(impl, kind, method):
    """Of one feature, gradients of parameters do not depend on the point where the logit has none."""
    torch.manual_seed(0)
    z = torch.tensor([[0.5], [INF], [3.0]], device=place(impl))
    flow = nn.InverseAutoregressiveFlow(1, (6,), kind=kind).to(place(impl))
    with torch.no_grad():
        flow.networks[0].layers[-1].bias.fill_(400.0)
    parameters, results = tuple(flow.parameters()), []
    for chosen, point in ((impl, z), ("reference", torch.ones_like(z))):
        with backend.use(chosen):
            points, log_det = getattr(flow, method)(point)
            results.append(torch.autograd.grad(points.sum() + log_det.sum(), parameters))
    for ours, theirs in zip(*results, strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]], ids=["sorted", "unsorted"])
@pytest.mark.parametrize(
    ("dtype", "size"),
    [(torch.float32, 1e-30), (torch.float32, 1e30), (torch.float64, 1e-200), (torch.float64, 1e200)],
)
def test_norm_of_weights_whose_squares_leave_the_range(impl, order, dtype, size):
    degrees = {"in_degrees": torch.tensor(order), "out_degrees": torch.tensor([1, 2, -1, 2])}
    degrees = {name: t.to(place(impl)) for name, t in degrees.items()}
    # A masked weight and a row without connections do not count; an ordinary row beside them keeps its norm.
    rows = torch.tensor([[3.0, 4.0, math.nan], [2.0, 3.0, 6.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]], dtype=dtype) * size
    rows[3] = torch.tensor([2.0, 3.0, 6.0])
    weight = rows[:, order].to(place(impl)).requires_grad_()
    norm = masked_norm(weight, **degrees, impl=impl)
    expected = torch.tensor([5 * size, 7 * size, 0.0, 7.0], dtype=dtype, device=place(impl))
    torch.testing.assert_close(norm, expected, rtol=1e-6, atol=0)
    (d_weight,) = torch.autograd.grad(norm.sum(), weight)
    unit = torch.tensor([[3 / 5, 4 / 5, 0], [2 / 7, 3 / 7, 6 / 7], [0, 0, 0], [2 / 7, 3 / 7, 6 / 7]], dtype=dtype)
    torch.testing.assert_close(d_weight, unit[:, order].to(place(impl)), rtol=1e-6, atol=0)
