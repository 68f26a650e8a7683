"""The sweeps of the inverse in CUDA C++ against the reference in float64. Without a GPU their threads are emulated."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fastvae.kernels import _affine, _inverse_sweep, _nvrtc, autoregressive_inverse
from fastvae.kernels._inverse_sweep import Sweep, choose_rows, count_known, count_shared, name_kernel, read_source
from fastvae.kernels._launch import compute_dtype
from fastvae.kernels.autoregressive_inverse import autoregressive_inverse_fwd, autoregressive_inverse_solve
from fastvae.kernels.sorted_units import sorted_structure
from fastvae.reference.affine_flow import KINDS
from fastvae.reference.masked_linear import ACTIVATIONS
from fastvae.structure import LAYOUTS, MadeStructure, spread_degrees
from tests.support.emulated_cuda import compile_kernels
from tests.support.flow_steps import (
    DEVICE,
    check_masked_weights_of_any_value,
    check_rows_that_lie_apart,
    flow_of,
    inverse_results,
)
from tests.support.implementations import GPU
from tests.support.oracle import assert_as_close_as_eager

FWD, SOLVE = "autoregressive_inverse_fwd", "autoregressive_inverse_solve"
# Data type, rows and threads of a block.
FLOAT = (torch.float32, 8, 128)
NARROW = (torch.float32, 4, 16)  # so few threads that they take the units of a layer in several passes
DOUBLE, BFLOAT, HALF = (torch.float64, 2, 32), (torch.bfloat16, 8, 128), (torch.float16, 8, 128)
# On a CPU the network's products of the gradient are not those of bfloat16, see test_masked_linear.py.
KERNELS = [(FWD, key) for key in (FLOAT, NARROW, DOUBLE, BFLOAT, HALF)]
KERNELS += [(SOLVE, key) for key in (FLOAT, NARROW, DOUBLE, *((BFLOAT,) if GPU else ()), HALF)]


def label(key):
    return f"{str(key[0])[6:]}, {key[1]} rows, {key[2]} threads"


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """The kernels by launcher and key."""
    names = [name_kernel(launcher, *key) for launcher, key in KERNELS]
    if GPU:
        device = torch.device("cuda", torch.cuda.current_device())
        made = [_nvrtc.compile_kernel(read_source(), name, device) for name in names]
    else:
        made = compile_kernels(read_source(), names, "Chunk", tmp_path_factory.mktemp("cuda"))
    return dict(zip(KERNELS, made, strict=True))


@pytest.fixture
def choose(kernels, monkeypatch):
    """Makes the launchers run the kernels of a key, and returns these."""

    def choose(key):
        dtype, rows, threads = key

        def find_sweep(launcher, _, structure, params, units):
            shared = count_shared(launcher, rows, dtype, structure, params, count_known(units, params))
            return Sweep(kernels[launcher, key], rows, threads, shared)

        monkeypatch.setattr(autoregressive_inverse, "find_sweep", find_sweep)
        return [kernel for (_, other), kernel in kernels.items() if other == key]

    return choose


@pytest.fixture
def check(choose):
    def check(n, flow, key=FLOAT, shares=False):
        choose(key)
        dtype = key[0]
        flow = flow.to(dtype)
        z, d_x = torch.randn(2, n, flow.structure.features).to(DEVICE, dtype).unbind()
        d_log_det = torch.randn_like(z if shares else z[:, 0], dtype=compute_dtype(dtype))
        exact = inverse_results(flow.to(torch.float64), z.double(), d_x, d_log_det)
        # In float64 eager is the oracle itself: an input with one more rounding gives its errors.
        inexact = torch.nextafter(z, z + torch.randn_like(z)) if dtype == torch.float64 else z
        eager = inverse_results(flow, inexact, d_x, d_log_det)
        x, log_det = autoregressive_inverse_fwd(z, *flow.arguments(), shares)
        assert_as_close_as_eager(x, eager[0], exact[0], "x")
        assert_as_close_as_eager(log_det, eager[1].to(log_det), exact[1], "log_det")
        if (SOLVE, key) in KERNELS:
            lam = autoregressive_inverse_solve(d_x, d_log_det, eager[0], *flow.arguments())
            assert_as_close_as_eager(lam, eager[2], exact[2], "lam")

    return check


@pytest.mark.parametrize("key", [FLOAT, NARROW], ids=label)
@pytest.mark.parametrize(
    ("n", "features", "hidden"),
    [
        (0, 3, (4,)),  # no rows
        (17, 3, (4,)),  # several blocks
        (3, 1, (4, 4)),  # one feature, whose parameters are constants
        (2, 17, (40, 9)),  # layers of different widths, one of them with fewer units than features
        (2, 4, (9, 70)),  # many units of each degree
        (2, 6, (8, 8, 8, 8)),  # deep
    ],
)
def test_shapes(n, features, hidden, key, check):
    check(n, flow_of(n, features, hidden), key)


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind, check):
    check(3, flow_of(kind=kind))


@pytest.mark.parametrize("kind", ["gated", "location_only"])
def test_shares(kind, check):
    check(9, flow_of(9, kind=kind), shares=True)


@pytest.mark.thorough
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_activations(activation, residual, check):
    check(3, flow_of(hidden=(10, 10, 10), activation=activation, residual=residual, scaled=True))


@pytest.mark.thorough
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shuffled", [False, True], ids=["sorted", "shuffled"])
@pytest.mark.parametrize("params", [2, 3])
def test_structures(layout, shuffled, params, check):
    check(3, flow_of(layout=layout, shuffled=shuffled, params=params))
    check(3, flow_of(hidden=(9,), residual=True, layout=layout, shuffled=shuffled, params=params, context=False))


@pytest.mark.thorough
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_optional_parameters(bias, scaled, check):
    check(3, flow_of(bias=bias, scaled=scaled, context=False))


@pytest.mark.parametrize("key", [DOUBLE, BFLOAT, HALF], ids=label)
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_dtypes(key, residual, check):
    check(9, flow_of(9, hidden=(40, 40, 40), residual=residual), key)


@pytest.mark.parametrize("key", [NARROW, FLOAT], ids=label)
@pytest.mark.parametrize(("hidden", "residual"), [((70, 9), False), ((9, 9, 9), True)])
def test_order_of_threads_does_not_matter(key, hidden, residual, choose):
    """Between two barriers no thread reads what another one writes."""
    kernels, flow, z = choose(key), flow_of(9, hidden=hidden, residual=residual), torch.randn(9, 5).to(DEVICE)
    results = []
    for descending in (False, True):
        for kernel in kernels:
            kernel.descending = descending
        x, log_det = autoregressive_inverse_fwd(z, *flow.arguments())
        results.append((x, log_det, autoregressive_inverse_solve(z, log_det, x, *flow.arguments())))
    for kernel in kernels:
        kernel.descending = False
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


def test_rows_may_lie_apart(choose):
    choose(FLOAT)
    check_rows_that_lie_apart()


def test_masked_weights_may_be_anything(choose):
    choose(FLOAT)
    check_masked_weights_of_any_value()


def test_rows_of_others_do_not_matter(choose):
    """A point that is not finite spoils its own row only."""
    choose(FLOAT)
    flow, z = flow_of(5), torch.randn(5, 5).to(DEVICE)
    x, log_det = autoregressive_inverse_fwd(z, *flow.arguments())
    z[2] = float("nan")
    spoilt, spoilt_log_det = autoregressive_inverse_fwd(z, *flow.arguments())
    others = [0, 1, 3, 4]
    assert torch.equal(spoilt[others], x[others])
    assert torch.equal(spoilt_log_det[others], log_det[others])
    assert spoilt[2].isnan().all()


def test_every_multiprocessor_has_a_block():
    assert choose_rows(1024, torch.float32, 132) == 8
    assert choose_rows(300, torch.float32, 132) == 4
    assert choose_rows(1, torch.float32, 132) == 2
    assert choose_rows(1 << 20, torch.float32, 132) == 8
    assert choose_rows(1 << 20, torch.float64, 132) == 4


def test_numbers_of_kinds_cover_the_reference():
    assert _affine.KINDS == KINDS


@pytest.mark.parametrize(
    ("hidden", "n", "rows"),
    [
        ((512, 512), 1024, 8),
        ((6000, 6000), 4096, 4),
        ((60000,), 4096, None),  # two rows do not fit
        ((512, 512), 1 << 28, None),  # offsets do not fit
    ],
)
def test_what_does_not_fit_is_left_to_triton(hidden, n, rows, monkeypatch):
    device = SimpleNamespace(multi_processor_count=132, shared_memory_per_block_optin=232448)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: device)
    monkeypatch.setattr(_inverse_sweep, "_can_run", lambda _: True)
    monkeypatch.setattr(_inverse_sweep, "_compile", lambda *key: key)
    structure = MadeStructure(64, tuple(spread_degrees(width, 64, False) for width in hidden), tuple(range(64)))
    units = sorted_structure(structure, 2, torch.device("cpu"))
    z = torch.empty(n, 64, device="meta")
    found = _inverse_sweep.find_sweep(FWD, (z, None), structure, 2, units)
    assert (found and found.rows) == rows
    assert found is None or found.shared <= device.shared_memory_per_block_optin


def test_tensors_that_are_not_on_a_gpu_are_left_to_triton():
    structure = flow_of().structure
    units = sorted_structure(structure, 2, torch.device("cpu"))
    assert _inverse_sweep.find_sweep(FWD, (torch.zeros(3, 5), None), structure, 2, units) is None
