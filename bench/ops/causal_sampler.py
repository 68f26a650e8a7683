"""Sampling of 28 x 28 images from a gated stack of 7 layers of 64 channels, at random weights.

The provider ``naive`` runs the whole network once for each of 784 pixels. The reference is the same cached algorithm as
the library's, in plain PyTorch. So its gain over ``naive`` is the gain of the algorithm, and the library's gain over
the reference is the gain of the kernel. The provider ``forward`` is one pass of the network over the finished batch. A
run of ``naive`` on 64 images takes minutes; nothing is extrapolated.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from ..task import Case, Function, Inputs, Peer, Shape, Task, Work

# Rows are images, columns pixels.
SHAPES = (Shape(64, 784), Shape(1, 784))
LAYERS, CHANNELS = 7, 64
CHECKED = 2
_SEED = 7


@functools.lru_cache(maxsize=2)
def _network(device: str, dtype: torch.dtype, impl: str) -> Any:
    from fastvae.nn.gated_pixelcnn import GatedPixelCNN

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = GatedPixelCNN(1, CHANNELS, LAYERS, impl=impl)
    return network.to(device, dtype).eval()


def _sampler(case: Case, impl: str, layers: str = "auto") -> Any:
    from fastvae.sampling import CausalSampler

    return CausalSampler(_network(case.device, case.torch_dtype, layers), "bernoulli", impl=impl)


def _generator(case: Case) -> torch.Generator:
    return torch.Generator(case.device).manual_seed(_SEED)


def _side(case: Case) -> int:
    return math.isqrt(case.shape.columns)


def _fastvae(case: Case, impl: str) -> Function:
    sampler, side = _sampler(case, impl), _side(case)

    def run(images: Tensor) -> Tensor:
        # A graph can hold the default generator only.
        captured = case.device == "cuda" and torch.cuda.is_current_stream_capturing()
        return sampler.sample(len(images), side, generator=None if captured else _generator(case))

    return run


def _naive(case: Case) -> Function:
    from fastvae.reference.causal_sampler import naive_sample

    network, side = _network(case.device, case.torch_dtype, "auto"), _side(case)
    sampler = _sampler(case, "reference")

    def run(images: Tensor) -> Tensor:
        drawn = torch.zeros_like(images)
        uniforms = sampler.uniforms(len(images), (side, side), generator=_generator(case))
        naive_sample(network, sampler.likelihood, drawn, None, uniforms)
        return drawn

    return run


def _forward(case: Case) -> Function:
    return _network(case.device, case.torch_dtype, "auto")


def _images(case: Case, generator: torch.Generator) -> Inputs:
    side = _side(case)
    uniform = torch.rand(case.shape.rows, 1, side, side, device=case.device, generator=generator)
    return ((uniform < 0.5).to(case.torch_dtype),)


def _work(case: Case) -> Work:
    """The products of one pass over every pixel; weights, images and noise once."""
    network = _network(case.device, case.torch_dtype, "auto")
    weights = 0
    for module in network.modules():
        if hasattr(module, "mask"):
            weights += int(module.mask().sum())
        elif isinstance(module, torch.nn.Conv2d):
            weights += module.weight.numel()
    pixels = case.shape.rows * case.shape.columns
    return Work((weights + 2 * pixels) * case.itemsize, 2 * weights * pixels)


def _check(case: Case, inputs: Inputs, outputs: Any) -> str | None:
    expected = _sampler(case, "reference").sample(
        min(CHECKED, case.shape.rows), _side(case), generator=_generator(case)
    )
    wrong = int((outputs[: len(expected)] != expected).sum())
    return f"{wrong} pixels of the first images are not those of the reference" if wrong else None


TASKS = (
    Task(
        op="causal_sampler",
        entry="sample",
        variant=f"gated-{LAYERS}x{CHANNELS}",
        modes=("fwd",),
        inputs=_images,
        fastvae=_fastvae,
        reference=lambda case: _fastvae(case, "reference"),
        peers={"naive": Peer(_naive), "forward": Peer(_forward, comparable=False)},
        work=_work,
        check=_check,
        shapes={"cpu": SHAPES, "cuda": SHAPES},
        dtypes={"cpu": ("float32",), "cuda": ("float32",)},
        sampled=False,
        compiles=False,
    ),
)
