import copy
import itertools
import pickle

import pytest
import torch
from torch.nn import functional

from fastvae.nn.autoregressive_check import check_autoregressive
from fastvae.nn.conv_flows import ConvInverseAutoregressiveFlow, ConvMADE
from fastvae.objectives import free_bits
from fastvae.reference.affine_flow import KINDS, affine_flow
from tests.support.oracle import jacobian

every_impl = pytest.mark.parametrize("impl", ["reference", "cpp"])
every_kind = pytest.mark.parametrize("kind", KINDS)
orders = pytest.mark.parametrize("order", ["raster", "reversed"])
contexts = pytest.mark.parametrize("context_channels", [0, 3], ids=["plain", "context"])
Z, H, W = 3, 3, 4


def places(channels, h, w, order="raster"):
    """Place of every number of (Z, H, W), flattened, in the order of pixels and, within a pixel, of channels."""
    place = torch.arange(h * w * channels).view(h, w, channels).permute(2, 0, 1).flatten()
    return place if order == "raster" else len(place) - 1 - place


def context_of(channels, n, h=H, w=W):
    return torch.randn(n, channels, h, w) if channels else None


@every_impl
@orders
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_parameters_see_what_stands_before(channels, order, impl):
    """Everything before but for the blind spot, and nothing else: exact zeros of the Jacobian."""
    h, w = 2, 3
    net = ConvMADE(channels, (12, 12), order=order, impl=impl).double()

    def flat(z):
        return net(z.view(-1, channels, h, w)).reshape(-1, 2, channels * h * w)

    report = check_autoregressive(flat, channels * h * w, order=places(channels, h, w, order), require_used=False)
    count = channels * h * w
    assert report.forbidden == count * (count + 1)
    # The blind spot: of two rows of three pixels, the first of the last row misses the last of the first row.
    assert report.unused == 2 * channels**2


@orders
@pytest.mark.parametrize("context_channels", [2])
def test_context_reaches_every_number(context_channels, order):
    net = ConvMADE(Z, (8, 8), context_channels=context_channels, order=order).double()
    z, context = torch.randn(1, Z, H, W).double(), torch.randn(1, 2, H, W).double()
    found = jacobian(lambda c: net(z, c.view_as(context)).flatten(), context.flatten())
    own = found.view(2, Z, H, W, context_channels, H, W)
    assert (torch.einsum("pzyxcyx->pzcyx", own) != 0).all()


@every_impl
@contexts
@orders
def test_values_and_gradients(order, context_channels, impl):
    """In float64, against torch's own convolutions with masks made by a slow loop."""
    k, widths = 3, (4, 5)
    net = ConvMADE(2, widths, context_channels=context_channels, order=order, impl=impl).double()
    ins = [0, 1] if order == "raster" else [1, 0]
    seen = [[place + 1 for place in ins], [0, 0, 1, 1], [0, 0, 0, 1, 1], ins * 2]
    z = torch.randn(2, 2, H, W).double().requires_grad_()
    context = context_of(context_channels, 2)
    context = None if context is None else context.double()
    h = z
    for i, layer in enumerate(net.layers):
        mask = torch.zeros_like(layer.weight)
        for o, c, y, x in itertools.product(range(mask.shape[0]), range(mask.shape[1]), range(k), range(k)):
            before = (y, x) < (1, 1) if order == "raster" else (y, x) > (1, 1)
            mask[o, c, y, x] = before or ((y, x) == (1, 1) and seen[i][c] <= seen[i + 1][o])
        h = functional.conv2d(h, layer.weight * mask, layer.bias, padding=1)
        if i == 0 and context is not None:
            h = h + functional.conv2d(context, net.condition.layer.weight)
        if i < 2:
            h = functional.elu(h)
    got = net(z, context)
    torch.testing.assert_close(got, h)
    upstream, leaves = torch.randn_like(h), [z, *net.parameters()]
    expected = torch.autograd.grad(h, leaves, upstream)
    torch.testing.assert_close(torch.autograd.grad(got, leaves, upstream), expected)


@every_impl
@every_kind
@contexts
def test_log_det_is_that_of_the_jacobian(context_channels, kind, impl):
    flow = ConvInverseAutoregressiveFlow(
        2, (6, 6), steps=2, context_channels=context_channels, kind=kind, impl=impl
    ).double()
    z, context = torch.randn(1, 2, 2, 3).double(), context_of(context_channels, 1, 2, 3)
    context = None if context is None else context.double()
    found = jacobian(lambda flat: flow(flat.view_as(z), context)[0].flatten(), z.flatten())
    log_det = flow(z, context)[1]
    torch.testing.assert_close(torch.linalg.slogdet(found).logabsdet, log_det[0])


@every_impl
@pytest.mark.parametrize("reverse", [False, True])
def test_steps_are_triangular(reverse, impl):
    """Step by step: no number depends on one behind it, and every one on itself."""
    flow = ConvInverseAutoregressiveFlow(2, (6,), steps=2, reverse=reverse, impl=impl).double()
    assert [net.order for net in flow.steps()] == ["raster", "reversed" if reverse else "raster"]
    for index, net in enumerate(flow.steps()):
        step = copy.copy(flow)
        step._modules = {**flow._modules, "networks": torch.nn.ModuleList([net])}
        check_autoregressive(
            lambda z, step=step: step(z.view(-1, 2, 2, 2))[0].flatten(1), 8,
            order=places(2, 2, 2, flow.steps()[index].order), diagonal="required", require_used=False,
        )  # fmt: skip


@every_impl
@every_kind
@contexts
def test_inverse_undoes_forward(context_channels, kind, impl):
    flow = ConvInverseAutoregressiveFlow(
        2, (5, 5), steps=2, context_channels=context_channels, kind=kind, impl=impl
    ).double()
    z, context = torch.randn(3, 2, 2, 3).double(), context_of(context_channels, 3, 2, 3)
    context = None if context is None else context.double()
    with torch.no_grad():
        out, log_det = flow(z, context)
    back, minus_log_det = flow.inverse(out, context)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(minus_log_det, -log_det)


@every_impl
@every_kind
def test_values_of_a_step(kind, impl):
    """One step is the affine step of its network's parameters."""
    flow = ConvInverseAutoregressiveFlow(Z, (6, 6), kind=kind, impl=impl)
    z = torch.randn(2, Z, H, W)
    (network,) = flow.steps()
    shift, *scale = network(z).split(Z, 1)
    expected = affine_flow(z.flatten(1), shift.flatten(1), scale[0].flatten(1) if scale else None, kind)
    out, log_det = flow(z)
    torch.testing.assert_close((out.flatten(1), log_det), expected)


def test_gated_steps_start_near_the_identity():
    flow = ConvInverseAutoregressiveFlow(Z, (6, 6), kind="gated")
    assert flow.steps()[0].layers[-1].bias[Z:].mean() > 1.5
    assert flow.steps()[0].layers[-1].bias[:Z].abs().max() < 1


@every_kind
def test_map_of_log_determinants(kind):
    """The shares of the numbers add up to the log-determinant, and carry the same gradient."""
    flow = ConvInverseAutoregressiveFlow(Z, (6, 6), steps=2, kind=kind).double()
    z = torch.randn(2, Z, H, W).double().requires_grad_()
    out, log_det = flow(z)
    same, shares = flow(z, log_det_map=True)
    assert shares.shape == z.shape
    torch.testing.assert_close(same, out)
    torch.testing.assert_close(shares.sum((1, 2, 3)), log_det)
    if kind != "location_only":
        gradients = [torch.autograd.grad(t.sum(), z, retain_graph=True)[0] for t in (log_det, shares)]
        torch.testing.assert_close(*gradients)


def test_free_bits_per_channel():
    """The floor holds for each latent map: summed over pixels, averaged over the batch."""
    flow = ConvInverseAutoregressiveFlow(Z, (6, 6))
    eps = torch.randn(5, Z, H, W)
    z, shares = flow(eps, log_det_map=True)
    kl = (-0.5 * eps.square() - shares) + 0.5 * z.square()
    per_channel = kl.sum((2, 3)).mean(0)
    floor = float(per_channel.detach().median().clamp(min=0.01))
    torch.testing.assert_close(free_bits(kl, floor), per_channel.clamp(min=floor).sum())


@every_impl
def test_channels_last(impl):
    flow = ConvInverseAutoregressiveFlow(Z, (6, 6), steps=2, context_channels=2, impl=impl)
    z, context = torch.randn(2, Z, H, W), torch.randn(2, 2, H, W)
    expected = flow(z, context)
    got = flow(*(t.contiguous(memory_format=torch.channels_last) for t in (z, context)))
    assert got[0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got, expected)


@every_impl
@contexts
def test_compile_fullgraph(context_channels, impl):
    torch._dynamo.reset()
    flow = ConvInverseAutoregressiveFlow(Z, (6, 6), steps=2, context_channels=context_channels, impl=impl)
    z, context = torch.randn(2, Z, H, W), context_of(context_channels, 2)

    def loss(function):
        out, log_det = function(z, context)
        return out.square().sum() + log_det.sum()

    compiled = torch.compile(flow, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(loss(flow), tuple(flow.parameters()))
    torch.testing.assert_close(torch.autograd.grad(loss(compiled), tuple(flow.parameters())), expected)


def test_every_parameter_gets_a_gradient():
    flow = ConvInverseAutoregressiveFlow(Z, (6, 6), steps=2, context_channels=2)
    out, log_det = flow(torch.randn(2, Z, H, W), torch.randn(2, 2, H, W))
    (out.square().sum() - log_det.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in flow.parameters())
    for net in flow.steps():
        for layer in net.layers:
            assert (layer.weight.grad[~layer.mask()] == 0).all()


def test_inverse_records_no_gradient():
    flow = ConvInverseAutoregressiveFlow(1, (2,))
    z, log_det = flow.inverse(torch.randn(1, 1, 2, 2, requires_grad=True))
    assert not z.requires_grad
    assert not log_det.requires_grad


def test_persistence():
    flow, other = (ConvInverseAutoregressiveFlow(Z, (6, 6), steps=2, context_channels=2) for _ in range(2))
    z, context = torch.randn(2, Z, H, W), torch.randn(2, 2, H, W)
    expected = flow(z, context)
    other.load_state_dict(flow.state_dict())
    for twin in (other, copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        for got, wanted in zip(twin(z, context), expected, strict=True):
            assert torch.equal(got, wanted)


X = torch.zeros(2, Z, H, W)
ERRORS = [
    (lambda: ConvMADE(0), "channels must be >= 1, got 0"),
    (lambda: ConvMADE(3, ()), r"hidden_channels must be one or more widths >= 1, got \(\)"),
    (lambda: ConvMADE(3, (4, 0)), "hidden_channels must be one or more widths >= 1"),
    (lambda: ConvMADE(3, params_per_channel=0), "params_per_channel must be >= 1, got 0"),
    (lambda: ConvMADE(3, activation="swish"), "activation must be one of.*got 'swish'"),
    (lambda: ConvMADE(3, order="spiral"), "order must be one of.*got 'spiral'"),
    (lambda: ConvMADE(3, kernel_size=2), "kernel_size must be an odd integer, got 2"),
    (lambda: ConvMADE(3, context_channels=-1), "context_channels must be >= 0, got -1"),
    (lambda: ConvInverseAutoregressiveFlow(3, steps=0), "steps must be >= 1, got 0"),
    (lambda: ConvInverseAutoregressiveFlow(3, kind="affine"), "kind must be one of.*got 'affine'"),
    (lambda: ConvInverseAutoregressiveFlow(3)(X[0]), r"z must have shape \(N, 3, H, W\), got \(3, 3, 4\)"),
    (lambda: ConvInverseAutoregressiveFlow(2).inverse(X), r"z must have shape \(N, 2, H, W\)"),
    (lambda: ConvInverseAutoregressiveFlow(3)(X, X), "context must be None"),
    (lambda: ConvInverseAutoregressiveFlow(3, context_channels=2)(X), "context must be given"),
    (lambda: ConvInverseAutoregressiveFlow(3, context_channels=2)(X, X), r"context must have shape \(N, 2, H, W\)"),
    (
        lambda: ConvMADE(3, (6,), context_channels=2)(X, X[:, :2, :, :1]),
        r"context must belong to 2 images, and a map must be 3 x 4, .*; what was made of it is \(2, 6, 3, 1\)",
    ),
]


@pytest.mark.parametrize(("wrong", "message"), ERRORS)
def test_errors_name_the_argument(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
