"""A short run of the fuzzer, and that it covers everything and reports what it finds."""

from itertools import islice

import pytest
import torch

import fastvae.functional as F
from fastvae import distributions, nn
from tests.fuzz import cases, files, operators, surface, surface_modules, workers
from tests.fuzz.draw import Draw, Problem
from tests.fuzz.failure import FuzzError
from tests.fuzz.regressions import CASES

ISA = "baseline"


def failures(names):
    worker = workers.Worker(ISA)
    try:
        return {case: wrong for _, case, wrong in workers.run(names, [worker]) if wrong}
    finally:
        worker.close()


def test_short_run():
    assert failures(islice(cases.number_cases(100), 130)) == {}


def test_what_failed_once():
    assert failures(CASES) == {}


def test_every_operator_has_a_generator():
    assert set(operators.SOURCES) == operators.list_operators()


def test_everything_public_has_a_generator():
    public = {*F.__all__, *nn.__all__, *distributions.__all__} - surface_modules.NOT_RUN
    assert public == {name for _, covered in surface.TARGETS.values() for name in covered}


def test_numbers_of_cases():
    names = list(islice(cases.number_cases(5), 500))
    assert len(set(names)) == 500
    assert {cases.parse(name)[0] for name in names} == set(cases.KINDS)
    assert list(islice(cases.number_cases(0, "file.images"), 2)) == ["file.images.0", "file.images.1"]
    for wrong in ("", "surface.affine_flow", "surface.nothing.1", "file.images.x"):
        with pytest.raises(ValueError, match="a case is KIND"):
            cases.parse(wrong)


def test_equal_names_draw_equal_cases():
    one, other = (Draw("affine_flow/7").tensor(5, 6) for _ in range(2))
    assert one.stride() == other.stride()
    assert torch.equal(one.nan_to_num(), other.nan_to_num())


def assert_reported(monkeypatch, call, message):
    """That a function of one tensor, of which the reference returns the double, is found wrong."""

    def problem(draw):
        return Problem(lambda _, x: call(x), [torch.ones(3)], constants=(0,))

    monkeypatch.setitem(surface.TARGETS, "wrong", (problem, ()))
    with pytest.raises(FuzzError, match=message):
        surface.run("wrong", "wrong/0")


def runs_kernels(x):
    from fastvae import backend

    return backend.resolve("auto", x) == "cpp"


def raise_error(error):
    raise error


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (lambda x: 2.5 * x, r"kernel 2\.5"),
        (lambda x: torch.tensor([2.0, 2.0, torch.nan]), "at 2: kernel nan"),
        (lambda x: 2 * x.double(), "is torch.float64"),
        (lambda x: torch.full((4,), 2.0), r"\(4,\), expected"),
        (lambda x: torch.empty(3), "memory is read before it is written"),
        (lambda x: raise_error(KeyError("x")), "the kernel raises KeyError"),
    ],
)
def test_wrong_kernels_are_reported(kernel, message, monkeypatch):
    assert_reported(monkeypatch, lambda x: kernel(x) if runs_kernels(x) else 2 * x, message)


def beside_overflow(x):
    """Twos, computed beside a layer whose sums overflow."""
    degrees = torch.arange(3)
    y = F.masked_linear(x, 3e38 * torch.ones(3, 3).to(x), in_degrees=degrees, out_degrees=degrees)
    return 2 + 0 * y.clamp(max=1)


def test_wrong_numbers_beside_sums_that_overflow_are_reported(monkeypatch):
    assert_reported(monkeypatch, lambda x: torch.ones(3) if runs_kernels(x) else beside_overflow(x), "kernel 1")


def test_sums_that_overflow_need_not_be_finite(monkeypatch):
    def problem(draw):
        return Problem(
            lambda _, x: torch.full((3,), torch.nan) if runs_kernels(x) else beside_overflow(x),
            [torch.ones(3)],
            constants=(0,),
        )

    monkeypatch.setitem(surface.TARGETS, "infinite", (problem, ()))
    surface.run("infinite", "infinite/0")


@pytest.mark.parametrize(("factor", "wrong"), [(1.0, False), (1.001, True)])
def test_gradients_of_normalised_rows_are_compared(factor, wrong, monkeypatch):
    def problem(draw):
        layer = nn.MaskedLinear(1, 2, [0], [0, 0], weight_norm=True)
        with torch.no_grad():
            layer.weight_gain.fill_(1e6)

        def call(module, x):
            # Were the norm a constant, a row of one weight would have a gradient.
            y = module(x)
            norm = module.weight.norm(dim=-1)
            return y * (norm / norm.detach()) ** (factor - 1) if runs_kernels(x) else y

        return Problem(call, [torch.ones(5, 1)], layer)

    monkeypatch.setitem(surface.TARGETS, "row", (problem, ()))
    if wrong:
        with pytest.raises(FuzzError, match="result"):
            surface.run("row", "row/0")
    else:
        surface.run("row", "row/0")


def test_errors_of_kernels_are_those_of_the_reference(monkeypatch):
    assert_reported(
        monkeypatch,
        lambda x: raise_error(ValueError("no")) if runs_kernels(x) else raise_error(TypeError("no")),
        "the kernel raises ValueError.*the reference TypeError",
    )


def test_a_process_that_dies_is_reported_and_replaced(tmp_path, monkeypatch):
    worker = workers.Worker(ISA)
    try:
        worker.start("surface.affine_flow.1")
        worker._process.kill()
        worker._process.wait()
        assert "SIGKILL" in worker.result() or not worker.case
        worker.start("surface.affine_flow.1")
        assert worker.result() == ""
    finally:
        worker.close()


def test_files_that_take_too_much_are_reported():
    with pytest.raises(FuzzError, match="large: took"), files.bound_cost("large"):
        torch.ones(2**28 // 4).sum()
    with files.bound_cost("small"):
        torch.ones(2**10).sum()
