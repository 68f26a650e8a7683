"""Training steps as CUDA graphs, on a stub of torch's graphs: what is captured, copied, replayed and refused."""

from contextlib import contextmanager

import pytest
import torch

from fastvae import graphs
from fastvae.graphs import make_graphed_step


class Stub:
    """A graph runs nothing: a replay calls the captured step again, where its results are."""

    def __init__(self):
        self.log = []

    @contextmanager
    def graph(self, captured):
        self.log.append("capture")
        yield
        self.log.append("end")

    def make(self):
        return self

    def replay(self):
        self.log.append("replay")
        self.on_replay()

    def register_generator_state(self, generator):
        self.log.append(generator)


class Stream:
    def wait_stream(self, other):
        pass


@contextmanager
def nothing(*_):
    yield


@pytest.fixture
def stub(monkeypatch):
    found = Stub()
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", nothing)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", found.make)
    monkeypatch.setattr(torch.cuda, "graph", found.graph)
    # CPU tensors are those of a GPU.
    monkeypatch.setattr(graphs, "_is_on_gpu", lambda t: True)
    return found


def training():
    """A parameter, its optimiser, and a step that fits it to x; what the step wrote lies at the last place."""
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    results = [torch.zeros(())]

    def step(x):
        optimizer.zero_grad()
        loss = (weight - x).square().sum()
        loss.backward()
        optimizer.step()
        results.append(loss)
        return loss

    return weight, optimizer, step, results


def test_replays_are_steps_with_the_inputs_of_the_call(stub):
    weight, optimizer, step, results = training()
    graphed = make_graphed_step(step, torch.zeros(3), optimizers=[optimizer], warmup=2)
    assert stub.log == ["capture", "end"]
    assert len(results) == 1 + 2 + 1
    (memory,) = graphed._inputs
    with torch.no_grad():
        weight.zero_()

    def replay():
        graphed._outputs.copy_(step(memory).detach())

    stub.on_replay = replay
    first = graphed(torch.ones(3))
    assert (first, graphed(torch.ones(3))) == (3.0, pytest.approx(3 * 0.8**2))
    assert first == 3.0, "results are in memory of their own"
    torch.testing.assert_close(weight.detach(), torch.full((3,), 0.36))
    assert stub.log[2:] == ["replay", "replay"]


def test_a_capture_begins_without_gradients_and_knows_generators(stub):
    weight, optimizer, step, _ = training()
    generator, seen = torch.Generator(), []

    def watched(x):
        seen.append(weight.grad)
        return step(x)

    make_graphed_step(watched, torch.zeros(3), optimizers=[optimizer], generators=[generator], warmup=1)
    assert seen == [None, None]
    assert stub.log == [generator, "capture", "end"]


def test_inputs_are_copied(stub):
    batch = torch.zeros(3)
    graphed = make_graphed_step(lambda x: x.sum(), batch)
    assert graphed._inputs[0].data_ptr() != batch.data_ptr()


def test_a_step_may_return_several_tensors_and_take_none(stub):
    stub.on_replay = lambda: None
    graphed = make_graphed_step(lambda: (torch.ones(2), torch.zeros(())))
    assert [t.tolist() for t in graphed()] == [[1.0, 1.0], 0.0]
    for returned in (None, 1.0, (torch.ones(1), 2)):
        with pytest.raises(TypeError, match="step must return"):
            make_graphed_step(lambda returned=returned: returned)


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ((torch.zeros(4),), ValueError, r"inputs\[0\] must have the shape \(3,\).*got \(4,\).*a graph of their own"),
        ((torch.zeros(3).double(),), ValueError, r"inputs\[0\] must have .* the dtype torch.float32.*torch.float64"),
        ((), ValueError, "inputs must be 1 tensors, as in the capture, got 0"),
        ((3.0,), TypeError, r"inputs\[0\] must be a tensor, got float"),
    ],
    ids=["shape", "dtype", "none", "number"],
)
def test_other_inputs_than_those_of_the_capture_are_refused(stub, inputs, error, message):
    graphed = make_graphed_step(lambda x: x.sum(), torch.zeros(3))
    with pytest.raises(error, match=message):
        graphed(*inputs)
    assert "replay" not in stub.log


def test_what_cannot_be_captured_is_refused(stub):
    weight = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match=r"optimizers\[1\] must be capturable.*Adam\(\.\.\., capturable=True\)"):
        make_graphed_step(
            lambda: weight, optimizers=[torch.optim.SGD([weight]), torch.optim.Adam([weight], capturable=False)]
        )
    with pytest.raises(ValueError, match="warmup must be 1 or more, got 0"):
        make_graphed_step(lambda: weight, warmup=0)
    with pytest.raises(TypeError, match=r"inputs\[0\] must be a tensor, got int"):
        make_graphed_step(lambda x: weight, 3)


def test_cpu_tensors_are_refused():
    with pytest.raises(ValueError, match=r"inputs\[0\] must be on a GPU.*got cpu"):
        make_graphed_step(lambda x: x, torch.zeros(3))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(3))])
    with pytest.raises(ValueError, match=r"optimizers\[0\] must hold parameters on a GPU only, got one on cpu"):
        make_graphed_step(lambda: torch.zeros(()), optimizers=[optimizer])
