"""How fast a training step and an evaluation are: with the library's ops, with plain PyTorch, and compiled."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..evaluation.config import EvaluationConfig
from ..systems.vae.config import VAEConfig, VAETrainConfig
from ..systems.vae.model import VAE

__all__ = ["WAYS", "measure_evaluation", "measure_steps"]

# By the name of each way, whether the library's ops run, and whether torch.compile translates the model.
WAYS = {"fastvae": (True, False), "reference": (False, False), "compile": (False, True)}
_WARMUP = 3
Call = Callable[[], Any]


def measure_steps(
    model_config: VAEConfig, config: VAETrainConfig, x: Tensor, steps: int, *, compiler: bool = True
) -> dict[str, float | None]:
    """Median milliseconds of a training step (forward, backward, Adam) on the batch ``x``, for each of :data:`WAYS`.

    The ways take turns. Compiling has None where it fails or ``compiler`` is false.
    """

    def build(impl: Any, compiled: bool) -> Call:
        model = build_model(model_config, impl, config.seed, x)
        bound = torch.compile(model.bound, dynamic=False) if compiled else model.bound
        optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)

        def step() -> None:
            optimizer.zero_grad()
            (-bound(x).mean()).backward()
            optimizer.step()

        return step

    return measure(build, model_config.impl, steps, on_gpu=x.is_cuda, compiler=compiler)


def measure_evaluation(
    model_config: VAEConfig, config: EvaluationConfig, x: Tensor, rounds: int, *, compiler: bool = True
) -> dict[str, float | None]:
    """Median milliseconds of one chunk of the evaluation, the log-weights of images ``x``, as :func:`measure_steps`."""

    def build(impl: Any, compiled: bool) -> Call:
        model = build_model(model_config, impl, 0, x)
        samples = min(config.sample_chunk, config.samples)

        def draw(x: Tensor) -> Tensor:
            return model.log_weights(x, model.encode(x), samples)

        draw = torch.compile(draw, dynamic=False) if compiled else draw
        return torch.no_grad()(lambda: draw(x))

    return measure(build, model_config.impl, rounds, on_gpu=x.is_cuda, compiler=compiler)


def build_model(config: VAEConfig, impl: Any, seed: int, x: Tensor) -> VAE:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return VAE(replace(config, impl=impl)).to(x)


def measure(
    build: Callable[[Any, bool], Call], impl: Any, rounds: int, *, on_gpu: bool, compiler: bool
) -> dict[str, float | None]:
    calls: dict[str, Call] = {}
    for name, (ours, compiled) in WAYS.items():
        if compiled and not compiler:
            continue
        call = build(impl if ours else "reference", compiled)
        try:
            for _ in range(_WARMUP):
                call()
        except Exception:
            # Compilers fail in many ways, and the demonstration does without one.
            if not compiled:
                raise
            continue
        calls[name] = call
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if on_gpu:
                torch.cuda.synchronize()
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(times[name]) if name in times else None for name in WAYS}
