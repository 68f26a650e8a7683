"""The masked convolution's launchers against the reference in float64.

Under Triton 3.7's interpreter `tl.dot` on bfloat16 is wrong; bfloat16 is left to GPUs.
"""

import itertools

import pytest
import torch
import triton.language as tl

from fastvae.kernels import masked_conv2d, masked_conv2d_gradients
from fastvae.kernels._launch import forget_rules
from fastvae.kernels._matrix import MatrixTile
from fastvae.kernels.masked_conv2d import Taps, conv_tile, masked_conv2d_fwd, pack
from fastvae.kernels.masked_conv2d_gradients import masked_conv2d_bwd
from fastvae.reference.masked_conv2d import mask_of
from fastvae.reference.masked_conv2d import masked_conv2d as reference
from fastvae.structure import ConvStructure
from tests.support.implementations import DTYPES, GPU
from tests.support.oracle import assert_as_close_as_eager

DEVICE = "cuda" if GPU else "cpu"
OF_PRE_ACTIVATION = ("gelu", "silu")
dtypes = pytest.mark.parametrize("dtype", [d for d in DTYPES if GPU or d != torch.bfloat16])


class Problem:
    """Tensors, and how the launchers are told what to do with them."""

    def __init__(self, inputs, outputs, structure=None, image=(4, 5), batch=2, groups=1, activation="identity"):
        self.structure = structure or ConvStructure((3, 3), "B")
        self.x, self.weight, self.bias = (
            torch.randn(batch, inputs, *image),
            torch.randn(outputs, inputs // groups, *self.structure.kernel_size) / inputs**0.5,
            torch.randn(outputs),
        )
        self.degrees = (None, None)
        if self.structure.has_rule:
            self.degrees = torch.arange(inputs) % 3, torch.arange(outputs) % 3 + self.structure.degree_shift
        self.groups, self.activation = groups, activation
        self.upstream = torch.randn(batch, outputs, *image)

    def to(self, dtype, device=DEVICE):
        for name in ("x", "weight", "bias", "upstream"):
            setattr(self, name, getattr(self, name).to(device, dtype))
        self.degrees = tuple(None if d is None else d.to(device) for d in self.degrees)
        return self

    @property
    def how(self):
        s = self.structure
        return *self.degrees, s.taps, s.origin_tap, s.padding(), (1, 1), self.groups, self.activation

    def mask(self):
        s = self.structure
        return mask_of(self.weight.shape, s.taps, s.origin_tap, *self.degrees, self.groups, DEVICE)

    def launch(self, channels_last=False, needs=(True, True, True)):
        x, weight, bias = self.x, self.weight, self.bias
        y, pre = masked_conv2d_fwd(x, weight, bias, *self.how, True, channels_last)
        assert (pre.numel() > 0) == (self.activation in OF_PRE_ACTIVATION)
        at = pre if self.activation in OF_PRE_ACTIVATION else y
        gradients = masked_conv2d_bwd(self.upstream, at, x, weight, *self.how, needs, channels_last)
        return [y, *gradients]

    def expected(self, dtype):
        leaves = [t.to(dtype).requires_grad_() for t in (self.x, self.weight, self.bias)]
        y = reference(*leaves, *self.how)
        return [y.detach(), *torch.autograd.grad(y, leaves, self.upstream.to(dtype))]

    def check(self, dtype=torch.float32, channels_last=False):
        self.to(dtype)
        exact = self.expected(torch.float64)
        # In float64 eager is the oracle itself: float32's errors, scaled by the precisions' ratio, replace its own.
        eager = self.expected(torch.float32 if dtype == torch.float64 else dtype)
        if dtype == torch.float64:
            ratio = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
            eager = [o + ratio * (e.double() - o) for e, o in zip(eager, exact, strict=True)]
        for index, (a, e, o) in enumerate(zip(self.launch(channels_last), eager, exact, strict=True)):
            assert_as_close_as_eager(a, e, o, f"result {index}")


# Inputs, outputs, and why.
CHANNELS = [
    (1, 5),  # taps and channels together are the inner dimension
    (15, 17),  # the most channels for which they are
    (16, 16),  # the fewest for which they are not: whole tiles
    (33, 31),  # several blocks of channels; the last is ragged
]


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize(("inputs", "outputs"), CHANNELS)
def test_channels(inputs, outputs, channels_last):
    Problem(inputs, outputs, activation="elu").check(channels_last=channels_last)


@dtypes
@pytest.mark.parametrize("activation", ["identity", "gelu", "tanh"])
def test_dtypes(dtype, activation):
    structure = ConvStructure((3, 3), "A", has_rule=True)
    Problem(18, 20, structure, activation=activation).check(dtype)


@pytest.mark.thorough
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("mask_type", "order"), list(itertools.product("AB", ["raster", "reversed"])))
def test_rules(mask_type, order, groups):
    structure = ConvStructure((2, 3), mask_type, (1, 1), order, has_rule=True)
    Problem(36 if groups == 2 else 6, 6, structure, groups=groups).check()


def test_pixels_in_splits():
    """Pixels enough that gradients of weights and bias are summed in parts."""
    Problem(17, 18, image=(10, 11), activation="silu").check()
    Problem(2, 3, image=(10, 11), activation="relu").check()


@pytest.mark.thorough
@pytest.mark.parametrize("tile", [(16, 16, 16, 2, 2), (32, 64, 16, 4, 2), (64, 32, 32, 4, 3)])
def test_tiles_do_not_matter(monkeypatch, tile):
    for module in (masked_conv2d, masked_conv2d_gradients):
        monkeypatch.setattr(module, "conv_tile", lambda *_: MatrixTile(*tile))
    Problem(40, 35, activation="elu").check()
    Problem(3, 35, ConvStructure((5, 5), "A", has_rule=True)).check()


def test_tiles():
    """No wider nor deeper than need be; the widest for many pixels of many channels in half precision."""
    assert conv_tile(1 << 17, 128, 128, torch.bfloat16)[:3] == (128, 128, 64)
    assert conv_tile(256, 128, 128, torch.bfloat16)[0] < 128
    assert conv_tile(1 << 17, 32, 24, torch.bfloat16)[1:3] == (32, 32)
    assert conv_tile(1 << 17, 1, 1, torch.float32)[1:3] == (16, 16)


def kept_weights(made, taps):
    """(outputs, taps, inputs): the weights that count, as they should be laid out."""
    return (made.weight * made.mask()).flatten(2)[..., list(made.structure.taps)].transpose(1, 2)


def test_packed_weights():
    """Of each tap that counts, by output, tap and input, with zeros where the rule cuts them off."""
    made = Problem(6, 4, ConvStructure((3, 3), "A", has_rule=True), groups=2).to(torch.float32)
    taps = Taps.of(made.structure.taps, made.weight, made.structure.origin_tap)
    packed = pack(made.weight, made.degrees, taps, 2)
    assert torch.equal(packed.weights, kept_weights(made, taps))
    assert packed[1:] == (2 * taps.count * 3, 3, 1, taps.count * 3)
    assert packed.transpose()[1:] == (*packed[1:3], packed.outputs, packed.inputs)


@pytest.mark.parametrize("inputs", [2, 17])
def test_the_type_of_indices_does_not_matter(monkeypatch, inputs):
    made = Problem(inputs, 3, ConvStructure((1, 3), "B", has_rule=True), image=(2, 5), batch=1)
    expected = made.to(torch.float32).launch()
    for module in (masked_conv2d, masked_conv2d_gradients):
        monkeypatch.setattr(module, "index_type", lambda _: tl.int64)
    forget_rules()
    torch.testing.assert_close(made.launch(), expected, rtol=0, atol=0)


def test_a_channels_last_weight_is_read_where_it_is(monkeypatch):
    made = Problem(18, 20, ConvStructure((3, 3), "B", order="reversed"), activation="relu").to(torch.float32)
    expected = made.launch()
    made.weight = made.weight.contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(masked_conv2d, "_masked_conv2d_pack_kernel", None)
    got = made.launch()
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert got[2].is_contiguous()


def test_masked_weights_may_be_anything():
    made = Problem(18, 20, ConvStructure((3, 3), "B", has_rule=True), activation="elu").to(torch.float32)
    expected = made.launch()
    made.weight = made.weight.masked_fill(~made.mask(), float("nan"))
    for got, wanted in zip(made.launch(), expected, strict=True):
        assert torch.equal(got, wanted)
    assert (expected[2][~made.mask()] == 0).all()


@pytest.mark.parametrize("mask_type", ["A", "vertical_A"])
def test_without_taps(mask_type):
    """A kernel whose weights are all masked leaves the bias, and gradients of zero."""
    made = Problem(3, 4, ConvStructure((1, 1), mask_type)).to(torch.float32)
    y, d_x, d_weight, d_bias = made.launch()
    assert torch.equal(y, made.bias.view(4, 1, 1).expand_as(y))
    assert (d_x == 0).all()
    assert (d_weight == 0).all()
    torch.testing.assert_close(d_bias, made.upstream.sum((0, 2, 3)))


@pytest.mark.parametrize("wanted", range(3))
def test_only_what_is_needed(wanted):
    made = Problem(3, 4, activation="tanh").to(torch.float32)
    gradients = made.launch(needs=[i == wanted for i in range(3)])[1:]
    assert [g is not None for g in gradients] == [i == wanted for i in range(3)]
    assert torch.equal(gradients[wanted], made.launch()[1 + wanted])


def test_taps_must_be_a_range():
    made = Problem(3, 4).to(torch.float32)
    with pytest.raises(ValueError, match="taps must be one ascending range"):
        masked_conv2d_fwd(
            made.x, made.weight, None, None, None, [0, 2], -1, (1, 1, 1, 1), (1, 1), 1, "identity", False, False
        )
