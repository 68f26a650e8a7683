"""The masked layer's launchers against the reference in float64.

Under Triton 3.7's interpreter `tl.dot` on bfloat16 is wrong (it multiplies the bits), on float16, float32 and float64
it is right; bfloat16 is left to GPUs.
"""

import pytest
import torch
from torch import Tensor

from fastvae.kernels import masked_linear, masked_linear_gradients
from fastvae.kernels._launch import record_launches
from fastvae.kernels._matrix import (
    MatrixTile,
    matrix_tile,
    product_options,
    split_products,
    staircase_programs,
)
from fastvae.kernels.masked_linear import (
    masked_layer,
    masked_linear_bwd,
    masked_linear_fwd,
    masked_norm_bwd,
    masked_norm_fwd,
)
from fastvae.reference.masked_linear import ACTIVATIONS, mask_of, masked_norm
from fastvae.reference.masked_linear import masked_linear as reference
from tests.support.implementations import DTYPES, GPU
from tests.support.oracle import assert_as_close_as_eager

DEVICE = "cuda" if GPU else "cpu"
OF_PRE_ACTIVATION = ("gelu", "silu")

dtypes = pytest.mark.parametrize("dtype", [d for d in DTYPES if GPU or d != torch.bfloat16])
activations = pytest.mark.parametrize("activation", ACTIVATIONS)

# Rows, inputs, outputs, and why.
SHAPES = [
    (0, 3, 4),  # no rows
    (5, 1, 1),  # one of each
    (3, 63, 65),  # one short of a tile, one more
    (70, 64, 40),  # rows in several tiles
    (2, 130, 33),  # inputs in several tiles
]


def degrees_of(inputs: int, outputs: int, order: str) -> tuple[Tensor, Tensor]:
    """Degrees 1, ..., 8 of inputs, 0, ..., 8 of outputs."""
    in_degrees, out_degrees = 1 + torch.arange(inputs) * 8 // inputs, torch.arange(outputs) * 9 // outputs
    if order == "descending":
        in_degrees, out_degrees = in_degrees.flip(0), out_degrees.flip(0)
    elif order == "unsorted":
        in_degrees, out_degrees = in_degrees[torch.randperm(inputs)], out_degrees[torch.randperm(outputs)]
    return in_degrees.to(DEVICE), out_degrees.to(DEVICE)


def problem(
    n: int, inputs: int, outputs: int, dtype: torch.dtype, bias: bool, scaled: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    x, weight = torch.randn(n, inputs + 2)[:, 1 : inputs + 1], torch.randn(outputs, inputs) / inputs**0.5
    vectors = (torch.randn(outputs) if bias else None, torch.rand(outputs) + 0.5 if scaled else None)
    x, weight, *vectors = (None if t is None else t.to(DEVICE, dtype) for t in (x, weight, *vectors))
    return x, weight, *vectors


def results(tensors, upstream: Tensor, degrees: tuple[Tensor, Tensor], activation: str) -> list[Tensor]:
    """The output and the gradients of the reference, in the dtype of its inputs."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
    x, weight, bias, scale = leaves
    y = reference(x, weight, bias, *degrees, activation, scale)
    return [y.detach(), *torch.autograd.grad(y, [t for t in leaves if t is not None], upstream.to(y))]


def launch(tensors, upstream: Tensor, degrees: tuple[Tensor, Tensor], activation: str) -> list[Tensor]:
    x, weight, bias, scale = tensors
    y, saved = masked_linear_fwd(x, weight, bias, scale, *degrees, activation, True)
    assert (saved.numel() > 0) == (activation in OF_PRE_ACTIVATION and y.numel() > 0)
    kept = saved if activation in OF_PRE_ACTIVATION else y
    gradients = masked_linear_bwd(upstream, kept, x, weight, scale, *degrees, activation, bias is not None)
    assert (gradients[1][~mask_of(*degrees)] == 0).all()
    return [y, *(g for g in gradients if g is not None)]


def nudge(t: Tensor | None) -> Tensor | None:
    return None if t is None else torch.nextafter(t, t + torch.randn_like(t))


def check(n, inputs, outputs, activation, order="ascending", dtype=torch.float32, bias=True, scaled=True):
    tensors = problem(n, inputs, outputs, dtype, bias, scaled)
    degrees = degrees_of(inputs, outputs, order)
    upstream = torch.randn(n, outputs).to(DEVICE, dtype)
    exact = results([None if t is None else t.double() for t in tensors], upstream, degrees, activation)
    # In float64 eager is the oracle itself: inputs with one more rounding give its errors.
    inexact = [nudge(t) for t in tensors] if dtype == torch.float64 else tensors
    eager = results(inexact, upstream, degrees, activation)
    for index, (a, e, o) in enumerate(zip(launch(tensors, upstream, degrees, activation), eager, exact, strict=True)):
        assert_as_close_as_eager(a, e, o, f"{activation} result {index}")


@activations
@pytest.mark.parametrize(("n", "inputs", "outputs"), SHAPES)
def test_shapes(n, inputs, outputs, activation):
    check(n, inputs, outputs, activation)


@dtypes
@activations
def test_dtypes(dtype, activation):
    check(5, 40, 24, activation, dtype=dtype)


@pytest.mark.thorough
@pytest.mark.parametrize("order", ["ascending", "descending", "unsorted"])
@pytest.mark.parametrize(("bias", "scaled"), [(False, False), (True, False), (False, True)])
def test_orders(order, bias, scaled):
    check(4, 70, 50, "elu", order, bias=bias, scaled=scaled)
    check(4, 70, 50, "identity", order, bias=bias, scaled=scaled)


def test_rows_in_splits():
    """Rows enough that gradients of weights are summed in parts."""
    check(300, 20, 18, "tanh", "unsorted", scaled=False)
    check(300, 20, 18, "gelu", "unsorted")


def use_tile(monkeypatch: pytest.MonkeyPatch, *shape: int) -> None:
    for module in (masked_linear, masked_linear_gradients):
        for rule in ("matrix_tile", "choose_tile"):
            monkeypatch.setattr(module, rule, lambda *_: MatrixTile(*shape), raising=False)


@pytest.mark.thorough
@pytest.mark.parametrize("shape", [(16, 16, 16, 2, 2), (32, 64, 16, 4, 2), (64, 32, 32, 4, 3)])
def test_tiles_do_not_matter(monkeypatch, shape):
    use_tile(monkeypatch, *shape)
    check(70, 290, 90, "elu", "ascending")
    check(9, 290, 90, "silu", "unsorted", scaled=False)


def test_tiles():
    """Nine tenths of a device are enough for the widest; sums are split among programs that all run at once."""
    assert matrix_tile(16384, 128, torch.bfloat16)[:2] == (128, 128)
    assert matrix_tile(8192, 128, torch.bfloat16)[:2] == (128, 64)
    assert staircase_programs(15, 15) == 120
    assert staircase_programs(1, 15) == 15
    assert split_products(16384, 120, 128) == (2, 8192)
    assert split_products(131072, 25, 256)[0] * 25 <= 264
    assert split_products(16384, 300, 128) == (1, 16384)


def test_two_programs_share_a_multiprocessor_where_registers_suffice():
    tile = matrix_tile(16384, 1920, torch.bfloat16)

    def registers(capability=90, dtype=torch.bfloat16, sizes=(1920, 1920), **more):
        with record_launches(32, capability):
            return product_options(tile, dtype, sizes, 0, **more)["maxnreg"]

    assert registers() == registers(activation="elu") == 128
    others = ({"capability": 80}, {"dtype": torch.float32}, {"sizes": (1920, 65)}, {"activation": "tanh"})
    assert [registers(**other) for other in (*others, {"adds": True})] == [255] * 5


def test_empty_tiles_are_not_read(monkeypatch):
    """NaN in x meets only weights that a tile of its own masks: were the tile visited, 0 * NaN would show."""
    use_tile(monkeypatch, 16, 16, 16, 2, 2)
    degrees = (torch.arange(48) // 16 + 1).to(DEVICE), (torch.arange(48) // 16).to(DEVICE)
    x, weight = torch.randn(4, 48).to(DEVICE), torch.randn(48, 48).to(DEVICE)
    x[:, 32:] = float("nan")
    y, _ = masked_linear_fwd(x, weight, None, None, *degrees, "identity", True)
    assert y.isfinite().all()
    assert (y[:, :16] == 0).all()
    d_x, d_weight, _, _ = masked_linear_bwd(y, y, x, weight, None, *degrees, "identity", False)
    assert (d_x[:, 32:] == 0).all()
    assert d_weight.isfinite().all()


@pytest.mark.parametrize("scaled", [False, True])
def test_masked_weights_may_be_anything(scaled):
    x, weight, bias, scale = problem(4, 40, 30, torch.float32, True, scaled)
    degrees = degrees_of(40, 30, "unsorted")
    poisoned = weight.masked_fill(~mask_of(*degrees), float("nan"))
    for a, b in zip(
        launch((x, weight, bias, scale), x[:, :30], degrees, "relu"),
        launch((x, poisoned, bias, scale), x[:, :30], degrees, "relu"),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("activation", ["elu", "gelu", "identity"])
def test_nothing_is_kept_unless_asked(activation):
    x, weight, bias, scale = problem(4, 8, 6, torch.float32, True, True)
    y, saved = masked_linear_fwd(x, weight, bias, scale, *degrees_of(8, 6, "ascending"), activation, False)
    assert y.isfinite().all()
    assert saved.numel() == 0


@activations
def test_nan_shows(activation):
    x, weight = torch.full((1, 4), float("nan")).to(DEVICE), torch.ones(3, 4).to(DEVICE)
    y, _ = masked_linear_fwd(x, weight, None, None, *degrees_of(4, 3, "ascending"), activation, False)
    assert y[0, 1:].isnan().all()


def test_addend_comes_before_the_activation():
    x, weight, bias, scale = problem(5, 20, 18, torch.float32, True, True)
    degrees, addend = degrees_of(20, 18, "unsorted"), torch.randn(5, 18).to(DEVICE)
    y, pre = masked_layer(x, weight, bias, scale, addend, *degrees, "elu", True)
    expected = reference(x, weight, bias, *degrees, weight_scale=scale) + addend
    torch.testing.assert_close(pre, expected)
    torch.testing.assert_close(y, ACTIVATIONS["elu"](expected))


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (63, 9), (130, 5)])
def test_norms(inputs, outputs):
    weight = torch.randn(outputs, inputs).to(DEVICE)
    degrees = degrees_of(inputs, outputs, "unsorted")
    exact = weight.double().requires_grad_()
    expected = masked_norm(exact, *degrees)
    norm, d_norm = masked_norm_fwd(weight, *degrees), torch.randn(outputs).to(DEVICE)
    (d_expected,) = torch.autograd.grad(expected, exact, d_norm.double())
    d_weight = masked_norm_bwd(d_norm, norm, weight, *degrees)
    torch.testing.assert_close(norm, expected.detach().float())
    torch.testing.assert_close(d_weight, d_expected.float())
    assert (d_weight[~mask_of(*degrees)] == 0).all()
