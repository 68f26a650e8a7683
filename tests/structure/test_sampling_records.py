"""The numbers by which Python, C++ and Triton name the same things."""

from typing import get_args, get_type_hints

import pytest

from fastvae.backend import _C
from fastvae.ops._decoder import LIKELIHOOD_IDS
from fastvae.ops._network import ACTIVATION_IDS, KIND_IDS
from fastvae.ops.gated_activation import KIND_IDS as GATE_IDS
from fastvae.sampling.likelihoods import LIKELIHOODS
from fastvae.structure import sampling_records as records
from fastvae.structure.sampling_plan import Buffer, Node, Plan

needs_extension = pytest.mark.skipif(_C is None, reason="the extension is not built")


def numbers_of(codes):
    return {code.name.lower(): int(code) for code in codes}


@needs_extension
def test_codes_are_those_of_the_extension():
    ops = numbers_of(records.OpCode)
    # The extension draws without a block.
    assert ops.pop("draw") == max(ops.values()) + 1
    assert _C.codes() == {
        "activation": numbers_of(records.ActivationCode),
        "flow": {name: number for name, number in KIND_IDS.items() if name is not None},
        "gate": numbers_of(records.GateCode),
        "head": numbers_of(records.HeadCode),
        "likelihood": LIKELIHOOD_IDS,
        "op": ops,
    }


@needs_extension
def test_records_are_those_of_the_extension():
    assert _C.record_fields() == {
        name: ", ".join(record._fields)
        for name, record in (
            ("sizes", records.SizesRecord),
            ("head", records.HeadRecord),
            ("buffer", records.BufferRecord),
            ("tap", records.TapRecord),
            ("node", records.NodeRecord),
        )
    }


def test_codes_are_those_of_the_ops():
    activations = numbers_of(records.ActivationCode)
    assert {name: activations[name] for name in ACTIVATION_IDS} == ACTIVATION_IDS
    assert numbers_of(records.GateCode) == GATE_IDS
    assert set(numbers_of(records.HeadCode)) == set(LIKELIHOODS)


def test_every_op_of_a_plan_has_a_code():
    ops = {op for node in get_args(Node) for op in get_args(get_type_hints(node)["op"])}
    assert {op.upper() for op in ops} == {code.name for code in records.OpCode} - {"DRAW"}


def test_buffers_follow_one_another():
    ends = Buffer(2, "pixel", rows=3, left=1, right=2, passes=(1, 1)), Buffer(5, "pixel", passes=(0,) * 5)
    layout, numbers = records.lay_out(Plan(ends, (), (), (), (0, 0)), 4)
    assert layout == [
        records.BufferRecord(channels=2, rows=3, left=1, row_numbers=14, first=0),
        records.BufferRecord(channels=5, rows=1, left=0, row_numbers=20, first=42),
    ]
    assert numbers == 62


@needs_extension
def test_the_extension_refuses_part_of_a_record():
    sizes = [1, 1, 1, 1, 1, 1, 1]
    with pytest.raises(ValueError, match="sizes or head does not hold one whole record"):
        _C.causal_sampler(False, sizes[:-1], [0, 1, 1, 2], [], [], [], [], [], 1.0, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="does not hold whole records"):
        _C.causal_sampler(False, sizes, [0, 1, 1, 2], [1], [], [], [], [], 1.0, 0, 0, 0, 0)
