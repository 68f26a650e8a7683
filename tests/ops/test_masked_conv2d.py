import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from fastvae import _C
from fastvae.ops.masked_conv2d import masked_conv2d
from fastvae.reference.masked_linear import ACTIVATIONS
from fastvae.structure import MASK_TYPES
from tests.support.convolutions import FORMS, Form
from tests.support.implementations import DTYPES, GPU, IMPLEMENTATIONS, device_of
from tests.support.oracle import check

ALL_ACTIVATIONS = (None, *ACTIVATIONS)
# The interpreter's matrix product of bfloat16 is wrong.
IMPLEMENTATION_DTYPES = [
    (impl, dtype) for impl in IMPLEMENTATIONS for dtype in DTYPES if GPU or (impl, dtype) != ("triton", torch.bfloat16)
]
every_impl = pytest.mark.parametrize("impl", IMPLEMENTATIONS)
kernels = pytest.mark.parametrize("impl", ["cpp", "triton"])


@every_impl
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_forward_and_backward(form, impl):
    check(lambda: dataclasses.replace(form, activation="elu").problem(), impl, torch.float32)


@every_impl
@pytest.mark.parametrize("activation", ALL_ACTIVATIONS)
def test_activations(activation, impl):
    def draw():
        made = Form(3, 4, num_colors=1, activation=activation).problem()
        with torch.no_grad():
            made.inputs[0].mul_(4.0)  # into the tails
        return made

    check(draw, impl, torch.float32)


@pytest.mark.parametrize(("impl", "dtype"), IMPLEMENTATION_DTYPES)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels last"])
def test_dtypes(channels_last, impl, dtype):
    form = Form(6, 9, num_colors=3, activation="silu", channels_last=channels_last)
    check(form.problem, impl, dtype)


@settings(max_examples=60)
@given(data=st.data(), kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)), colors=st.integers(1, 3))
def test_any_form(data, kernel, colors):
    draw = data.draw
    groups, step = draw(st.integers(1, 2)), draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    per_group = st.integers(1, 20 // colors).map(lambda n: n * colors)
    image = tuple(draw(st.integers(1 + (k - 1) * s, 9)) for k, s in zip(kernel, step, strict=True))
    form = Form(
        groups * draw(per_group),
        groups * draw(per_group),
        kernel,
        draw(st.sampled_from(MASK_TYPES)),
        image,
        draw(st.integers(0, 3)),
        draw(st.sampled_from(["same", 0, 1, (0, 2)])),
        step,
        groups,
        colors,
        draw(st.sampled_from(["contiguous", "interleaved"])),
        origin=(draw(st.integers(0, kernel[0] - 1)), draw(st.integers(0, kernel[1] - 1))),
        order=draw(st.sampled_from(["raster", "reversed"])),
        activation=draw(st.sampled_from(ALL_ACTIVATIONS)),
        bias=draw(st.booleans()),
        channels_last=draw(st.booleans()),
    )
    check(form.problem, "cpp", torch.float32)


@pytest.mark.parametrize("impl", ["reference", "cpp"])
@pytest.mark.parametrize("activation", ALL_ACTIVATIONS)
def test_gradcheck(activation, impl):
    form = Form(3, 3, image=(3, 4), num_colors=3, activation=activation)
    made = form.problem().to(torch.float64, "cpu")
    assert torch.autograd.gradcheck(lambda *p: form.call(impl, p), made.inputs)


@every_impl
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_layout_of_the_output(dtype, channels_last, impl):
    """That of the input; for one channel as well, whose layout its strides tell."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for inputs in (1, 4):
        form = Form(inputs, 5, activation="gelu")
        leaves = [t.detach().to(device_of(impl), dtype) for t in form.tensors()]
        if channels_last:  # `contiguous` leaves a single channel as it is
            leaves[0] = leaves[0].permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).permute(0, 3, 1, 2)
        leaves = [t.requires_grad_() for t in leaves]
        y = form.call(impl, leaves)
        if impl != "reference" or inputs > 1:
            assert y.is_contiguous(memory_format=layout)
        (d_x,) = torch.autograd.grad(y.sum(), leaves[0])
        assert d_x.shape == leaves[0].shape
        if impl != "reference":
            assert d_x.is_contiguous(memory_format=layout)


@every_impl
def test_without_a_batch(impl):
    form = Form(3, 4, activation="relu")
    x, weight, bias = (t.detach().to(device_of(impl)) for t in form.tensors())
    y = form.call(impl, [x, weight, bias])
    torch.testing.assert_close(form.call(impl, [x[1], weight, bias]), y[1])


@kernels
def test_strides(impl):
    """Transposed, sliced, expanded: the values of contiguous inputs."""
    form = Form(6, 6, image=(5, 5), activation="gelu")
    made = form.problem().to(torch.float32, device_of(impl))
    upstream = torch.randn(2, 6, 5, 5, device=device_of(impl))
    (expected,) = made.outputs(impl)
    gradients = torch.autograd.grad(expected, made.inputs, upstream)
    for relayout in (
        lambda t: torch.cat([t, t], 1).chunk(2, 1)[0] if t.dim() == 4 else t,
        lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2) if t.dim() == 4 else t,
        lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t,
        lambda t: torch.stack([t, t], -1)[..., 1],
    ):
        strided = [relayout(t.detach()).requires_grad_() for t in made.inputs]
        (got,) = made.call(impl, strided)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(torch.autograd.grad(got, strided, relayout(upstream)), gradients)


@every_impl
def test_expanded_images_and_expanded_upstream(impl):
    """Strides of zero, as ``expand`` and ``sum().backward()`` make them."""
    form = Form(3, 4, batch=1)
    made = form.problem().to(torch.float32, device_of(impl))
    x, weight, bias = made.inputs
    (images,) = made.call(impl, [x.expand(3, -1, -1, -1), weight, bias])
    (once,) = made.outputs(impl)
    torch.testing.assert_close(images, once.expand_as(images))
    got = torch.autograd.grad(images.sum(), made.inputs)
    expected = torch.autograd.grad(3 * once.sum(), made.inputs)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@every_impl
@pytest.mark.parametrize("wanted", range(3), ids=["x", "weight", "bias"])
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
def test_only_one_gradient_wanted(activation, wanted, impl):
    made = Form(3, 4, activation=activation).problem().to(torch.float32, device_of(impl))
    (y,) = made.outputs(impl)
    expected = torch.autograd.grad(y.square().sum(), made.inputs)[wanted]
    alone = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(made.inputs)]
    (y,) = made.call(impl, alone)
    (got,) = torch.autograd.grad(y.square().sum(), alone[wanted])
    torch.testing.assert_close(got, expected)


@kernels
def test_nothing_but_inputs_is_kept_without_an_activation(impl):
    """As F.conv2d; with one of relu, elu, tanh, softplus the output, which is there anyway."""
    for activation, count in ((None, 0), ("relu", 1), ("gelu", 1)):
        made = Form(3, 4, activation=activation).problem().to(torch.float32, device_of(impl))
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            made.outputs(impl)
        images = [t for t in kept if t.dim() == 4 and t.shape[1] == 4 and t.shape[0] == 2]
        assert len(images) == count


@pytest.mark.parametrize("impl", ["reference", "cpp"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype, impl):
    """A preceding layer hands out half precision, parameters stay float32, and so do their gradients."""
    made = Form(3, 4, activation="elu").problem().to(torch.float32, "cpu")
    x, weight, bias = made.inputs
    (expected,) = made.outputs("reference")
    with torch.autocast("cpu", dtype=dtype):
        (y,) = made.call(impl, [x.to(dtype), weight, bias])
    torch.testing.assert_close(y.float(), expected, rtol=0.03, atol=0.03)
    for gradient, leaf in zip(torch.autograd.grad(y.float().sum(), made.inputs), made.inputs, strict=True):
        assert gradient.dtype == leaf.dtype
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("impl", ["reference", "cpp"])
@pytest.mark.parametrize(
    "form",
    [
        Form(3, 6, num_colors=3),
        Form(3, 6, num_colors=3, activation="gelu", channels_last=True),
        Form(3, 4, (2, 3), "vertical_B", origin=(1, 1), activation="relu"),
    ],
    ids=["colours", "channels last", "even kernel"],
)
def test_compile_fullgraph(form, impl):
    """Forward and backward in one graph each, for two batch sizes under one dynamic compilation."""

    def loss(*p):
        return form.call(impl, p).square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 3):
        made = dataclasses.replace(form, batch=batch).problem()
        expected = torch.autograd.grad(loss(*made.inputs), made.inputs)
        torch.testing.assert_close(torch.autograd.grad(compiled(*made.inputs), made.inputs), expected)


def test_second_derivative_of_the_reference():
    form = Form(2, 2, image=(3, 3), activation="tanh", num_colors=2)
    made = form.problem().to(torch.float64, "cpu")
    assert torch.autograd.gradgradcheck(lambda *p: form.call("reference", p), made.inputs)


def test_functional_transforms():
    """auto falls to the reference, which has every rule; an explicit kernel says that it has none."""
    form = Form(2, 3)
    x, weight, bias = (t.detach() for t in form.tensors())
    mapped = torch.func.vmap(lambda one: form.call("auto", [one, weight, bias]))(x)
    torch.testing.assert_close(mapped, form.call("reference", [x, weight, bias]))
    with pytest.raises(RuntimeError, match="impl='reference'"):
        torch.func.vmap(lambda one: form.call("cpp", [one, weight, bias]))(x)


def test_first_call_in_inference_mode():
    """Colours are made once: also where the first call records nothing, a later one can be differentiated."""
    form = Form(7, 14, num_colors=7)
    made = form.problem()
    with torch.inference_mode():
        form.call("auto", [t.detach() for t in made.inputs])
    (y,) = made.outputs("auto")
    y.sum().backward()
    with FakeTensorMode():
        fake = dataclasses.replace(form, inputs=14, outputs=21).tensors()
        assert form.call("auto", [t.detach() for t in fake]).shape == (2, 21, 5, 6)
    (y,) = dataclasses.replace(form, inputs=14, outputs=21).problem().outputs("auto")
    y.sum().backward()


@pytest.mark.parametrize("isa", _C.available_isas())
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (3, 17), (16, 64), (20, 79)])
def test_every_instruction_set(inputs, outputs, isa):
    before = _C.isa()
    _C.set_isa(isa)
    try:
        for dtype in (torch.float32, torch.float64):
            check(Form(inputs, outputs, activation="softplus").problem, "cpp", dtype)
    finally:
        _C.set_isa(before)


X, WEIGHT, BIAS = torch.zeros(2, 4, 5, 5), torch.zeros(6, 4, 3, 3), torch.zeros(6)


def call(x=X, weight=WEIGHT, bias=BIAS, mask_type="B", **options):
    return masked_conv2d(x, weight, bias, mask_type=mask_type, **options)


ERRORS = [
    (lambda: call(x=[0.0]), TypeError, "x"),
    (lambda: call(x=X.long()), TypeError, "x"),
    (lambda: call(x=X[:, :3]), ValueError, "x"),
    (lambda: call(x=X[0, 0]), ValueError, "x"),
    (lambda: call(x=X[..., :2, :]), ValueError, "x"),
    (lambda: call(x=X[..., :2]), ValueError, "x"),
    (lambda: call(dilation=3), ValueError, "x"),
    (lambda: call(dilation=(1, 4), padding=1), ValueError, "dilation"),
    (lambda: call(weight=[0.0]), TypeError, "weight"),
    (lambda: call(weight=WEIGHT.double()), TypeError, "weight"),
    (lambda: call(weight=WEIGHT[0]), ValueError, "weight"),
    (lambda: call(weight=WEIGHT[:0], bias=None), ValueError, "weight"),
    (lambda: call(weight=WEIGHT.to("meta")), ValueError, "weight"),
    (lambda: call(bias=BIAS[:2]), ValueError, "bias"),
    (lambda: call(bias=BIAS.half()), TypeError, "bias"),
    (lambda: call(bias=BIAS.to("meta")), ValueError, "bias"),
    (lambda: call(mask_type="C"), ValueError, "mask_type"),
    (lambda: call(mask_type=None), ValueError, "mask_type"),
    (lambda: call(weight=WEIGHT[..., :2]), ValueError, "origin"),
    (lambda: call(origin=(3, 0)), ValueError, "origin"),
    (lambda: call(order="down"), ValueError, "order"),
    (lambda: call(padding="valid"), ValueError, "padding"),
    (lambda: call(padding=-1), ValueError, "padding"),
    (lambda: call(padding=(1, 1, 1)), ValueError, "padding"),
    (lambda: call(dilation=0), ValueError, "dilation"),
    (lambda: call(groups=4), ValueError, "groups"),
    (lambda: call(groups=0), ValueError, "groups"),
    (lambda: call(groups=2), ValueError, "x"),
    (lambda: call(num_colors=3), ValueError, "num_colors"),
    (lambda: call(num_colors=4), ValueError, "num_colors"),
    (lambda: call(num_colors=0), ValueError, "num_colors"),
    (lambda: call(color_layout="rgb"), ValueError, "color_layout"),
    (lambda: call(in_degrees=[0, 1, 2, 3]), ValueError, "out_degrees"),
    (lambda: call(out_degrees=[0, 1, 2, 3, 4, 5]), ValueError, "in_degrees"),
    (lambda: call(in_degrees=[0, 1], out_degrees=[0] * 6), ValueError, "in_degrees"),
    (lambda: call(in_degrees=[0.5] * 4, out_degrees=[0] * 6), TypeError, "in_degrees"),
    (lambda: call(in_degrees=[0] * 4, out_degrees=torch.zeros(6, 1).long()), ValueError, "out_degrees"),
    (lambda: call(activation="swish"), ValueError, "activation"),
    (lambda: call(impl="cuda"), ValueError, "impl"),
]


@pytest.mark.parametrize(("wrong", "error", "name"), ERRORS)
def test_errors_name_the_argument(wrong, error, name):
    with pytest.raises(error, match=rf"\b{name}\b"):
        wrong()


def test_meta_tensors():
    y = call(*(t.to("meta") for t in (X, WEIGHT, BIAS)), num_colors=2, padding=1)
    assert (y.device.type, y.shape) == ("meta", (2, 6, 5, 5))
    with pytest.raises(RuntimeError, match="impl='cpp' cannot run on meta tensors"):
        call(*(t.to("meta") for t in (X, WEIGHT, BIAS)), impl="cpp")
