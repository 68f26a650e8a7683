"""Every op in a CUDA graph, forward and backward: a replay does what eager does, on what the inputs hold by then."""

import pytest
import torch

import fastvae.functional as F
from fastvae.graphs import make_graphed_step
from fastvae.nn import MaskedAutoregressiveFlow
from fastvae.sampling import CausalSampler
from tests.gpu.problems import PROBLEMS
from tests.support.causal_stacks import scale_weights, stacks
from tests.support.gaussians import packed_size
from tests.support.oracle import run_with_gradients


def capture(function):
    """The graph of one call, and the tensors that its replays write."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    # Compilation and what is made once may not happen during the capture.
    with torch.cuda.stream(side):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function()
    return graph, results


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PROBLEMS)
def test_replay_is_eager(name, dtype):
    # What a problem keeps to itself is on the device too: a graph takes no copies from pageable memory.
    with torch.device("cuda"):
        problem = PROBLEMS[name]().to(dtype, "cuda")
    upstream = [torch.randn_like(o) for o in problem.outputs("triton")]
    graph, results = capture(lambda: run_with_gradients(problem, "triton", upstream))
    with torch.no_grad():
        for t in (*problem.inputs, *upstream):
            t.mul_(0.5)
    expected = run_with_gradients(problem, "triton", upstream)
    graph.replay()
    torch.cuda.synchronize()
    for i, (got, wanted) in enumerate(zip(results, expected, strict=True)):
        assert torch.equal(got, wanted), f"result {i}"


@pytest.mark.parametrize("stem", ["diag_gaussian", "tril_gaussian"])
def test_replays_draw_anew(stem):
    mu, log_sigma = torch.randn(2, 7, 20, device="cuda")
    tril = () if stem == "diag_gaussian" else (0.1 * torch.randn(7, packed_size(20), device="cuda"),)
    draw, log_prob = (getattr(F, f"{stem}_{entry}") for entry in ("rsample", "log_prob"))
    graph, (z, log_q) = capture(lambda: draw(mu, log_sigma, *tril, impl="triton"))
    drawn = []
    for _ in range(2):
        graph.replay()
        torch.testing.assert_close(log_q, log_prob(z, mu, log_sigma, *tril, impl="reference"), rtol=1e-4, atol=1e-4)
        drawn.append(z.clone())
    assert (drawn[0] != drawn[1]).all()


@pytest.mark.parametrize("name", ["gated", "gated map", "mixture"])
def test_replays_draw_new_images(name):
    stack = stacks()[name]
    sampler = CausalSampler(
        scale_weights(stack.make()).cuda(), stack.likelihood, in_channels=stack.channels, impl="triton"
    )
    context = None if stack.context is None else stack.context(5, 6, 7).cuda()
    graph, (images, parameters) = capture(lambda: sampler.sample_with_parameters(5, (6, 7), context=context))
    drawn = []
    for _ in range(2):
        graph.replay()
        torch.testing.assert_close(parameters, sampler.parameters(images, context), rtol=1e-4, atol=1e-4)
        drawn.append(images.clone())
    assert (drawn[0] != drawn[1]).any()


def test_replayed_training_steps_are_eager_steps():
    """Losses and weights of a flow that is trained in a graph are those of one that is trained without."""
    found = []
    batches = torch.randn(6, 64, 8, device="cuda")
    for graphed in (False, True):
        torch.manual_seed(0)
        flow = MaskedAutoregressiveFlow(8, (32, 32), steps=2, device="cuda")
        optimizer = torch.optim.Adam(flow.parameters(), capturable=True)

        def step(x, flow=flow, optimizer=optimizer):
            optimizer.zero_grad()
            z, log_det = flow.inverse(x)
            loss = (0.5 * z.square().sum(-1) - log_det).mean()
            loss.backward()
            optimizer.step()
            return loss.detach()

        if graphed:
            run = make_graphed_step(step, batches[0], optimizers=[optimizer], warmup=2)
        else:
            run = step
            for _ in range(2):
                step(batches[0])
        found.append([run(x) for x in batches] + [p.detach() for p in flow.parameters()])
    for eager, replayed in zip(*found, strict=True):
        torch.testing.assert_close(replayed, eager, rtol=1e-6, atol=1e-7)


def test_replayed_training_steps_draw_anew():
    log_sigma = torch.nn.Parameter(torch.zeros(16, 8, device="cuda"))
    optimizer = torch.optim.SGD([log_sigma], lr=0.0)

    def step():
        optimizer.zero_grad()
        z, _ = F.diag_gaussian_rsample(torch.zeros_like(log_sigma), log_sigma)
        loss = z.square().sum()
        loss.backward()
        optimizer.step()
        return loss

    graphed = make_graphed_step(step, optimizers=[optimizer])
    assert graphed() != graphed()
