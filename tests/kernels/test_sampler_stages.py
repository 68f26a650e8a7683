"""What the sampler's kernels run: stages of nodes, launches for rows, and tables of a plan."""

import pytest
import torch

from fastvae.kernels import causal_sampler
from fastvae.kernels._launch import record_launches
from fastvae.kernels._sampler_program import get_program
from fastvae.kernels._sampler_stages import Stage, find_read, form_stages, group_rows, places_of
from fastvae.nn import GatedPixelCNN
from fastvae.sampling import CausalSampler
from fastvae.structure.sampling_plan import ROW, Buffer, Constant, Copy, Gate, Plan, Pointwise, Span
from tests.support.causal_stacks import SIZE, stacks

STACKS = stacks()


def plan_of(stack):
    sampler = CausalSampler(stack.make().eval(), stack.likelihood, in_channels=stack.channels, impl="reference")
    context = None if stack.context is None else stack.context(1, *SIZE)
    return sampler._bind(torch.zeros(1, stack.channels, *SIZE), context)[0]


def reads_of(stage):
    """(place, whether it is of this very row, whether of another column) of all that bears on a stage."""
    yield from ((place, True, False) for place in stage.operands)
    if stage.source is not None and stage.source.op == "conv":
        conv = stage.source
        for tap, dy, dx in conv.taps:
            for i, place in enumerate(places_of(conv.src, range(conv.src.channels))):
                if tap != conv.origin_tap or any(conv.in_degrees[i] <= conv.out_degrees[c] for c in stage.channels):
                    yield place, dy == 0, dx != 0


@pytest.mark.parametrize("name", STACKS)
def test_everything_is_written_before_it_is_read(name):
    plan = plan_of(STACKS[name])
    groups = group_rows(form_stages(plan, ROW))
    launch_of = {}
    for launch, group in enumerate(groups):
        for stage in group:
            for place, is_in_row, is_beside in reads_of(stage):
                if is_in_row and plan.buffers[place[0]].kind == "row":
                    assert launch_of[place] < launch or (launch_of[place] == launch and not is_beside)
            launch_of |= dict.fromkeys(stage.results, launch)
    written = {*launch_of}
    for current in range(plan.num_colors + 1):
        for stage in form_stages(plan, current):
            for place, is_in_row, is_beside in reads_of(stage):
                assert place in written or not is_in_row or is_beside
            written |= {*stage.results}
        written |= {(0, channel) for channel, color in enumerate(plan.image_colors) if color == current}
    every = {(i, c) for i, buffer in enumerate(plan.buffers) for c in range(buffer.channels)}
    assert written == every


@pytest.mark.parametrize(("op", "expected"), [("add", [[], ["add"]]), ("sub", [[], [], ["sub"]])])
def test_an_operand_that_comes_later_begins_a_stage(op, expected):
    """A sum may follow its second operand; a difference follows neither, and loads the first one."""
    buffers = (Buffer(1, "pixel", passes=(1,)), *(Buffer(1, "row") for _ in range(3)), Buffer(1, "pixel", passes=(0,)))
    a, b, c = (Span(i, 0, 1) for i in range(1, 4))
    nodes = (Constant(a, 0), Constant(b, 1), Pointwise(c, a, b, op), Copy(Span(4, 0, 1), c))
    stages = form_stages(Plan(buffers, nodes, (), ((1.0, 1), (2.0, 1)), (0,)), ROW)
    assert [[follower.node.op for follower in stage.followers] for stage in stages] == expected
    assert [stage.source is None for stage in stages] == [False, False, True][: len(stages)]


def test_a_gate_takes_neighbours():
    buffers = (Buffer(1, "pixel", passes=(1,)), Buffer(6, "row"), Buffer(3, "row"), Buffer(3, "pixel", passes=(0,) * 3))
    halves, gated = Span(1, 0, 6), Span(2, 0, 3)
    plan = Plan(buffers, (Constant(halves, 0), Gate(gated, halves, None, "tanh")), (), ((1.0, 6),), (0,))
    (stage,) = form_stages(plan, ROW)
    assert stage.columns == [0, 3, 1, 4, 2, 5]
    assert not stage.can_go_on(stage.followers[0].results)
    # Nothing else reads the halves: they stay out of memory.
    assert find_read(plan, [stage]) == {(3, 0), (3, 1), (3, 2)}


def test_stages_without_a_source_load():
    stage = Stage(None, [], [(1, 0)])
    assert stage.operands == [(1, 0)]
    assert stage.results == []


@pytest.fixture(scope="module")
def gated():
    return CausalSampler(GatedPixelCNN(1, 64, 7, impl="reference").eval(), impl="triton")


def test_launches_of_a_gated_network(gated):
    """A launch for each layer of the vertical stream, and one that draws, for each row."""
    with record_launches(32) as recorded:
        gated.sample(64, 28)
    names = [launch.kernel.__name__ for launch in recorded]
    row, pixel = "_causal_sampler_row_kernel", "_causal_sampler_pixel_kernel"
    assert names == ([row] * 7 + [pixel]) * 28


def test_chain_of_a_gated_network(gated):
    """A pixel waits for two products of each layer, two of the head, and the draw."""
    plan, binding = gated._bind(torch.zeros(1, 1, 28, 28), None)
    columns, terms = causal_sampler._BLOCK_O, causal_sampler._BLOCK_K
    program = get_program(plan, binding, 28, 28, torch.device("cpu"), columns, terms)
    first, end = program.pixel_blocks
    assert end - first == 2 * 7 + 2 + 1
    # The first layer has three terms in one run; the others have so many terms.
    runs = 1 + 6 * (128 // terms) + 7 * (64 // terms) + 2 * (64 // terms)
    assert program.blocks_at // 5 - 1 - program.first_run == runs
    assert get_program(plan, binding, 28, 28, torch.device("cpu"), columns, terms) is program
    weights = sum(t.numel() for t in binding.weights)
    # Masked taps are not there, and little else is but biases.
    assert 131_520 + 412_288 <= program.gather_numbers(binding).numel() < 131_520 + 412_288 + 6000 < weights
