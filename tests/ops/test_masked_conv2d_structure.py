"""What a masked convolution sees and what it does not, exactly, against what the mask types mean."""

import dataclasses

import pytest
import torch

from tests.support.convolutions import FORMS, Form, by_definition
from tests.support.implementations import GPU, IMPLEMENTATIONS, device_of
from tests.support.oracle import jacobian

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


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_definition(form):
    """The reference against sums term by term."""
    tensors = [t.detach().double() for t in form.tensors()]
    bias = tensors[2] if form.bias else None
    y = form.call("reference", tensors)
    if form.batch:
        torch.testing.assert_close(y[0], by_definition(form, tensors[0][0], tensors[1], bias))
    else:
        assert y.shape == (0, form.outputs, *form.image)


@form_and_impl
def test_masked_gradients_are_exactly_zero(form, impl):
    made = dataclasses.replace(form, activation="tanh").problem().to(torch.float32, device_of(impl))
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
    """Neither outputs nor gradients read the value of a masked weight."""
    device = device_of(impl)
    inputs = [t.detach().to(device) for t in form.tensors()]
    spoilt = list(inputs)
    spoilt[1] = inputs[1].masked_fill(~form.mask().to(device), float("nan"))
    results = []
    for leaves in (inputs, spoilt):
        leaves = [t.clone().requires_grad_() for t in leaves]
        y = dataclasses.replace(form, activation="silu").call(impl, leaves)
        results.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def find_allowed(form, x_shape, y_shape):
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
    run = dataclasses.replace(form, activation="elu")
    x, *parameters = (t.detach().to(device_of(impl)) for t in form.tensors())
    y_shape = run.call(impl, [x, *parameters]).shape[1:]
    # Row by row of the Jacobian: as many copies of the image as there are outputs, each asked for one of them.
    copies = x.expand(y_shape.numel(), -1, -1, -1).clone().requires_grad_()
    y = run.call(impl, [copies, *parameters])
    (found,) = torch.autograd.grad(y, copies, torch.eye(y_shape.numel(), device=y.device).view_as(y))
    found, may = found.cpu(), find_allowed(form, x.shape[1:], y_shape).view(found.shape)
    assert (found[~may] == 0).all()
    assert (found[may] != 0).all()


def find_reached(layers, image, impl="reference"):
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
    seen = find_reached(layers, image, impl).view(colors * 20, colors * 20)
    assert not (seen & ~raster_sees(image, colors)).any()
    # The pixel before, of every colour, and the colours before at the pixel itself are seen.
    at = find_reached(layers, image, impl)[:, 2, 2]
    assert at[:, :, 2, 1].all()
    assert torch.equal(at[:, :, 2, 2], torch.ones(colors, colors, dtype=torch.bool).tril(-1))


def test_the_blind_spot_and_the_way_out():
    """A stack of A and B never sees a wedge up and to the right; a vertical stack does."""
    image, options = (5, 7), {"image": (5, 7), "bias": False}
    layers = [Form(1, 2, (3, 3), "A", **options), *(Form(2, 2, (3, 3), "B", **options) for _ in range(5))]
    seen = find_reached(layers, image)[0, 4, 2, 0]
    assert not seen[3, 4], "beyond the first diagonal"
    assert seen[3, 3]
    assert seen[3, :4].all()
    assert not seen[4, 2:].any()
    vertical = [Form(1, 2, (3, 3), "vertical_A", **options)]
    vertical += [Form(2, 2, (3, 3), "vertical_B", **options) for _ in range(4)]
    seen = find_reached(vertical, image)[0, 4, 2, 0]
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
