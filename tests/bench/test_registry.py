"""What can be measured, and how it is chosen."""

import itertools
import re

import pytest
import torch

from bench import __main__ as command
from bench import registry, runner
from bench.task import Case, Shape, Task, Work

TINY = Shape(5, 6)
TASKS = [task for stem in registry.list_stems() for task in registry.load_tasks(stem)]
FUNCTIONS = [task for task in TASKS if "fwd" in task.modes]
# Every provider that needs no compiler and no package beyond torch.
OFFERED = [
    pytest.param(task, provider, mode, samples, id=f"{task.name}-{provider}-{mode}-{samples or 1}")
    for task in FUNCTIONS
    for provider in ("fastvae", "reference", "distributions", "cpp", "forward")
    for mode in task.modes
    for samples in ((None, 3) if task.sampled else (None,))
    if task.offers(provider)
]
ON_CPU = [task for task in TASKS if task.shapes["cpu"]]
NAMES = [task.name for task in ON_CPU]


def case_of(task, mode, shape=TINY, dtype="float32"):
    return Case(task.op, task.entry, task.variant, mode, shape, dtype, "cpu")


def test_stems_of_the_library_are_registered():
    assert {
        "affine_flow",
        "autoregressive_flow",
        "autoregressive_inverse",
        "bernoulli",
        "causal_sampler",
        "class_linear",
        "diag_gaussian",
        "gated_activation",
        "gated_stack",
        "latent_gradient",
        "linear_tril_gaussian",
        "logistic_mixture",
        "masked_conv2d",
        "masked_linear",
        "training_step",
        "tril_gaussian",
    } <= set(registry.list_stems())


@pytest.mark.parametrize("task", ON_CPU, ids=NAMES)
def test_every_task_can_be_found_by_its_cases(task):
    found = registry.select_cases("cpu", ops=[task.op], entries=[task.entry])
    assert any(registry.find_task(case).name == task.name for case in found)


@pytest.mark.parametrize(("task", "provider", "mode", "samples"), OFFERED)
def test_providers_agree(task, provider, mode, samples):
    """Each provider runs, agrees with the float64 reference, and its calls return outputs and gradients."""
    case = case_of(task, mode, Shape(5, 6, samples))
    prepared = runner.prepare(task, case, provider, runner.make_input_sets(task, case))
    with torch.set_grad_enabled(mode == "fwdbwd"):
        results = prepared.calls[0]()
    if mode == "fwdbwd":
        outputs, gradients = results
        inputs = prepared.given[: len(gradients)]
        assert [g.shape for g in gradients] == [t.shape for t in inputs]
        assert all(torch.isfinite(g).all() for g in gradients)
        assert all(g.abs().sum() > 0 for g in gradients)
    else:
        outputs = results if isinstance(results, tuple) else (results,)
    expected = task.function(case, "reference")(*runner.make_input_sets(task, case)[0])
    expected = expected if isinstance(expected, tuple) else (expected,)
    assert [t.shape for t in outputs] == [t.shape for t in expected]


@pytest.mark.parametrize("task", FUNCTIONS, ids=[task.name for task in FUNCTIONS])
def test_a_wrong_result_is_refused(task):
    case = case_of(task, "fwd")
    right = task.function(case, "reference")

    def wrong(*inputs):
        outputs = right(*inputs)
        return (outputs[0], outputs[1] + 1, *outputs[2:]) if isinstance(outputs, tuple) else outputs + 1

    broken = Task(**{**vars(task), "reference": lambda case: wrong})
    with pytest.raises(RuntimeError, match="wrong result"):
        runner.prepare(broken, case, "reference", runner.make_input_sets(task, case))


@pytest.mark.parametrize(
    ("entry", "variant", "mode", "expected"),
    [
        # mu, log_sigma, z of 10 x 8 floats, log_q of 10
        ("rsample", "", "fwd", 4 * (3 * 80 + 10)),
        # then d_z, log_sigma, d_log_sigma and d_log_q
        ("rsample", "", "fwdbwd", 4 * (6 * 80 + 20)),
        ("kl", "", "fwd", 4 * (2 * 80 + 10)),
        # and ten triangles of 28
        ("rsample", "dense", "fwd", 4 * (3 * 80 + 10 + 280)),
        # whose gradient is ten whole matrices of 64, or ten triangles
        ("rsample", "dense", "fwdbwd", 4 * (6 * 80 + 20 + 280 + 640)),
        ("rsample", "packed", "fwdbwd", 4 * (6 * 80 + 20 + 280 + 280)),
    ],
)
def test_least_bytes(entry, variant, mode, expected):
    op = "tril_gaussian" if variant else "diag_gaussian"
    case = Case(op, entry, variant, mode, Shape(10, 8), "float32", "cpu")
    assert registry.find_task(case).work(case).bytes == expected


def connections(ins, outs):
    return sum(i <= o for i, o in itertools.product(ins, outs))


@pytest.mark.parametrize("mode", ["fwd", "fwdbwd"])
def test_least_work_of_a_masked_layer_counts_what_the_mask_keeps(mode):
    case = Case("masked_linear", "linear", "", mode, Shape(10, 8), "float32", "cpu")
    degrees = [1 + unit * 31 // 8 for unit in range(8)]
    kept = connections(degrees, degrees)
    work = registry.find_task(case).work(case)
    if mode == "fwd":
        assert work == Work(4 * (2 * 80 + kept + 8), 10 * (2 * kept + 8))
    else:
        assert work == Work(4 * (5 * 80 + 2 * kept + 64 + 2 * 8), 10 * (6 * kept + 2 * 8))


@pytest.mark.parametrize("op", ["autoregressive_flow", "autoregressive_inverse"])
def test_least_work_of_a_step_counts_what_the_masks_keep(op):
    variant = {"autoregressive_flow": "320-320", "autoregressive_inverse": "512-512"}[op]
    entry = op.removeprefix("autoregressive_")
    width = int(variant.partition("-")[0])
    case = Case(op, entry, variant, "fwd", Shape(10, 8), "float32", "cpu")
    hidden = [1 + unit * 7 // width for unit in range(width)]
    outputs = [*range(8), *range(8)]
    kept = connections(range(1, 9), hidden) + connections(hidden, hidden) + connections(hidden, outputs)
    units = 2 * width + 16
    work = registry.find_task(case).work(case)
    assert work.flops == 10 * (2 * kept + 2 * units + 6 * 8)
    assert work.bytes == 4 * (2 * 80 + kept + units + 10)


def test_the_inverse_is_not_compiled():
    """A loop over features unrolls into a graph that takes longer to compile than all else takes to measure."""
    assert not any(task.offers("compile") for task in registry.load_tasks("autoregressive_inverse"))
    assert all(task.offers("compile") for task in registry.load_tasks("autoregressive_flow"))


@pytest.mark.parametrize("task", ON_CPU, ids=NAMES)
def test_least_work_grows_with_the_mode(task):
    work = [task.work(case_of(task, mode)) for mode in task.modes]
    assert all(w.bytes > 0 and w.flops > 0 for w in work)
    assert all(a.bytes < b.bytes and a.flops < b.flops for a, b in itertools.pairwise(work))


@pytest.mark.parametrize(("text", "shape"), [("128x32", Shape(128, 32)), ("50x100x50", Shape(100, 50, 50))])
def test_shape_parses_what_it_prints(text, shape):
    assert Shape.parse(text) == shape
    assert str(shape) == text


@pytest.mark.parametrize("text", ["", "128", "0x3", "axb", "1x2x3x4", "-1x4"])
def test_shape_refuses(text):
    with pytest.raises(ValueError, match="ROWSxCOLUMNS"):
        Shape.parse(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--op", "diag"], "unknown op 'diag'; known are .*diag_gaussian"),
        (["--impl", "eager"], "unknown impl 'eager'; known are .*reference"),
        (["--impl", "triton", "--device", "cpu"], "impl 'triton' cannot run on cpu"),
        (["--mode", "bwd"], "unknown mode 'bwd'; known are .*fwdbwd"),
        (["--dtype", "int8"], "unknown dtype 'int8'; known are .*float32"),
        (["--entry", "draw"], "unknown entry 'draw'; known are .*rsample"),
        (["--shape", "12"], "ROWSxCOLUMNS"),
        (["--op", "diag_gaussian", "--mode", "step"], "nothing to measure"),
    ],
)
def test_command_line_refuses(arguments, message, capsys, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr("fastvae.backend.INTERPRETING", False)
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_cuda_without_a_device_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        command.main(["--device", "cuda"])
    assert stopped.value.code == 2
    assert "torch sees no CUDA device" in capsys.readouterr().err


def test_list_names_every_task(capsys):
    assert command.main(["--list", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert set(NAMES) <= set(printed)
