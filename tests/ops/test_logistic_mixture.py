import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastvae import _C
from fastvae.ops.logistic_mixture import logistic_mixture_log_prob
from tests.support.implementations import DTYPES, IMPLEMENTATIONS, device_of
from tests.support.mixtures import images, parameters, problem
from tests.support.oracle import check_against_oracle

every_impl = pytest.mark.parametrize("impl", IMPLEMENTATIONS)
kernels = pytest.mark.parametrize("impl", ["cpp", "triton"])
channel_counts = pytest.mark.parametrize("channels", [1, 3])

# Images, channels, components, height, width, and why.
SHAPES = [
    (0, 3, 2, 4, 4),  # no images
    (3, 1, 2, 0, 5),  # no pixels
    (1, 1, 1, 1, 1),  # one of everything
    (2, 3, 10, 5, 7),  # no multiple of a vector
    (2, 1, 4, 8, 8),  # whole vectors, one block
    (1, 3, 2, 3, 67),  # a block and three pixels
    (1, 1, 3, 20, 21),  # more than a task sums up
]


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


@kernels
def test_what_is_saved(impl):
    """The inputs, and on a CPU the derivatives; nothing of the size of the temporaries."""
    x, params = (t.to(device_of(impl)) for t in (images(2, 3, 4, 4), parameters(2, 3, 2, 4, 4)))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
        logistic_mixture_log_prob(x, params.requires_grad_(), impl=impl)
    inputs = {x.data_ptr(), params.data_ptr()}
    assert inputs <= {t.data_ptr() for t in saved}
    others = [t.shape for t in saved if t.data_ptr() not in inputs]
    assert len(saved) == 2 + len(others)
    assert others == ([params.shape] if impl == "cpp" else [])


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
    for p in (params, params.bfloat16()):
        for keep in (False, True):
            torch.library.opcheck(ops.logistic_mixture_fwd.default, (x, p, 256, keep))
    torch.library.opcheck(ops.logistic_mixture_bwd.default, (torch.randn(2), None, None, params, 256))


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
    (
        lambda: logistic_mixture_log_prob(X.clone().requires_grad_(), PARAMS),
        ValueError,
        "x must not require a gradient",
    ),
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
