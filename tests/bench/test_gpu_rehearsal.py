"""What the parts of the GPU check compile and how long they take: counted, not timed."""

from pathlib import Path

import pytest
import torch

from bench import floors, gpu_plan, gpu_rehearsal, registry
from bench.gpu_rehearsal import Estimate
from bench.steps import Step


@pytest.mark.parametrize("part", ["first", "second"])
def test_a_part_fits_into_its_time(part):
    rehearsed = gpu_rehearsal.rehearse(part)
    assert [step.name for step, _ in rehearsed] == [step.name for step in gpu_plan.plan_steps(part, Path())]
    for step, estimate in rehearsed:
        assert estimate.seconds <= step.limit_s, estimate
    assert gpu_rehearsal.add_up(rehearsed) <= gpu_plan.LIMITS_S[part]
    counts = {estimate.name: estimate for _, estimate in rehearsed}
    warm = [estimate for name, estimate in counts.items() if name.startswith("warm")]
    assert all(estimate.kernels + estimate.graphs for estimate in warm)
    if part == "first":
        assert counts["tests"].kernels > 100
        assert sum(estimate.graphs for estimate in warm) == sum(floor.compiles for floor in floors.FLOORS)


def test_seconds_add_up_as_steps_run():
    def step(name, seconds, **options):
        return Step(name, [], 99, Path(), **options), Estimate(name, 0, 0, seconds)

    beside, tests, timed = step("beside", 50, background=True), step("tests", 30), step("timed", 7, alone=True)
    assert gpu_rehearsal.add_up([beside, tests, timed]) == 57
    assert gpu_rehearsal.add_up([tests, beside]) == 80
    assert gpu_rehearsal.add_up([step("beside", 10, background=True), tests, timed]) == 37


def test_one_kernel_is_counted_once_for_each_specialisation():
    (task,) = [t for t in registry.load_tasks("diag_gaussian") if t.entry == "rsample"]
    wide, narrow = (
        floors.make_case(task.op, task.entry, "", shape, "float32", "fwd") for shape in ("64x1024", "64x1000")
    )
    half = floors.make_case(task.op, task.entry, "", "64x1024", "bfloat16", "fwd")
    launches = {case: gpu_rehearsal.record_case(case, "fastvae") for case in (wide, narrow, half)}
    assert all(len(found) == 1 for found in launches.values())
    twice = [*launches[wide], *gpu_rehearsal.record_case(wide, "fastvae")]
    assert len(gpu_rehearsal.identify(twice)) == 1
    # 16 does not divide 1000; other types are other kernels.
    assert len(gpu_rehearsal.identify([found for group in launches.values() for found in group])) == 3


def test_integers_are_told_apart_as_triton_does():
    classes = [gpu_rehearsal._classify(number) for number in (1, 2, 18, 16, 32, 2**31, True)]
    assert len(set(classes)) == 4
    assert gpu_rehearsal._classify(torch.zeros(1)) == "torch.float32"
