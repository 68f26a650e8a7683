import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastvae import _C
from fastvae.ops.logistic_mixture import logistic_mixture_log_prob
from tests.support import DTYPES, GPU, IMPLEMENTATIONS, Problem, check_against_oracle, device_of

every_impl = pytest.mark.parametrize("impl", IMPLEMENTATIONS)
kernels = pytest.mark.parametrize("impl", ["cpp", "triton"])
channel_counts = pytest.mark.parametrize("channels", [1, 3])
PER_COMPONENT = {1: 3, 3: 10}

# Images, channels, components, height, width, and why.
SHAPES = [
    (0, 3, 2, 4, 4),  # no images
    (3, 1, 2, 0, 5),  # no pixels
    (1, 1, 1, 1, 1),  # one of everything
    (2, 3, 10, 5, 7),  # less than a vector's multiple
    (2, 1, 4, 8, 8),  # whole vectors, one block
    (1, 3, 2, 3, 67),  # a block and three pixels
    (1, 1, 3, 20, 21),  # more than a task sums up
]


def images(n, channels, height, width, levels=256):
    """Random levels, the lowest and the highest among them."""
    level = torch.randint(levels, (n, channels, height, width))
    level.view(-1)[::7] = 0
    level.view(-1)[3::7] = levels - 1
    return level * (2.0 / (levels - 1)) - 1.0


def parameters(n, channels, components, height, width):
    """Means among the data, scales from a tenth of a bin to a tenth of the range."""
    params = torch.randn(n, PER_COMPONENT[channels] * components, height, width)
    params[:, (1 + channels) * components : (1 + 2 * channels) * components] -= 3.0
    return params


def problem(n, channels, components, height, width, levels=256):
    x = images(n, channels, height, width, levels)

    def call(impl, p):
        return (logistic_mixture_log_prob(x.to(p[0].device), *p, levels=levels, impl=impl),)

    return Problem(call, [parameters(n, channels, components, height, width).requires_grad_()])


def plain(x, params, levels):
    """The formula as it stands, pixel by pixel, in float64: differences of distribution functions."""
    n, channels, height, width = x.shape
    k = params.shape[1] // PER_COMPONENT[channels]
    log_prob = torch.zeros(n, dtype=torch.float64)
    for image, h, w in itertools.product(range(n), range(height), range(width)):
        pixel, numbers = x[image, :, h, w].double(), params[image, :, h, w].double()
        weights = torch.softmax(numbers[:k], 0)
        means = numbers[k : (1 + channels) * k].reshape(channels, k).clone()
        scales = numbers[(1 + channels) * k : (1 + 2 * channels) * k].reshape(channels, k).clamp(min=-7).exp()
        if channels == 3:
            t = numbers[7 * k :].reshape(3, k).tanh()
            means[1] += t[0] * pixel[0]
            means[2] += t[1] * pixel[0] + t[2] * pixel[1]
        p = weights.clone()
        for c in range(channels):
            half = 1 / (levels - 1)
            upper = torch.sigmoid((pixel[c] - means[c] + half) / scales[c])
            lower = torch.sigmoid((pixel[c] - means[c] - half) / scales[c])
            lowest, highest = pixel[c] < -1 + half / 2, pixel[c] > 1 - half / 2
            p *= (1.0 if highest else upper) - (0.0 if lowest else lower)
        log_prob[image] += p.sum().log()
    return log_prob


@every_impl
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_backward(shape, impl):
    check_against_oracle(problem(*shape), impl, torch.float32)


@every_impl
@channel_counts
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype, channels, impl):
    check_against_oracle(problem(2, channels, 3, 5, 5), impl, dtype)


@every_impl
@channel_counts
@pytest.mark.parametrize("levels", [2, 3, 256, 65536])
def test_levels(levels, channels, impl):
    check_against_oracle(problem(2, channels, 3, 4, 6, levels), impl, torch.float32)


@given(
    n=st.integers(0, 3),
    channels=st.sampled_from([1, 3]),
    components=st.integers(1, 6),
    height=st.integers(1, 9),
    width=st.integers(1, 40),
)
def test_any_shape(n, channels, components, height, width):
    check_against_oracle(problem(n, channels, components, height, width), "cpp", torch.float32)


@every_impl
@channel_counts
@pytest.mark.parametrize("levels", [2, 256])
def test_is_the_difference_of_distribution_functions(levels, channels, impl):
    x, params = images(2, channels, 3, 4, levels), parameters(2, channels, 3, 3, 4).double()
    params[:, 4 * channels :] *= 0.3  # or differences would lose digits
    device = device_of(impl)
    got = logistic_mixture_log_prob(x.to(device), params.to(device), levels=levels, impl=impl).cpu()
    torch.testing.assert_close(got, plain(x, params, levels), rtol=1e-10, atol=1e-10)


def test_parameters_in_the_original_order():
    """PixelCNN++ keeps the numbers of a channel together; the docstring says how they are reordered."""
    k, x = 4, images(2, 3, 3, 4)
    params = parameters(2, 3, k, 3, 4)
    ours = params.movedim(1, -1)
    original = ours[..., k:].unflatten(-1, (3, 3, k)).transpose(-3, -2).flatten(-3)
    means, log_scales, coefficients = original.reshape(2, 3, 4, 3, 3 * k).split(k, -1)
    blocks = [block.movedim(-2, 1).movedim(-1, 2).flatten(1, 2) for block in (means, log_scales, coefficients)]
    torch.testing.assert_close(torch.cat([params[:, :k], *blocks], 1), params)
    back = original.unflatten(-1, (3, 3, k)).transpose(-3, -2).flatten(-3)
    again = torch.cat([ours[..., :k], back], -1).movedim(-1, 1)
    assert torch.equal(logistic_mixture_log_prob(x, again), logistic_mixture_log_prob(x, params))


# Means and log-scales of three components each.
HARD = [
    ([0.0, 0.5, -0.5], [-7.0, -7.0, -7.0]),
    ([1e4, -1e4, 0.1], [-7.0, 7.0, -20.0]),
    ([1.0, -1.0, 3.0], [7.0, 0.0, 30.0]),
    ([-5.0, 5.0, 1e4], [-3.0, -3.0, 7.0]),
]


@every_impl
@pytest.mark.parametrize(("means", "log_scales"), HARD)
def test_probabilities_of_all_levels_sum_up_to_1(means, log_scales, impl):
    # An interpreted kernel takes its time for every image.
    device, levels = device_of(impl), 8 if impl == "triton" and not GPU else 256
    x = (torch.arange(levels, dtype=torch.float64, device=device) * (2 / (levels - 1)) - 1).view(levels, 1, 1, 1)
    params = torch.tensor([0.3, -0.2, 0.5, *means, *log_scales], dtype=torch.float64, device=device)
    log_p = logistic_mixture_log_prob(x, params.view(1, 9, 1, 1).expand(levels, 9, 1, 1), levels=levels, impl=impl)
    assert abs(log_p.exp().sum().item() - 1) < 1e-12


@every_impl
def test_probabilities_of_all_colours_sum_up_to_1(impl):
    device, levels = device_of(impl), 3 if impl == "triton" and not GPU else 6
    grid = torch.arange(levels, dtype=torch.float64, device=device) * (2 / (levels - 1)) - 1
    x = torch.cartesian_prod(grid, grid, grid).view(-1, 3, 1, 1)
    params = torch.randn(1, 30, 1, 1, dtype=torch.float64, device=device).expand(len(x), 30, 1, 1)
    log_p = logistic_mixture_log_prob(x, params, levels=levels, impl=impl)
    assert abs(log_p.exp().sum().item() - 1) < 1e-13


@every_impl
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mean", [0.0, 0.99, 1e4, -1e4])
@pytest.mark.parametrize("log_scale", [-7.0, 7.0, 40.0])
def test_extremes(log_scale, mean, dtype, impl):
    """Narrow and wide, near and far: finite, and the oracle's up to what rounding of a log-probability costs a share."""
    x, params = images(2, 3, 3, 3), parameters(2, 3, 2, 3, 3)
    params[:, 2:8], params[:, 8:14] = mean, log_scale
    results = []
    for name, device, precision in ((impl, device_of(impl), dtype), ("reference", "cpu", torch.float64)):
        leaf = params.to(device, precision).requires_grad_()
        log_prob = logistic_mixture_log_prob(x.to(device), leaf, impl=name)
        results.append([log_prob.detach().cpu(), torch.autograd.grad(log_prob.sum(), leaf)[0].cpu()])
    (log_prob, gradient), (expected, expected_gradient) = results
    assert torch.isfinite(log_prob).all()
    assert torch.isfinite(gradient).all()
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(log_prob.double(), expected, rtol=16 * eps, atol=16 * eps)
    bound = 16 * eps * max(3 * math.exp(-log_scale) * (abs(mean) + 4), 1)
    if bound < 0.1:  # else the components' shares are lost, in any implementation
        error = (gradient.double() - expected_gradient).abs().max()
        assert error <= bound * expected_gradient.abs().max()


@every_impl
def test_log_scales_below_the_clamp(impl):
    device = device_of(impl)
    x, params = images(2, 3, 3, 3).to(device), parameters(2, 3, 2, 3, 3).to(device)
    params[:, 8:14] = -7.0
    expected = logistic_mixture_log_prob(x, params, impl=impl)
    params[:, 8:14] = -9.0
    params.requires_grad_()
    got = logistic_mixture_log_prob(x, params, impl=impl)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(got.sum(), params)
    assert (gradient[:, 8:14] == 0).all()
    assert (gradient[:, :8] != 0).any()


@channel_counts
@pytest.mark.parametrize("impl", ["reference", "cpp"])
def test_gradcheck(impl, channels):
    made = problem(2, channels, 2, 2, 3).to(torch.float64, "cpu")
    assert torch.autograd.gradcheck(lambda p: made.call(impl, [p]), made.inputs)


LAYOUTS = {
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "columns_first": lambda t: t.mT.contiguous().mT,
    "every_other_column": lambda t: t.repeat_interleave(2, 3)[..., ::2],
    "part_of_the_maps": lambda t: torch.cat([t, t], 1)[:, : t.shape[1]],
    "part_of_maps_channels_last": lambda t: torch.cat([t, t], 1).contiguous(memory_format=torch.channels_last)[
        :, : t.shape[1]
    ],
    "inner_rows": lambda t: torch.nn.functional.pad(t, (1, 2, 3, 1))[:, :, 3:-1, 1:-2],
    "images_last": lambda t: t.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
}


@kernels
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("both", [False, True], ids=["params", "both"])
def test_layouts(both, layout, impl):
    """Any strides, read where they are; a channels-last gradient for channels-last parameters."""
    device, relayout = device_of(impl), LAYOUTS[layout]
    x, params = images(3, 3, 6, 13).to(device), parameters(3, 3, 2, 6, 13).to(device).requires_grad_()
    upstream = torch.randn(3, device=device)
    expected = logistic_mixture_log_prob(x, params, impl=impl)
    (gradient,) = torch.autograd.grad(expected, params, upstream)
    moved = relayout(params.detach()).requires_grad_()
    got = logistic_mixture_log_prob(relayout(x) if both else x, moved, impl=impl)
    (again,) = torch.autograd.grad(got, moved, upstream)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(again, gradient, rtol=1e-4, atol=1e-5)
    if layout == "channels_last":
        assert again.is_contiguous(memory_format=torch.channels_last)


@kernels
def test_expanded_parameters(impl):
    device = device_of(impl)
    x, params = images(3, 1, 4, 5).to(device), parameters(1, 1, 2, 1, 1).to(device).requires_grad_()
    got = logistic_mixture_log_prob(x, params.expand(3, 6, 4, 5), impl=impl)
    expected = logistic_mixture_log_prob(x, params.expand(3, 6, 4, 5), impl="reference")
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)
    gradients = [torch.autograd.grad(o.sum(), params)[0] for o in (got, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@every_impl
def test_data_of_another_dtype(impl):
    """Levels in float64 are converted, not the parameters; the result has the parameters' precision."""
    device = device_of(impl)
    x, params = images(2, 3, 4, 4).to(device), parameters(2, 3, 2, 4, 4).to(device)
    expected = logistic_mixture_log_prob(x, params, impl=impl)
    got = logistic_mixture_log_prob(x.double(), params, impl=impl)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-4)
    assert logistic_mixture_log_prob(x, params.bfloat16(), impl=impl).dtype == torch.float32
    assert logistic_mixture_log_prob(x, params.double(), impl=impl).dtype == torch.float64


@every_impl
@pytest.mark.parametrize("block", [0, 1, 2], ids=["weight", "mean", "log_scale"])
def test_nan_shows_in_its_image_only(block, impl):
    device = device_of(impl)
    x, params = images(3, 1, 4, 4).to(device), parameters(3, 1, 2, 4, 4).to(device)
    params[1, 2 * block + 1, 2, 3] = float("nan")
    log_prob = logistic_mixture_log_prob(x, params, impl=impl)
    assert log_prob.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("impl", ["reference", "cpp"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype, impl):
    layer, x = torch.nn.Conv2d(3, 20, 1), images(2, 3, 4, 5)
    with torch.autocast("cpu", dtype=dtype):
        params = layer(x)
        assert params.dtype == dtype
        log_prob = logistic_mixture_log_prob(x, params, impl=impl)
    assert log_prob.dtype == torch.float32
    expected = logistic_mixture_log_prob(x, params.detach().float(), impl="reference")
    torch.testing.assert_close(log_prob.detach(), expected, rtol=1e-5, atol=1e-3)
    log_prob.sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_the_number_of_threads_changes_nothing():
    x, params = images(2, 3, 40, 40), parameters(2, 3, 5, 40, 40).requires_grad_()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            log_prob = logistic_mixture_log_prob(x, params, impl="cpp")
            results.append((log_prob, *torch.autograd.grad(log_prob.sum(), params)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@pytest.mark.parametrize("isa", _C.available_isas())
def test_every_instruction_set(isa):
    before = _C.isa()
    _C.set_isa(isa)
    try:
        for dtype in (torch.float32, torch.float64):
            for shape in SHAPES:
                check_against_oracle(problem(*shape), "cpp", dtype)
    finally:
        _C.set_isa(before)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_opcheck(last):
    x, params = images(2, 3, 4, 5), parameters(2, 3, 2, 4, 5)
    if last:
        x, params = (t.contiguous(memory_format=torch.channels_last) for t in (x, params))
    ops = torch.ops.fastvae
    torch.library.opcheck(ops.logistic_mixture_fwd.default, (x, params, 256))
    torch.library.opcheck(ops.logistic_mixture_bwd.default, (torch.randn(2), x, params, 256))
    torch.library.opcheck(ops.logistic_mixture_bwd.default, (torch.randn(2), x, params.bfloat16(), 256))


@channel_counts
def test_compile_fullgraph(channels):
    def loss(x, params):
        return logistic_mixture_log_prob(x, params, impl="cpp").square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for n, width in ((2, 4), (3, 6)):
        x, params = images(n, channels, 3, width), parameters(n, channels, 2, 3, width).requires_grad_()
        expected = torch.autograd.grad(loss(x, params), params)
        torch.testing.assert_close(torch.autograd.grad(compiled(x, params), params), expected)


@kernels
def test_second_derivative_names_the_way_out(impl):
    made = problem(2, 1, 2, 3, 3).to(torch.float32, device_of(impl))
    (gradient,) = torch.autograd.grad(made.outputs(impl)[0].square().sum(), made.inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="impl='reference'"):
        gradient.square().sum().backward()


def test_second_derivative_of_the_reference():
    made = problem(1, 3, 2, 1, 2).to(torch.float64, "cpu")
    assert torch.autograd.gradgradcheck(lambda p: made.call("reference", [p]), made.inputs)


def test_functional_transforms():
    """auto falls to the reference, which has every rule; an explicit kernel says that it has none."""
    x, params = images(2, 3, 3, 3), parameters(2, 3, 2, 3, 3)
    direction = torch.randn_like(params)
    value, tangent = torch.func.jvp(lambda p: logistic_mixture_log_prob(x, p), (params,), (direction,))
    torch.testing.assert_close(value, logistic_mixture_log_prob(x, params, impl="reference"))
    leaf = params.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(logistic_mixture_log_prob(x, leaf).sum(), leaf)
    torch.testing.assert_close(tangent.sum(), (gradient * direction).sum(), rtol=1e-4, atol=1e-3)
    stacked = torch.stack([params, 2 * params])
    mapped = torch.func.vmap(lambda p: logistic_mixture_log_prob(x, p))(stacked)
    torch.testing.assert_close(mapped[1], logistic_mixture_log_prob(x, 2 * params), rtol=1e-5, atol=1e-3)
    with pytest.raises(RuntimeError, match="impl='reference'"):
        torch.func.vmap(lambda p: logistic_mixture_log_prob(x, p, impl="cpp"))(stacked)


X, PARAMS = torch.zeros(2, 3, 4, 4), torch.zeros(2, 20, 4, 4)
ERRORS = [
    (lambda: logistic_mixture_log_prob([0.0], PARAMS), TypeError, "x must be a tensor, got list"),
    (lambda: logistic_mixture_log_prob(X.long(), PARAMS), TypeError, r"x must be float16.*got torch\.int64"),
    (lambda: logistic_mixture_log_prob(X, None), TypeError, "params must be a tensor, got NoneType"),
    (lambda: logistic_mixture_log_prob(X, PARAMS.long()), TypeError, r"params must be float16.*got torch\.int64"),
    (lambda: logistic_mixture_log_prob(X, PARAMS.to("meta")), ValueError, "params must be on the device of x, cpu"),
    (lambda: logistic_mixture_log_prob(X[0], PARAMS), ValueError, r"x must have shape \(N, C, H, W\).*got \(3, 4, 4\)"),
    (lambda: logistic_mixture_log_prob(X[:, :2], PARAMS), ValueError, "with 1 or 3 channels, got"),
    (lambda: logistic_mixture_log_prob(X, PARAMS[0]), ValueError, r"params must have shape \(2, 10 K, 4, 4\)"),
    (lambda: logistic_mixture_log_prob(X, PARAMS[:, :15]), ValueError, r"10 K.*got \(2, 15, 4, 4\)"),
    (lambda: logistic_mixture_log_prob(X, PARAMS[:, :0]), ValueError, r"got \(2, 0, 4, 4\)"),
    (lambda: logistic_mixture_log_prob(X[:, :1], PARAMS), ValueError, r"\(2, 3 K, 4, 4\), K components for 1 channel "),
    (lambda: logistic_mixture_log_prob(X, PARAMS[:1]), ValueError, r"params must have shape.*got \(1, 20, 4, 4\)"),
    (lambda: logistic_mixture_log_prob(X, PARAMS[..., :3]), ValueError, r"got \(2, 20, 4, 3\)"),
    (lambda: logistic_mixture_log_prob(X, PARAMS, levels=1), ValueError, r"levels must lie in \[2, 65536\], got 1"),
    (lambda: logistic_mixture_log_prob(X, PARAMS, levels=2.0), TypeError, "levels must be an int, got float"),
    (lambda: logistic_mixture_log_prob(X.clone().requires_grad_(), PARAMS), ValueError, "x must not require a gradient"),
    (lambda: logistic_mixture_log_prob(X, PARAMS, impl="cuda"), ValueError, "impl must be one of"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), ERRORS)
def test_errors_name_the_argument(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()


def test_meta_tensors():
    x, params = torch.empty(2**12, 3, 64, 64, device="meta"), torch.empty(2**12, 200, 64, 64, device="meta")
    log_prob = logistic_mixture_log_prob(x, params)
    assert (log_prob.shape, log_prob.device.type) == ((2**12,), "meta")
    with pytest.raises(RuntimeError, match="impl='cpp' cannot run on meta tensors"):
        logistic_mixture_log_prob(x, params, impl="cpp")


def test_scales_wider_than_the_range():
    """Scales so wide that only the outermost bins are left, one half each."""
    x = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1)
    params = torch.tensor([0.0, 0.0, 40.0]).view(1, 3, 1, 1).expand(2, 3, 1, 1)
    for impl in IMPLEMENTATIONS:
        log_prob = logistic_mixture_log_prob(x.to(device_of(impl)), params.to(device_of(impl)), impl=impl)
        torch.testing.assert_close(log_prob.cpu(), torch.full((2,), -math.log(2.0)))
