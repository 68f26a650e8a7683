"""Whole jobs, not single ops: training steps of models, as functions of a batch, and their least work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .task import Case, Function, Work

Loss = Callable[[Tensor], Tensor]
# What Adam and Adamax read and write for each weight: the weight, its gradient and two moments; all but the gradient.
_OPTIMIZER_PASSES = 7


def build_with_seed(build: Callable[[], Any]) -> Any:
    """``build()``, with the same random numbers at every call, and the generator as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


def make_step(
    model: nn.Module, loss: Loss, *, compiled: bool, fullgraph: bool = True, adamax: bool = False
) -> Function:
    """A training step on a batch: loss, gradients, optimiser. The weights move from call to call, as in training.

    Args:
        model: whose weights are trained.
        loss: of a batch, 0-d.
        compiled: whether ``torch.compile`` translates the loss and the optimiser that is not one fused kernel.
        fullgraph: whether one graph must hold the loss.
        adamax: Adamax in place of Adam.
    """
    on_gpu = next(model.parameters()).is_cuda
    optimizer: torch.optim.Optimizer
    if adamax:
        optimizer = torch.optim.Adamax(model.parameters(), lr=1e-4, capturable=on_gpu)
        update = torch.compile(optimizer.step) if compiled else optimizer.step
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True, capturable=on_gpu)
        update = optimizer.step
    if compiled:
        loss = torch.compile(loss, fullgraph=fullgraph, dynamic=False)

    def step(x: Tensor) -> Tensor:
        value = loss(x)
        value.backward()
        update()
        # Last, so that a step frees what it allocates and its peak memory is its own.
        optimizer.zero_grad(set_to_none=True)
        return value.detach()

    return step


def count_step(case: Case, model: nn.Module, loss: Loss, x: Tensor) -> Work:
    """The least work of a step: the products that masks leave, forward and backward, and the passes over the weights.

    Args:
        case: for the size of its numbers.
        model: the model in plain PyTorch.
        loss: of a batch, in plain PyTorch.
        x: the batch.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        loss(x).backward()
    model.zero_grad(set_to_none=True)
    flops = counter.get_total_flops() - sum(6 * rows * masked for rows, masked in _find_masked(model, len(x)))
    weights = sum(p.numel() for p in model.parameters())
    # Images; weights forward and backward, and gradients; the optimiser.
    elements = x.numel() + (2 + 1 + _OPTIMIZER_PASSES) * weights
    return Work(elements * case.itemsize, flops)


def _find_masked(model: nn.Module, batch: int) -> Iterator[tuple[int, int]]:
    """Of every dense masked layer the rows that pass through it, and the number of weights that do not count."""
    from fastvae.reference.masked_linear import mask_of

    for layer in model.modules():
        if hasattr(layer, "in_degrees") and layer.weight.dim() == 2:
            yield batch, int((~mask_of(layer.in_degrees, layer.out_degrees)).sum())


def check_first_loss(case: Case, inputs: tuple[Tensor, ...], outputs: Any, *, low: float, high: float) -> str | None:
    """Whether the first loss, of fresh weights, is in the range that its model starts in."""
    loss = outputs.item()
    return None if low < loss < high else f"the first loss is {loss:.4g} nats, not between {low:g} and {high:g}"
