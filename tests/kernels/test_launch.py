"""How kernels are launched, on a stub of a GPU: compiled kernels are found, and called as Triton calls them."""

from __future__ import annotations

import importlib
import json
import sys
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

from fastvae.kernels import _launch, aot
from fastvae.kernels._launch import Plan, by_shape, record_launches, warp_size
from fastvae.kernels._tiles import row_tile
from tests.support.processes import run_module
from tests.support.stub_gpu import StubDriver, stub_gpu


def _copy_kernel(y_ptr, x_ptr, n, step, factor, BLOCK: tl.constexpr, TWICE: tl.constexpr):
    tl.store(y_ptr, tl.load(x_ptr) * factor)


@pytest.fixture
def gpu():
    with stub_gpu() as stub:
        yield stub


@pytest.fixture
def kernel(gpu):
    return JITFunction(_copy_kernel)


@pytest.fixture
def by_triton(monkeypatch):
    """How often Triton itself launched."""
    calls, run = [], JITFunction.run
    monkeypatch.setattr(JITFunction, "run", lambda *args, **kwargs: calls.append(args) or run(*args, **kwargs))
    return calls


NUMBERS = {"n": 48, "step": 5, "factor": 0.5}
META = {"BLOCK": 32, "TWICE": False, "num_warps": 4}


@pytest.fixture
def call(kernel):
    """Launches as ops do, with another value for what is changed."""

    @by_shape
    def make_plan(dtypes, programs, numbers, meta):
        return Plan(-1, kernel, programs, numbers, **dict(meta))

    def run(programs=6, **changed):
        tensors = [changed.get(name, torch.zeros(64)) for name in ("y", "x")]
        numbers, meta = ({name: changed.get(name, known[name]) for name in known} for known in (NUMBERS, META))
        dtypes = tuple(None if t is None else t.dtype for t in tensors)
        make_plan(dtypes, programs, tuple(numbers.values()), tuple(meta.items())).launch(*tensors)

    return run


def as_addresses(arguments):
    return [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments]


def test_known_kernels_are_called_as_triton_calls_them(gpu, call, by_triton):
    y, x = torch.zeros(64), torch.nn.Parameter(torch.zeros(64))
    for _ in range(3):
        call(y=y, x=x)
    assert len(by_triton) == 1
    first, *others = gpu.launches
    for name, programs, arguments in others:
        assert (name, programs) == ("_copy_kernel", 6) == first[:2]
        assert list(arguments) == as_addresses(first[2])
        assert list(arguments[2:]) == [48, 5, 0.5, 32, False]


@pytest.mark.parametrize(
    ("changed", "compiles"),
    [
        ({"x": torch.zeros(64, dtype=torch.float16)}, 1),
        ({"x": torch.zeros(65)[1:]}, 1),
        ({"y": torch.zeros(65)[1:]}, 1),
        ({"n": 49}, 1),
        ({"step": 1}, 1),
        ({"step": 2**31}, 1),
        ({"x": None}, 1),
        ({"BLOCK": 64}, 1),
        ({"TWICE": True}, 1),
        ({"num_warps": 8}, 1),
        ({"n": 64}, 0),
        ({"step": 7}, 0),
        ({"factor": 2.0}, 0),
        ({"programs": 7}, 0),
        ({"x": torch.zeros(99)}, 0),
    ],
    ids=lambda value: str(list(value)) if isinstance(value, dict) else "",
)
def test_what_triton_compiles_for_is_told_apart(gpu, call, changed, compiles):
    for arguments in ({}, changed, {}, changed):
        call(**arguments)
    assert len(gpu.compiled) == 1 + compiles
    of_first, of_changed = (gpu.launches[i][1:] for i in (2, 3))
    given = {"n": 48, "step": 5, "factor": 0.5, "BLOCK": 32, "TWICE": False}
    for arguments, expected in ((of_first, given), (of_changed, given | changed)):
        assert list(arguments[1][2:]) == [expected[name] for name in given]
        assert arguments[0] == expected.get("programs", 6)


def test_constants_are_known_by_their_names(gpu, kernel):
    for meta in ({"BLOCK": 1, "TWICE": 2}, {"TWICE": 2, "BLOCK": 1}):
        plan = Plan(-1, kernel, 1, (48, 5, 0.5), **meta)
        for _ in range(2):
            plan.launch(torch.zeros(64), torch.zeros(64))
    assert [launched[2][-2:] for launched in gpu.launches] == [(1, 2)] * 4


def test_hooks_see_every_launch(gpu, kernel, call, by_triton, monkeypatch):
    seen = []
    call()
    for hook in (triton.knobs.runtime.launch_enter_hook, triton.knobs.runtime.launch_exit_hook):
        hook.add(seen.append)
        try:
            call()
            call()
        finally:
            hook.remove(seen.append)
    assert len(seen) == 4
    with monkeypatch.context() as patch:
        patch.setattr(triton.knobs.runtime, "launch_enter_hook", lambda *_: seen.append("of a user"))
        call()
    assert len(seen) == 5
    kernel.add_pre_run_hook(lambda *_, **__: seen.append("before"))
    call()
    kernel.pre_run_hooks.clear()
    assert (len(seen), len(by_triton)) == (6, 7)
    call()
    assert (len(by_triton), len(gpu.launches)) == (7, 8)


@pytest.mark.parametrize("missing", ["function", "packed_metadata"])
def test_triton_launches_where_a_compiled_kernel_does_not_show_how(gpu, kernel, by_triton, missing, monkeypatch):
    compiled = gpu.compile(kernel, "unused")
    monkeypatch.setattr(_launch, "_launcher_of", lambda *_: pytest.fail("it is not known how to run it"))
    vars(compiled).pop(missing)
    plan = Plan(-1, kernel, 6, (48, 5, 0.5), BLOCK=32, TWICE=False)
    plan._remember([torch.zeros(64)] * 2, (0, 0), compiled)
    assert not plan._launches


def test_a_plan_tells_addresses_apart_and_nothing_else(gpu, kernel, by_triton):
    y, x, cut = torch.zeros(64), torch.zeros(64), torch.zeros(65)[1:]
    plan = Plan(-1, kernel, 6, (48, 5, 0.5), BLOCK=32, TWICE=False)
    for _ in range(3):
        for tensors in ((y, x), (cut, x), (y, cut)):
            plan.launch(*tensors)
    assert len(gpu.compiled) == len(by_triton) == 3
    for tensors, (name, programs, arguments) in zip([(y, x), (cut, x), (y, cut)] * 2, gpu.launches[3:], strict=True):
        assert (name, programs) == ("_copy_kernel", 6)
        assert arguments == (*as_addresses(tensors), 48, 5, 0.5, 32, False)


def test_a_missing_tensor_has_address_0(gpu, kernel):
    plan = Plan(-1, kernel, 6, (48, 5, 0.5), BLOCK=32, TWICE=False)
    for _ in range(2):
        plan.launch(x := torch.zeros(64), None)
    assert gpu.launches[1][2] == (x.data_ptr(), 0, 48, 5, 0.5, 32, False)


def test_none_where_a_known_plan_has_a_tensor_is_no_null_pointer(gpu, kernel):
    plan = Plan(-1, kernel, 6, (48, 5, 0.5), BLOCK=32, TWICE=False)
    for _ in range(2):
        plan.launch(torch.zeros(64), torch.zeros(64))
    with pytest.raises(AttributeError, match="NoneType"):
        plan.launch(torch.zeros(64), None)


@pytest.mark.parametrize("other", [None, torch.zeros(64, dtype=torch.float64)], ids=["none", "float64"])
def test_a_rule_that_does_not_determine_dtypes_is_found(kernel, other, monkeypatch):
    """Where Triton launches, as in the interpreter."""
    monkeypatch.setattr(_launch, "_runtime", None)
    plan = Plan(-1, kernel, 6, (48, 5, 0.5), BLOCK=32, TWICE=False)
    plan.launch(torch.zeros(64), torch.zeros(64))
    plan.launch(torch.zeros(64), torch.zeros(64))
    with pytest.raises(RuntimeError, match=r"float32.*not of.*(None|float64)"):
        plan.launch(torch.zeros(64), other)


def test_a_launch_calls_few_python_functions(gpu, kernel):
    """The stub's driver and kernel are the last two."""
    plan, tensors, calls = Plan(-1, kernel, 6, (48, 5, 0.5), BLOCK=32, TWICE=False), [torch.zeros(64)] * 2, []
    for _ in range(2):
        plan.launch(*tensors)
    sys.setprofile(lambda frame, event, _: event == "call" and calls.append(frame.f_code.co_name))
    plan.launch(*tensors)
    sys.setprofile(None)
    assert calls == ["launch", "get_current_stream", "run"]


def test_nothing_is_launched_without_programs_or_while_launches_are_recorded(gpu, kernel, call):
    call(programs=0)
    with record_launches(32) as recorded:
        call()
    assert not gpu.launches
    assert [(r.kernel, r.args[2:], r.meta["BLOCK"]) for r in recorded] == [(kernel, (48, 5, 0.5), 32)]


def test_rules_are_forgotten_for_devices_with_other_warps():
    calls = []

    @by_shape
    def rule(size):
        calls.append(size)
        return size * warp_size()

    before = warp_size()
    assert [rule(2), rule(2)] == [2 * before] * 2
    assert calls == [2]
    with record_launches(64):
        assert rule(2) == 128
        assert row_tile(4096, 4096, 1).columns == 64
    assert rule(2) == 2 * before
    assert row_tile(4096, 4096, 1).columns == before


@pytest.mark.parametrize("stem", aot.stems())
def test_tensors_come_first_in_every_kernel(stem):
    """Plans rely on it."""
    module = importlib.import_module(f"fastvae.kernels.{stem}")
    for name, kernel in vars(module).items():
        if name.endswith("_kernel"):
            are_tensors = [argument.endswith("_ptr") for argument in kernel.arg_names]
            assert are_tensors == sorted(are_tensors, reverse=True), name


def test_memory_of_rules_is_bounded(monkeypatch):
    monkeypatch.setattr(_launch, "_MOST_KNOWN", 4)
    rule = by_shape(lambda size: size)
    for size in range(10):
        rule(size)
    assert rule.cache_info().currsize == 4


@pytest.fixture
def devices(monkeypatch):
    """The device that is current, 0 at first, and those that were entered."""
    entered, current = [], [0]

    @contextmanager
    def device(wanted):
        entered.append(wanted)
        current[0], before = wanted, current[0]
        yield
        current[0] = before

    monkeypatch.setattr(_launch, "_current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "device", device)
    return SimpleNamespace(current=current, entered=entered)


def test_the_device_of_a_plan_launches(devices):
    launched = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *args, **meta: launched.append((devices.current[0], args, meta))

    argument = torch.zeros(2)
    Plan(1, Kernel(), 4, (3,), BLOCK=8).launch(argument)
    assert (devices.entered, launched) == ([1], [(1, (argument, 3), {"BLOCK": 8})])


def test_a_known_kernel_is_launched_on_its_device_and_stream(gpu, kernel, devices, by_triton, monkeypatch):
    """Also from another device, which stays the current one."""
    asked = []
    monkeypatch.setattr(StubDriver, "get_current_stream", lambda _, device: asked.append((device, *devices.current)))
    plan, tensors = Plan(1, kernel, 6, (48, 5, 0.5), BLOCK=32, TWICE=False), [torch.zeros(64)] * 2
    plan.launch(*tensors)
    asked.clear()
    plan.launch(*tensors)
    devices.current[0] = 1
    plan.launch(*tensors)
    assert (devices.entered, asked) == ([1, 1], [(1, 1)] * 2)
    assert (len(by_triton), len(gpu.launches)) == (1, 3)


@pytest.mark.parametrize("scratch", [0, 128])
def test_the_launcher_in_c_gets_what_triton_would_give_it(scratch):
    """Of Triton's own launcher everything but its function in C is real."""
    from triton.backends.nvidia.driver import CudaLauncher
    from triton.runtime import _allocation

    calls: list[Any] = []
    run = CudaLauncher.__new__(CudaLauncher)
    vars(run).update(
        launch=lambda *args: calls.append(args), num_ctas=1, global_scratch_size=scratch, global_scratch_align=1,
        profile_scratch_size=0, profile_scratch_align=1, launch_cooperative_grid=False, launch_pdl=True,
        arg_annotations=["annotations"], kernel_signature=b"signature",
    )  # fmt: skip
    compiled = SimpleNamespace(run=run, function=7, packed_metadata=(4, 1, 0))
    ours, before, as_one = _launch._launcher_of(compiled)
    arguments = 11, 22, 48, None, 0.5
    token = _allocation._allocator.set(lambda *_: 99) if scratch else None
    try:
        run(6, 1, 1, 3, 7, (4, 1, 0), None, None, None, *arguments)
        ours(6, 1, 1, 3, *before, *([arguments] if as_one else arguments))
    finally:
        if token is not None:
            _allocation._allocator.reset(token)
    assert calls[0] == calls[1]
    known = _launch._VERSION in ((3, 6), (3, 7))
    assert (ours is run) is (scratch > 0 or not known)


@pytest.fixture(scope="module")
def second_calls():
    done = run_module("planned_launches", environment={"TRITON_INTERPRET": "0"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("stem", aot.stems())
def test_every_kernel_is_launched_by_a_plan(stem, second_calls):
    """The second of two equal calls looks for no compiled kernel; all kernels of a module are launched."""
    module, launched = importlib.import_module(f"fastvae.kernels.{stem}"), set()
    for case, (kernels, by_triton, compiled) in second_calls[stem].items():
        assert kernels, case
        assert (by_triton, compiled) == ([], []), case
        launched |= set(kernels)
    kernels = {name: value for name, value in vars(module).items() if name.endswith("_kernel")}
    assert launched >= {name for name, kernel in kernels.items() if kernel.fn.__module__ == module.__name__}


# Launches, and calls of Python functions: forward and backward where a call has both.
MOST = {
    "diag_gaussian_rsample": (2, 120),
    "masked_linear": (5, 120),
    "autoregressive_flow": (9, 260),
    "autoregressive_inverse": (4, 80),
    "masked_conv2d": (8, 160),
    "sampler, one row": (3, 395),
}


@pytest.fixture(scope="module")
def counts():
    done = run_module("launch_counts", environment={"TRITON_INTERPRET": "0"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", MOST)
def test_launches_and_calls_of_python(name, counts):
    launches, calls = counts[name]
    assert launches <= MOST[name][0]
    assert calls <= MOST[name][1]
