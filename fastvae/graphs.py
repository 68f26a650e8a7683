"""A whole training step as one CUDA graph: the launches of small networks take longer than their kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["GraphedStep", "make_graphed_step"]


class GraphedStep:
    """A captured step: a call copies its inputs to where the graph reads them, and replays the graph.

    :func:`make_graphed_step` makes it.
    """

    def __init__(self, graph: Any, inputs: Sequence[Tensor], outputs: Tensor | tuple[Tensor, ...]) -> None:
        self._graph, self._inputs, self._outputs = graph, inputs, outputs

    def __call__(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """One step.

        Args:
            inputs: as those of the capture, with other numbers; they may be on another device.

        Returns:
            What the step returns, in memory of its own.

        Raises:
            ValueError: an input is missing, or has another shape or dtype than that of the capture.
            TypeError: an input is no tensor.
        """
        if len(inputs) != len(self._inputs):
            raise ValueError(f"inputs must be {len(self._inputs)} tensors, as in the capture, got {len(inputs)}")
        for i, (new, ours) in enumerate(zip(inputs, self._inputs, strict=True)):
            if not isinstance(new, Tensor):
                raise TypeError(f"inputs[{i}] must be a tensor, got {type(new).__name__}")
            if new.shape != ours.shape or new.dtype != ours.dtype:
                raise ValueError(
                    f"inputs[{i}] must have the shape {tuple(ours.shape)} and the dtype {ours.dtype} of the capture, "
                    f"got {tuple(new.shape)} and {new.dtype}: other sizes need a graph of their own"
                )
        with torch.no_grad():
            for new, ours in zip(inputs, self._inputs, strict=True):
                ours.copy_(new, non_blocking=True)
        self._graph.replay()
        if isinstance(self._outputs, Tensor):
            return self._outputs.clone()
        return tuple(output.clone() for output in self._outputs)


def make_graphed_step(
    step: Callable[..., Any],
    *inputs: Tensor,
    optimizers: Sequence[torch.optim.Optimizer] = (),
    generators: Sequence[torch.Generator] = (),
    warmup: int = 3,
) -> GraphedStep:
    """Captures a training step in a CUDA graph.

    Each call of the result replays the step with other inputs. It costs one launch, whatever the step launches. Noise
    is drawn anew, because seeds are drawn on the device.

    Args:
        step: called with ``inputs``: clears gradients, computes a loss, goes backward, and lets the optimisers step.
            It returns a tensor, such as the loss, or a tuple of tensors, and reads nothing back from the device.
        inputs: a first batch, CUDA tensors.
        optimizers: those that the step uses; each must be made with ``capturable=True`` where it has that option.
        generators: those that the step draws from, besides the default one.
        warmup: steps before the capture; they compile kernels, make the optimisers' state, and train on ``inputs``.

    Returns:
        The captured step, :class:`GraphedStep`.

    Raises:
        TypeError: an input is no tensor, or the step returns something else than tensors.
        ValueError: an input or a parameter is on no GPU, an optimiser is not capturable, or ``warmup`` is less than 1.

    Note:
        What is a Python number during the capture stays as it is. A learning rate that changes must be a tensor on the
        device. The graph reads parameters where they are: change them in place.

    Example:
        A GPU is needed::

            optimizer = torch.optim.Adam(model.parameters(), capturable=True)

            def step(x):
                optimizer.zero_grad()
                loss = -model.bound(x).mean()
                loss.backward()
                optimizer.step()
                return loss

            graphed = make_graphed_step(step, first_batch, optimizers=[optimizer])
            losses = [graphed(x) for x in batches]
    """
    if warmup < 1:
        raise ValueError(f"warmup must be 1 or more, got {warmup}: a capture can neither compile nor allocate state")
    _check_inputs(inputs)
    for i, optimizer in enumerate(optimizers):
        _check_optimizer(f"optimizers[{i}]", optimizer)
    # The graph reads here. Each call writes here.
    ours = [t.detach().clone() for t in inputs]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warmup):
            step(*ours)
    torch.cuda.current_stream().wait_stream(side)
    for optimizer in optimizers:
        # The capture makes gradients in the memory of the graph.
        optimizer.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        outputs = step(*ours)
    return GraphedStep(graph, ours, _detach(outputs))


def _is_on_gpu(t: Tensor) -> bool:
    return t.is_cuda


def _check_inputs(inputs: Sequence[Tensor]) -> None:
    for i, t in enumerate(inputs):
        if not isinstance(t, Tensor):
            raise TypeError(f"inputs[{i}] must be a tensor, got {type(t).__name__}")
        if not _is_on_gpu(t):
            raise ValueError(f"inputs[{i}] must be on a GPU, where alone graphs are, got {t.device}")


def _check_optimizer(name: str, optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        if not group.get("capturable", True):
            kind = type(optimizer).__name__
            raise ValueError(f"{name} must be capturable in a CUDA graph: make it by {kind}(..., capturable=True)")
        for parameter in group["params"]:
            if not _is_on_gpu(parameter):
                raise ValueError(f"{name} must hold parameters on a GPU only, got one on {parameter.device}")


def _detach(outputs: Any) -> Tensor | tuple[Tensor, ...]:
    if isinstance(outputs, Tensor):
        return outputs.detach()
    if isinstance(outputs, (tuple, list)) and all(isinstance(output, Tensor) for output in outputs):
        return tuple(output.detach() for output in outputs)
    raise TypeError(f"step must return a tensor or a tuple of tensors, got {type(outputs).__name__}")
