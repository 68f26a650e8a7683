"""The registry under pytest-benchmark: ``pytest bench`` compares the providers on your own machine.

``pytest bench -k "rsample and 4096x1024"`` picks cases, ``--benchmark-compare`` compares with an earlier run.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from . import registry, runner
from .task import PROVIDERS, Case

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MEASURED = [
    pytest.param(case, provider, id=f"{case.task}-{case.mode}-{case.shape}-{case.dtype}-{provider}")
    for case in registry.select_cases(DEVICE)
    for provider in filter(registry.find_task(case).offers, PROVIDERS)
]


@pytest.mark.parametrize(("case", "provider"), MEASURED)
def test_speed(benchmark: Any, case: Case, provider: str) -> None:
    task = registry.find_task(case)
    torch._dynamo.reset()
    call = runner.prepare(task, case, provider, [task.inputs(case, torch.Generator(DEVICE).manual_seed(0))]).calls[0]

    def finish() -> None:
        call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.group = str(case)
    with torch.set_grad_enabled(case.mode != "fwd"):
        finish()
        benchmark(finish)
