import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvae import _C
from fastvae.conv_structure import MASK_TYPES
from fastvae.ops.masked_conv2d import masked_conv2d
from fastvae.reference.masked_linear import ACTIVATIONS
from tests.convolutions import Form, by_definition
from tests.networks import check, jacobian
from tests.support import DTYPES, GPU, IMPLEMENTATIONS, device_of

ALL_ACTIVATIONS = (None, *ACTIVATIONS)
# Every form, and why.
FORMS = {
    "A": Form(1, 3, (5, 5), "A"),  # a first layer
    "B": Form(4, 5, (3, 3), "B"),
    "A, colours": Form(3, 6, (3, 3), "A", num_colors=3),
    "B, colours": Form(6, 9, (3, 3), "B", num_colors=3),
    "A, interleaved": Form(6, 9, (3, 3), "A", num_colors=3, color_layout="interleaved"),
    "B, interleaved": Form(6, 3, (3, 3), "B", num_colors=3, color_layout="interleaved"),
    "vertical A": Form(3, 4, (3, 5), "vertical_A"),
    "vertical B": Form(3, 4, (3, 3), "vertical_B", num_colors=3),  # colours do not count
    "A, reversed": Form(3, 4, (3, 3), "A", order="reversed"),
    "B, reversed": Form(3, 3, (3, 3), "B", order="reversed", num_colors=3),
    "vertical A, reversed": Form(2, 3, (5, 3), "vertical_A", order="reversed"),
    "down-shifted": Form(3, 4, (2, 3), "vertical_B", origin=(1, 1)),
    "down-right-shifted": Form(3, 4, (2, 2), "B", origin=(1, 1)),
    "off-centre": Form(3, 4, (3, 4), "B", origin=(0, 3)),
    "degrees": Form(4, 5, (3, 3), "A", degrees=((3, 1, 2, 1), (0, 1, 2, 3, 9)), order="reversed"),
    "degrees, B": Form(4, 5, (3, 3), "B", degrees=((3, 1, 2, 1), (0, 1, 2, 3, -9))),
    "groups": Form(6, 4, (3, 3), "B", groups=2),
    "groups, colours": Form(12, 6, (3, 3), "A", groups=2, num_colors=3, color_layout="interleaved"),
    "depthwise": Form(4, 8, (3, 3), "A", groups=4),
    "dilation": Form(3, 4, (3, 3), "B", dilation=(2, 1), image=(7, 6)),
    "dilation, even": Form(3, 4, (2, 3), "vertical_B", origin=(1, 2), dilation=(2, 2)),
    "no padding": Form(3, 4, (3, 3), "B", padding=0),
    "padding": Form(3, 4, (3, 3), "A", padding=(2, 1), num_colors=1),
    "more padding than kernel": Form(2, 3, (3, 3), "B", padding=4),
    "one pixel": Form(3, 4, (3, 3), "B", image=(1, 1)),
    "as small as its kernel": Form(2, 3, (3, 5), "B", image=(3, 5), padding=0),
    "1x1 B, colours": Form(6, 6, (1, 1), "B", num_colors=3),
    "1x1 A, colours": Form(6, 6, (1, 1), "A", num_colors=3),
    "1x1 A": Form(3, 4, (1, 1), "A"),  # nothing counts
    "horizontal": Form(3, 4, (1, 5), "A"),
    "no bias": Form(3, 4, (3, 3), "B", bias=False),
    "channels last": Form(5, 7, (3, 3), "B", channels_last=True),
    "no images": Form(3, 4, (3, 3), "B", batch=0),
    "wide": Form(33, 35, (3, 3), "B", image=(4, 5)),  # several vectors, of which the last is ragged
}
# The interpreter's matrix product of bfloat16 is wrong.
IMPLEMENTATION_DTYPES = [
    (impl, dtype) for impl in IMPLEMENTATIONS for dtype in DTYPES if GPU or (impl, dtype) != ("triton", torch.bfloat16)
]
# All forms with every implementation, but with Triton's interpreter, which is slow, only those that differ most.
INTERPRETED = ("B, colours", "vertical A", "down-right-shifted", "degrees", "groups, colours", "1x1 A")
FORM_IMPLEMENTATIONS = [
    pytest.param(form, impl, id=f"{name}-{impl}")
    for name, form in FORMS.items()
    for impl in IMPLEMENTATIONS
    if GPU or impl != "triton" or name in INTERPRETED
]
form_and_impl = pytest.mark.parametrize(("form", "impl"), FORM_IMPLEMENTATIONS)
every_impl = pytest.mark.parametrize("impl", IMPLEMENTATIONS)
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
kernels = pytest.mark.parametrize("impl", ["cpp", "triton"])


def with_activation(form, activation):
    return dataclasses.replace(form, activation=activation)


@every_form
def test_definition(form):
    """The reference against sums term by term."""
    tensors = [t.detach().double() for t in form.tensors()]
    bias = tensors[2] if form.bias else None
    y = form.call("reference", tensors)
    if form.batch:
        torch.testing.assert_close(y[0], by_definition(form, tensors[0][0], tensors[1], bias))
    else:
        assert y.shape == (0, form.outputs, *form.image)


@every_impl
@every_form
def test_forward_and_backward(form, impl):
    check(lambda: with_activation(form, "elu").problem(), impl, torch.float32)


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


@form_and_impl
def test_masked_gradients_are_exactly_zero(form, impl):
    made = with_activation(form, "tanh").problem().to(torch.float32, device_of(impl))
    (y,) = made.outputs(impl)
    (d_weight,) = torch.autograd.grad(y.square().sum(), made.inputs[1])
    assert (d_weight.cpu()[~form.mask()] == 0).all()


@every_impl
@pytest.mark.parametrize("name", ["A", "B, colours", "vertical A", "down-right-shifted", "degrees", "groups, colours"])
def test_gradients_that_count_are_not_zero(name, impl):
    made = FORMS[name].problem().to(torch.float32, device_of(impl))
    (y,) = made.outputs(impl)
    (d_weight,) = torch.autograd.grad(y.square().sum(), made.inputs[1])
    assert (d_weight.cpu()[FORMS[name].mask()] != 0).all()


@form_and_impl
def test_masked_weights_reach_nothing(form, impl):
    """What stands in a masked weight is not read: not by outputs, nor by any gradient."""
    device = device_of(impl)
    inputs = [t.detach().to(device) for t in form.tensors()]
    spoilt = list(inputs)
    spoilt[1] = inputs[1].masked_fill(~form.mask().to(device), float("nan"))
    results = []
    for leaves in (inputs, spoilt):
        leaves = [t.clone().requires_grad_() for t in leaves]
        y = with_activation(form, "silu").call(impl, leaves)
        results.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def allowed(form, x_shape, y_shape):
    """Which entries of the Jacobian may differ from zero, by the meaning of the mask: (O, H', W', I, H, W)."""
    top, left = form.zeros()
    entries = torch.zeros(*y_shape, *x_shape, dtype=torch.bool)
    mask = form.mask()
    for o, h, w in ((o, h, w) for o in range(y_shape[0]) for h in range(y_shape[1]) for w in range(y_shape[2])):
        first = o // (form.outputs // form.groups) * (form.inputs // form.groups)
        for i, ky, kx in mask[o].nonzero().tolist():
            dy, dx = ky * form.dilation[0] - top, kx * form.dilation[1] - left
            if 0 <= h + dy < x_shape[1] and 0 <= w + dx < x_shape[2]:
                entries[o, h, w, first + i, h + dy, w + dx] = True
    return entries


@form_and_impl
def test_jacobian(form, impl):
    """Forbidden entries are zero, all others are not."""
    most = 3 if impl == "triton" and not GPU else 5
    image = tuple(max(min(s, most), k) for s, k in zip(form.image, form.kernel, strict=True))
    form = dataclasses.replace(form, image=image, batch=1, inputs=min(form.inputs, 12), outputs=min(form.outputs, 9))
    run = with_activation(form, "elu")
    x, *parameters = (t.detach().to(device_of(impl)) for t in form.tensors())
    y_shape = run.call(impl, [x, *parameters]).shape[1:]
    # Row by row of the Jacobian: as many copies of the image as there are outputs, each asked for one of them.
    copies = x.expand(y_shape.numel(), -1, -1, -1).clone().requires_grad_()
    y = run.call(impl, [copies, *parameters])
    (found,) = torch.autograd.grad(y, copies, torch.eye(y_shape.numel(), device=y.device).view_as(y))
    found, may = found.cpu(), allowed(form, x.shape[1:], y_shape).view(found.shape)
    assert (found[~may] == 0).all()
    assert (found[may] != 0).all()


def reached(layers, image, impl="reference"):
    """For a stack of (form, ...) layers with random positive weights: (O, H, W, I, H, W), which inputs are seen."""
    inputs = layers[0].inputs
    weights = [form.tensors()[1].detach().abs() for form in layers]

    def network(flat):
        h = flat.view(inputs, *image)
        for form, weight in zip(layers, weights, strict=True):
            h = form.call(impl, [h, weight])
        return h.flatten()

    found = jacobian(network, torch.rand(inputs * image[0] * image[1]))
    return (found != 0).view(layers[-1].outputs, *image, inputs, *image)


def raster_sees(image, colors):
    """(C, H, W, C, H, W): whether one subpixel comes strictly before another."""
    height, width = image
    place = torch.arange(height * width).view(height, width)
    place = colors * place + torch.arange(colors).view(-1, 1, 1)
    return place.flatten() < place.flatten().unsqueeze(-1)


@pytest.mark.parametrize("impl", ["reference", "cpp"])
@pytest.mark.parametrize("layout", ["contiguous", "interleaved"])
@pytest.mark.parametrize("colors", [1, 3])
def test_a_stack_is_autoregressive(colors, layout, impl):
    image, options = (4, 5), {"image": (4, 5), "num_colors": colors, "color_layout": layout, "bias": False}
    layers = [Form(colors, 6, (3, 3), "A", **options), *(Form(6, 6, (3, 3), "B", **options) for _ in range(2))]
    layers.append(Form(6, colors, (1, 1), "B", **options))
    seen = reached(layers, image, impl).view(colors * 20, colors * 20)
    assert not (seen & ~raster_sees(image, colors)).any()
    # The pixel before, of every colour, and the colours before at the pixel itself are seen.
    at = reached(layers, image, impl)[:, 2, 2]
    assert at[:, :, 2, 1].all()
    assert torch.equal(at[:, :, 2, 2], torch.ones(colors, colors, dtype=torch.bool).tril(-1))


def test_the_blind_spot_and_the_way_out():
    """A stack of A and B never sees a wedge up and to the right; a vertical stack does."""
    image, options = (5, 7), {"image": (5, 7), "bias": False}
    layers = [Form(1, 2, (3, 3), "A", **options), *(Form(2, 2, (3, 3), "B", **options) for _ in range(5))]
    seen = reached(layers, image)[0, 4, 2, 0]
    assert not seen[3, 4], "beyond the first diagonal"
    assert seen[3, 3]
    assert seen[3, :4].all()
    assert not seen[4, 2:].any()
    vertical = [Form(1, 2, (3, 3), "vertical_A", **options)]
    vertical += [Form(2, 2, (3, 3), "vertical_B", **options) for _ in range(4)]
    seen = reached(vertical, image)[0, 4, 2, 0]
    assert seen[:4].all()
    assert not seen[4].any()


def test_reversed_is_the_mirror_image():
    form = Form(3, 6, (3, 5), "A", num_colors=3)
    x, weight, bias = (t.detach() for t in form.tensors())
    mirrored = dataclasses.replace(form, order="reversed")
    y = form.call("reference", [x, weight, bias])
    again = mirrored.call("reference", [x.flip(2, 3), weight.flip(2, 3), bias]).flip(2, 3)
    torch.testing.assert_close(again, y)


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


@every_impl
def test_nan_in_one_pixel_spoils_only_what_sees_it(impl):
    form = Form(2, 3, (3, 3), "B", image=(5, 5), batch=1)
    x, weight, bias = (t.detach().to(device_of(impl)) for t in form.tensors())
    x[0, :, 2, 2] = float("nan")
    y = form.call(impl, [x, weight, bias])[0].isnan().any(0).cpu()
    expected = torch.zeros(5, 5, dtype=torch.bool)
    expected[2, 2:4] = True
    expected[3, 1:4] = True
    if impl != "reference":  # which multiplies the NaN by the mask's zero
        assert torch.equal(y, expected)
    assert y[expected].all()


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


@kernels
def test_second_derivative_names_the_way_out(impl):
    made = Form(2, 3, activation="tanh").problem().to(torch.float32, device_of(impl))
    (y,) = made.outputs(impl)
    gradients = torch.autograd.grad(y.square().sum(), made.inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="impl='reference'"):
        gradients[1].square().sum().backward()


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
