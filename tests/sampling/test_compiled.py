"""Sampling under ``torch.compile``: one op in one graph, with the images of eager."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
from torch._dynamo.testing import EagerAndRecordGraphs

from fastvae.nn import GatedPixelCNN, PixelCNN
from fastvae.sampling import CausalSampler
from tests.support.causal_stacks import Plain, stacks

SIZE = (3, 4)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def make_network(**options):
    return PixelCNN(1, 4, 2, kernel_size=3, **options).eval()


def sample(network, n=2, **options):
    return network.sample(n, SIZE, **options)


def run(function, *args, **options):
    torch.manual_seed(4)
    return function(*args, **options)


def assert_same(got, expected):
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    assert torch.equal(got, expected)


def test_a_graph_holds_one_op():
    backend, network = EagerAndRecordGraphs(), make_network()
    run(torch.compile(sample, fullgraph=True, backend=backend), network)
    (graph,) = backend.graphs
    ops = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert len([name for name in ops if "fastvae" in name]) == 1
    assert not [name for name in ops if "conv" in name or "bernoulli" in name]


def test_images_are_those_of_eager():
    network, compiled = make_network(), torch.compile(sample, fullgraph=True, backend="aot_eager")
    for n in (2, 3, 0):
        assert_same(run(compiled, network, n), run(sample, network, n))


@pytest.mark.parametrize("name", ["gated vector", "colored categorical"])
def test_samplers(name):
    stack, n, size = stacks()[name], 3, 3
    sampler = CausalSampler(stack.make().eval(), stack.likelihood, in_channels=stack.channels)
    context = None if stack.context is None else stack.context(n, size, size)
    given = torch.full((n, stack.channels, size, size), float("nan"))
    given[..., 0] = 0.0

    def draw(context, given):
        options = {"context": context, "given": given, "temperature": 0.7, "row_offset": 2}
        return sampler.sample_with_parameters(n, size, **options)

    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager")
    for got, expected in zip(run(compiled, context, given), run(draw, context, given), strict=True):
        assert_same(got, expected)


def test_a_network_in_half_precision():
    network = make_network().to(torch.bfloat16)
    assert_same(run(torch.compile(sample, fullgraph=True, backend="aot_eager"), network), run(sample, network))


def test_weights_are_those_of_the_call():
    network = make_network(likelihood="categorical")
    compiled = torch.compile(sample, fullgraph=True, backend="aot_eager")
    first = run(compiled, network)
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(3.0)
    second = run(compiled, network)
    assert not torch.equal(first, second)
    assert_same(second, run(sample, network))


def test_a_graph_belongs_to_one_network():
    """A copy of a network, one from a file, and another one of the same sizes have samplers of their own."""
    network = make_network(likelihood="categorical")
    compiled = torch.compile(sample, fullgraph=True, backend="aot_eager")
    run(compiled, network)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network)), make_network(likelihood="categorical")):
        with torch.no_grad():
            for p in other.parameters():
                p.add_(0.5)
        expected = run(sample, other)
        assert_same(run(compiled, other), expected)
        assert not torch.equal(expected, run(compiled, network))


def test_copies_of_samplers():
    sampler = CausalSampler(Plain().eval())
    other = copy.deepcopy(sampler)
    with torch.no_grad():
        for p in other.network.parameters():
            p.neg_()
    compiled = torch.compile(sample, fullgraph=True, backend="aot_eager")
    for each in (sampler, other):
        assert_same(run(compiled, each, 16), run(sample, each, 16))


def arguments_of(network, state, context=None, parameters=0):
    return torch.tensor(3), torch.empty(0), state, context, None, network._number, [2, 1, *SIZE], 1.0, 0, parameters


def test_other_weights_than_the_networks_own_are_refused():
    network = make_network()
    state = [t.detach() for t in network.parameters()]
    torch.ops.fastvae_sampling.draw(*arguments_of(network, [t.clone() for t in state]))
    for others in (state[1:], [2.0 * t for t in state]):
        with pytest.raises(RuntimeError, match="must be called with the network's own parameters"):
            torch.ops.fastvae_sampling.draw(*arguments_of(network, others))


def test_a_network_that_is_gone():
    network = make_network()
    arguments = arguments_of(network, [t.detach() for t in network.parameters()])
    del network
    gc.collect()
    with pytest.raises(RuntimeError, match="does not exist any more: compile it again"):
        torch.ops.fastvae_sampling.draw(*arguments)


def test_errors_are_those_of_eager():
    network = make_network().train()
    compiled = torch.compile(sample, fullgraph=True, backend="aot_eager")
    for options, message in (({"temperature": 0.0}, "temperature"), ({"context": torch.zeros(2, 3)}, "context")):
        with pytest.raises(ValueError, match=message):
            run(compiled, network, **options)
    # The compiler of torch 2.6 keeps the sentences of errors to itself.
    message = "Observed exception" if torch.__version__ < "2.7" else "context must be a tensor"
    with pytest.raises(torch._dynamo.exc.TorchDynamoException, match=message):
        run(compiled, network, context="a word")


def test_opcheck():
    network = GatedPixelCNN(1, 4, 2, context_features=3).eval()
    state = [t.detach() for t in (*network.parameters(), *network.buffers())]
    for parameters in (0, 1):
        arguments = arguments_of(network, state, torch.randn(2, 3), parameters)
        torch.library.opcheck(torch.ops.fastvae_sampling.draw, arguments)
