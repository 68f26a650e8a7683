"""The launchers of a class-conditional layer against the reference in float64: terms that are there, awkward sizes."""

import pytest
import torch

from fastvae.kernels._activations import OF_PRE_ACTIVATION
from fastvae.kernels.class_linear import class_linear_bwd, class_linear_fwd
from fastvae.reference.class_linear import activate_sum
from fastvae.reference.masked_linear import ACTIVATIONS
from tests.support.implementations import DTYPES, GPU
from tests.support.oracle import assert_as_close_as_eager

DEVICE = "cuda" if GPU else "cpu"
# Which of rows, cells and classes are there.
TERMS = {
    "rows and classes": (0, 2),
    "cells": (1,),
    "cells and classes": (1, 2),
    "rows and cells": (0, 1),
    "all": (0, 1, 2),
}
terms = pytest.mark.parametrize("given", TERMS.values(), ids=TERMS)


def results(inputs, given, upstream, activation):
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    placed = dict(zip(given, leaves, strict=True))
    y = activate_sum(*(placed.get(i) for i in range(3)), activation)
    return [y.detach(), *torch.autograd.grad(y, leaves, upstream.to(y))]


def check(size, given, activation="softplus", dtype=torch.float32):
    m, c, h = size
    shapes = (m, h + 3), (m, c, h), (c, h + 2)  # rows that lie apart from each other
    drawn = [torch.randn(shape, device=DEVICE).to(dtype)[..., :h] for shape in shapes]
    inputs, upstream = [drawn[i] for i in given], torch.randn(m, c, h, device=DEVICE).to(dtype)
    exact = results([t.double() for t in inputs], given, upstream.double(), activation)
    if dtype == torch.float64:
        eager = results([torch.nextafter(t, t + torch.randn_like(t)) for t in inputs], given, upstream, activation)
    else:
        eager = results(inputs, given, upstream, activation)
    y, pre = class_linear_fwd(*(drawn[i] if i in given else None for i in range(3)), activation, True)
    assert (pre is not None) == (activation in OF_PRE_ACTIVATION)
    gradients = class_linear_bwd(upstream, y if pre is None else pre, activation, [i in given for i in range(3)])
    assert [g is not None for g in gradients] == [i in given for i in range(3)]
    actual = [y, *(g for g in gradients if g is not None)]
    for i, (a, e, o) in enumerate(zip(actual, eager, exact, strict=True)):
        assert_as_close_as_eager(a, e, o, f"{activation} result {i}")


@terms
@pytest.mark.parametrize("size", [(0, 2, 3), (5, 1, 1), (3, 4, 63), (9, 2, 65), (2, 3, 130)])
def test_shapes(size, given):
    check(size, given)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    check((5, 3, 20), (0, 1, 2), activation)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["softplus", "silu"])
def test_dtypes(activation, dtype):
    check((3, 2, 33), (0, 1, 2), activation, dtype)


def test_argument_is_kept_on_request():
    y = torch.randn(3, 2, 5, device=DEVICE)
    assert class_linear_fwd(None, y, None, "silu", False)[1] is None
    assert torch.equal(class_linear_fwd(None, y, None, "silu", True)[1], y)
