"""Windows that read and write patches: filters, both directions, exact cases, gradients and errors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastvae.functional as F
from fastvae import backend
from tests.support.implementations import DTYPES, GPU, IMPLEMENTATIONS, device_of
from tests.support.oracle import check
from tests.support.windows import random_windows, window_problem, written_problem

# Batch, points, height and width, images, and why.
FORMS = [
    ((0,), 2, (4, 5), 1),  # no images
    ((1,), 1, (1, 1), 2),  # one point, one pixel
    ((2,), 2, (28, 28), 2),  # the reader of DRAW
    ((1,), 3, (5, 65), 1),  # one more than whole vectors
    ((2,), 2, (63, 2), 1),  # upright
    ((2, 1), 4, (3, 2), 2),  # more points than pixels, two batch dimensions
    ((), 2, (8, 33), 1),  # no batch dimension
]
forms = pytest.mark.parametrize(("batch", "points", "size", "images"), FORMS)
implementations = pytest.mark.parametrize("impl", IMPLEMENTATIONS)


@implementations
@forms
def test_read(batch, points, size, images, impl):
    check(lambda: window_problem(batch, points, size, images=images), impl, torch.float32)


@implementations
@forms
def test_write(batch, points, size, images, impl):
    check(lambda: written_problem(batch, points, size), impl, torch.float32)


@implementations
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype, impl):
    check(lambda: window_problem((2,), 2, (9, 12), images=2), impl, dtype)
    check(lambda: written_problem((2,), 2, (9, 12)), impl, dtype)


@given(
    batch=st.lists(st.integers(0, 3), max_size=2).map(tuple),
    points=st.integers(1, 9),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    images=st.integers(1, 2),
)
def test_any_shape(batch, points, size, images):
    check(lambda: window_problem(batch, points, size, images=images), "cpp", torch.float32)
    check(lambda: written_problem(batch, points, size), "cpp", torch.float32)


@pytest.mark.parametrize("isa", backend._C.available_isas())
def test_every_instruction_set(isa):
    before = backend._C.isa()
    backend._C.set_isa(isa)
    try:
        check(lambda: window_problem((3,), 5, (9, 21), images=2), "cpp", torch.float32)
        check(lambda: written_problem((3,), 3, (9, 21)), "cpp", torch.float64)
    finally:
        backend._C.set_isa(before)


@pytest.mark.parametrize("impl", ["reference", "cpp"])
@pytest.mark.parametrize(
    "made", [lambda: window_problem((2,), 3, (4, 5), images=2), lambda: written_problem((2,), 3, (4, 5))]
)
def test_gradcheck(made, impl):
    problem = made().to(torch.float64, "cpu")
    assert torch.autograd.gradcheck(lambda *p: problem.call(impl, list(p)), problem.inputs)
    assert torch.autograd.gradgradcheck(lambda *p: problem.call(impl, list(p)), problem.inputs)


def test_rows_of_filters_sum_to_1():
    """Also of windows far outside, and of filters much narrower than a pixel."""
    window = random_windows(50).double()
    window[:10, :2] *= 1e4
    window[10:20, 2] = -50.0
    for filters in F.attention_filters(window, 5, (7, 11)):
        torch.testing.assert_close(filters.sum(-1), torch.ones(50, 5, dtype=torch.float64), rtol=1e-14, atol=0)
    assert F.attention_filters(window, 5, (7, 11))[1].dtype == torch.float64


def test_filters_are_those_of_the_paper():
    """Grid of equations 19 to 26, pixels and points counted from 1."""
    window = random_windows(4).double()
    g_x, _, log_variance, log_stride, _ = window.unbind(-1)
    delta = (9 - 1) / (3 - 1) * log_stride.exp()
    mu = torch.stack([(9 + 1) / 2 * (g_x + 1) + (i - 3 / 2 - 0.5) * delta for i in (1, 2, 3)], -1)
    a = torch.arange(1, 10, dtype=torch.float64)
    weights = (-((a - mu[..., None]) ** 2) / (2 * log_variance.exp()[:, None, None])).exp()
    expected = weights / weights.sum(-1, keepdim=True)
    torch.testing.assert_close(F.attention_filters(window, 3, (6, 9))[1], expected, rtol=1e-10, atol=1e-12)


@implementations
def test_sharp_window_on_the_whole_image_is_the_identity(impl):
    """N = 28, delta = 1, sigma to 0: what is read is the image, and what is written is the patch."""
    # Triton's interpreter takes its time.
    n = 28 if impl != "triton" or GPU else 6
    x = torch.randn(2, n, n, device=device_of(impl))
    window = torch.tensor([0.0, 0.0, -60.0, 0.0, 0.0], device=x.device).expand(2, 5)
    assert torch.equal(F.attention_read(x, window, n, impl=impl), x)
    assert torch.equal(F.attention_write(x, window, (n, n), impl=impl), x)
    louder = window + torch.tensor([0.0, 0.0, 0.0, 0.0, 0.7], device=x.device)
    there = F.attention_read(x, louder, n, impl=impl)
    torch.testing.assert_close(there, x * torch.tensor(0.7).exp().item())
    torch.testing.assert_close(F.attention_write(there, louder, (n, n), impl=impl), x)


@implementations
def test_writing_is_the_transpose_of_reading(impl):
    """<read(x), p> = gain^2 <x, write(p)>."""
    x, p, window = torch.randn(4, 6, 9), torch.randn(4, 3, 3), random_windows(4)
    x, p, window = (t.to(device_of(impl)) for t in (x, p, window))
    read, written = F.attention_read(x, window, 3, impl=impl), F.attention_write(p, window, (6, 9), impl=impl)
    gains = window[:, 4].mul(2).exp()
    torch.testing.assert_close((read * p).sum((1, 2)), gains * (x * written).sum((1, 2)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("impl", ["cpp", "reference"])
def test_extreme_windows_are_finite(impl):
    window = torch.tensor([[50.0, -50.0, -200.0, 3.0, 0.0], [-3e6, 3e6, -1.0, -30.0, 1.0], [0.0, 0.0, 60.0, 0.0, -2.0]])
    x, p = torch.randn(3, 5, 8, requires_grad=True), torch.randn(3, 2, 2, requires_grad=True)
    window.requires_grad_()
    for out in (F.attention_read(x, window, 2, impl=impl), F.attention_write(p, window, (5, 8), impl=impl)):
        found = torch.autograd.grad(out.sum(), [window], retain_graph=True)[0]
        assert out.isfinite().all()
        assert found.isfinite().all()
    # The nearest pixel of a corner.
    torch.testing.assert_close(F.attention_read(x, window, 2, impl=impl)[0], x[0, :1, -1:].expand(2, 2))


def test_windows_broadcast():
    x, window = torch.randn(4, 3, 6, 5), random_windows(4, 1)
    found = F.attention_read(x, window, 2)
    for channel in range(3):
        torch.testing.assert_close(found[:, channel], F.attention_read(x[:, channel], window[:, 0], 2))
    patch = torch.randn(2, 2)
    written = F.attention_write(patch, window, (6, 5))
    assert written.shape == (4, 1, 6, 5)
    torch.testing.assert_close(written[3, 0], F.attention_write(patch, window[3, 0], (6, 5)))


@pytest.mark.parametrize("impl", ["cpp", "triton"])
def test_strides(impl):
    x, window = torch.randn(3, 6, 5, device=device_of(impl)), random_windows(3).to(device_of(impl))
    expected = F.attention_read(x, window, 2, impl=impl)
    turned, wide = x.mT.contiguous().mT, torch.cat([window, window], 1)[:, :5]
    assert torch.equal(F.attention_read(turned, wide, 2, impl=impl), expected)
    patch = x[:, :3, :3]
    expected = F.attention_write(patch.contiguous(), window, (6, 5), impl=impl)
    assert torch.equal(F.attention_write(patch, wide, (6, 5), impl=impl), expected)


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_gradients_that_nobody_needs(needed):
    made = window_problem((3,), 2, (5, 6), images=2)
    found = []
    for impl in ("cpp", "reference"):
        inputs = [t.detach().requires_grad_(i in needed) for i, t in enumerate(made.inputs)]
        made.call(impl, inputs)[0].square().sum().backward()
        found.append([t.grad for t in inputs])
    for i, (ours, theirs) in enumerate(zip(*found, strict=True)):
        assert (ours is not None) == (i in needed)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_compiled_fullgraph():
    x, p, window = torch.randn(3, 6, 5), torch.randn(3, 2, 2), random_windows(3)
    inputs = [t.requires_grad_() for t in (x, p, window)]

    def loss(x, p, window):
        canvas = F.attention_write(p, window, (6, 5))
        return F.attention_read((x, x - canvas.sigmoid()), window, 3).square().sum()

    expected = torch.autograd.grad(loss(*inputs), inputs)
    found = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*inputs), inputs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_autocast_computes_in_full_precision():
    """A layer's window is bfloat16 there, and an image float32: the wider one is that of the result."""
    x, window = torch.randn(3, 6, 5), random_windows(3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = [F.attention_read(x, window, 2, impl=impl) for impl in ("cpp", "reference")]
        written = [F.attention_write(x[:, :2, :2], window, (6, 5), impl=impl) for impl in ("cpp", "reference")]
    expected = F.attention_read(x, window.float(), 2), F.attention_write(x[:, :2, :2], window.float(), (6, 5))
    for pair, result in zip((found, written), expected, strict=True):
        for t in pair:
            assert t.dtype == torch.float32
            torch.testing.assert_close(t, result)


def test_meta():
    x, window = torch.empty(3, 6, 5, device="meta"), torch.empty(3, 5, device="meta")
    assert F.attention_read((x, x), window, 4).shape == (3, 2, 4, 4)
    assert F.attention_write(x[:, :4, :4], window, (7, 8)).shape == (3, 7, 8)


ONE, WINDOW = torch.zeros(2, 4, 3), torch.zeros(2, 5)
ERRORS = [
    (lambda: F.attention_read(ONE, WINDOW[:, :4], 2), ValueError, r"window must have shape \(\*, 5\), got \(2, 4\)"),
    (lambda: F.attention_read(ONE[0, 0], WINDOW, 2), ValueError, r"images must have shape \(\*, H, W\).*got \(3,\)"),
    (lambda: F.attention_read((ONE, ONE[:, :2]), WINDOW, 2), ValueError, r"images\[1\] must have the height and width"),
    (lambda: F.attention_read((ONE, ONE, ONE), WINDOW, 2), ValueError, "images must be one tensor or two, got 3"),
    (lambda: F.attention_read((), WINDOW, 2), ValueError, "images must be one tensor or two, got 0"),
    (lambda: F.attention_read(ONE, WINDOW, 0), ValueError, "points must be >= 1, got 0"),
    (lambda: F.attention_read(ONE, WINDOW, 2.0), TypeError, "points must be an integer, got 2.0"),
    (lambda: F.attention_read(ONE, WINDOW.double(), 2), TypeError, "window must have the dtype of images"),
    (lambda: F.attention_read((ONE, 3), WINDOW, 2), TypeError, r"images\[1\] must be a tensor, got int"),
    (lambda: F.attention_read(None, WINDOW, 2), TypeError, "images must be a tensor, got NoneType"),
    (lambda: F.attention_read(ONE, torch.zeros(3, 5), 2), ValueError, "must broadcast"),
    (lambda: F.attention_read(ONE, WINDOW, 1 << 40), ValueError, "points must leave a result that memory can hold"),
    (
        lambda: F.attention_write(ONE, WINDOW, (4, 4)),
        ValueError,
        r"patch must have as many rows as columns, got \(2, 4",
    ),
    (
        lambda: F.attention_write(ONE[:, :3], WINDOW, (4,)),
        ValueError,
        r"image_size must be \(height, width\), got \(4,",
    ),
    (lambda: F.attention_write(ONE[:, :3], WINDOW, (4, 0)), ValueError, "width must be >= 1, got 0"),
    (lambda: F.attention_write(ONE[:, :3], WINDOW, 4), ValueError, r"image_size must be \(height, width\), got 4"),
    (lambda: F.attention_filters(WINDOW.long(), 2, (4, 4)), TypeError, "window must be float16"),
    (lambda: F.attention_filters(WINDOW, 2, (4, 4, 4)), ValueError, "image_size must be"),
]


@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_errors_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()
