"""Prints how many kernels and Python functions calls of ops call, without a GPU: ``{name: [launches, calls]}``.

It runs in a process of its own, where Triton does not interpret kernels.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import fastvae.functional as F
from fastvae import backend
from fastvae.ops.autoregressive_flow import autoregressive_flow
from fastvae.ops.autoregressive_inverse import autoregressive_inverse
from fastvae.reference.made import MadeParameters
from fastvae.sampling import CausalSampler
from fastvae.structure import MadeStructure, hidden_degrees_of
from tests.support.causal_stacks import stacks
from tests.support.stub_gpu import StubGpu, stub_gpu

N, D, WIDTH = 128, 32, 320


def leaf(*shape: int) -> Tensor:
    return torch.zeros(shape, requires_grad=True)


def backward(function: Callable[..., Any], *inputs: Tensor) -> Callable[[], Any]:
    """A call of ``function`` and of its backward pass."""

    def run() -> None:
        outputs = function(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        torch.autograd.grad(outputs, inputs, [torch.zeros_like(o) for o in outputs])

    return run


def networks(function: Callable[..., Any]) -> Callable[..., Any]:
    structure = MadeStructure(D, hidden_degrees_of((WIDTH, WIDTH), D, False), tuple(range(D)))

    def run(z: Tensor, *tensors: Tensor) -> Any:
        parameters = MadeParameters(tensors[:3], tensors[3:], [None] * 3)
        return function(z, None, parameters, structure, impl="triton")

    return run


def cases() -> dict[str, Callable[[], Any]]:
    widths = D, WIDTH, WIDTH, 2 * D
    of_network = [leaf(N, D), *(leaf(o, i) for i, o in pairwise(widths)), *(leaf(o) for o in widths[1:])]
    degrees = {"in_degrees": torch.arange(WIDTH) % D, "out_degrees": torch.arange(WIDTH) % D}
    inverse, without_gradients = networks(autoregressive_inverse), [t.detach() for t in of_network]
    stack = stacks()["gated"]
    sampler = CausalSampler(stack.make(), stack.likelihood, in_channels=stack.channels, impl="triton")

    def rsample(*p: Tensor) -> Any:
        return F.diag_gaussian_rsample(*p, impl="triton")

    def layer(*p: Tensor) -> Any:
        return F.masked_linear(*p, **degrees, activation="elu", impl="triton")

    def convolution(*p: Tensor) -> Any:
        return F.masked_conv2d(*p, mask_type="B", padding=1, impl="triton")

    return {
        "diag_gaussian_rsample": backward(rsample, leaf(N, D), leaf(N, D)),
        "masked_linear": backward(layer, leaf(N, WIDTH), leaf(WIDTH, WIDTH), leaf(WIDTH)),
        "autoregressive_flow": backward(networks(autoregressive_flow), *of_network),
        "autoregressive_inverse": lambda: inverse(*without_gradients),
        "masked_conv2d": backward(convolution, leaf(4, 64, 8, 8), leaf(64, 64, 3, 3), leaf(64)),
        "sampler, one row": lambda: sampler.sample(2, (1, 6)),
    }


def count(gpu: StubGpu, run: Callable[[], Any]) -> tuple[int, int]:
    """Launches, and calls of Python functions but those of the stub, once all is remembered."""
    calls, own = 0, sys.modules[StubGpu.__module__].__file__

    def see(frame: Any, event: str, _: Any) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_code.co_filename != own

    for _ in range(2):
        run()
    gpu.launches.clear()
    sys.setprofile(see)
    try:
        run()
    finally:
        sys.setprofile(None)
    return len(gpu.launches), calls


def main() -> None:
    # The ops take CPU tensors for those of a GPU.
    backend.INTERPRETING = True
    with stub_gpu() as gpu:
        print(json.dumps({name: count(gpu, run) for name, run in cases().items()}))


if __name__ == "__main__":
    main()
