"""Programs that ops name by text, and checks of calls that name one."""

from __future__ import annotations

import itertools
import math
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch

from ..structure.sampling_plan import Conv, Plan
from ..structure.sampling_records import HeadCode, HeadRecord
from ._contracts import Call

__all__ = ["check_sampler", "find_program", "name_program"]

# An op takes tensors, numbers and text. A plan is named once. Its name ends with it, that is with its sampler.
_numbers = itertools.count()
_names: WeakKeyDictionary[Plan, str] = WeakKeyDictionary()
_plans: WeakValueDictionary[str, Plan] = WeakValueDictionary()


def name_program(plan: Plan, head: HeadRecord) -> str:
    """The name of a plan whose pixels are drawn as ``head`` says; it holds in this process."""
    if plan not in _names:
        _names[plan] = f"plan{next(_numbers)}"
        _plans[_names[plan]] = plan
    return " ".join(map(str, (_names[plan], *map(int, head))))


def find_program(name: str) -> tuple[Plan, HeadRecord]:
    """What :func:`name_program` named.

    Raises:
        ValueError: nothing has this name, or has it any more.
    """
    plan, *numbers = name.split()
    if plan not in _plans or len(numbers) != len(HeadRecord._fields):
        raise ValueError(f"program must be the name of a plan that lives in this process, got {name!r}")
    return _plans[plan], HeadRecord(*map(int, numbers))


def check_sampler(call: Call) -> None:
    """Checks a call of ``causal_sampler``: its tensors are those of the program."""
    try:
        plan, head = find_program(call["program"])
    except ValueError as error:
        raise ValueError(f"fastvae::{call.op}: {error}") from None
    n, height, width = (call.sizes[name] for name in "NHW")
    call.require(call.dtype in (torch.float32, torch.float64), "images", "be of float32 or float64", call.dtype)
    call.require(call.sizes["C"] == plan.in_channels, "images", f"have {plan.in_channels} channels", call.sizes["C"])
    temperature = call["temperature"]
    call.require(temperature > 0 and math.isfinite(temperature), "temperature", "be finite, and > 0", temperature)
    numbers = height * width * head.columns
    if call["uniforms"] is not None:
        call.require(call.sizes["U"] == numbers, "uniforms", f"have {numbers} columns", call.sizes["U"])
    given = call["given"]
    if given is not None:
        call.require(given.device == call.device, "given", f"be on {call.device}", given.device)
        call.require(given.dtype == torch.bool, "given", "be of bool", given.dtype)
        shape = (n, plan.in_channels, height, width)
        call.require(tuple(given.shape) == shape, "given", f"have shape {shape}", tuple(given.shape))
    of_head = {
        HeadCode.BERNOULLI: plan.in_channels,
        HeadCode.CATEGORICAL: plan.in_channels * head.levels,
        HeadCode.LOGISTIC_MIXTURE: head.components * (3 if plan.in_channels == 1 else 10),
    }
    fits = head.kind in of_head and of_head[HeadCode(head.kind)] == plan.parameter_channels
    call.require(fits, "program", f"draw from {plan.parameter_channels} parameters", head)
    _check_layers(call, plan)


def _check_layers(call: Call, plan: Plan) -> None:
    weights, biases, constants = call["weights"], call["biases"], call["constants"]
    counts = len(weights), len(biases), len(constants)
    wanted = len(plan.layers), len(plan.layers), len(plan.constants)
    call.require(counts == wanted, "weights, biases, constants", f"be {wanted} tensors", counts)
    outputs = [0] * len(plan.layers)
    for node in plan.nodes:
        if isinstance(node, Conv):
            outputs[node.layer] = max(outputs[node.layer], (node.group + 1) * node.dst.channels)
    for node in plan.nodes:
        if isinstance(node, Conv):
            weight, bias, o = weights[node.layer], biases[node.layer], str(outputs[node.layer])
            call.tensor("weights", weight, (o, str(node.src.channels), *map(str, weight.shape[2:])), "c")
            area = math.prod(weight.shape[2:])
            fits = weight.dim() == 4 and area == node.kernel_area
            call.require(fits, "weights", f"have {node.kernel_area} taps", tuple(weight.shape))
            if bias is not None:
                call.tensor("biases", bias, (o,), "c")
    for constant, (_, channels) in zip(constants, plan.constants, strict=True):
        size = () if constant.dim() == 2 else ("H", "W")
        call.tensor("constants", constant, ("N", str(channels), *size), "c")
