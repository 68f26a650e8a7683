"""Small Gaussians under a compiler on a CPU are formulas, with the noise of the kernels."""

import pytest
import torch

import fastvae.functional as F
from fastvae import backend
from fastvae.backend import Route
from fastvae.ops import _small
from tests.support.gaussians import packed_size

ROWS, D = 6, 9


def parameters(rows=ROWS, d=D):
    tensors = torch.randn(rows, d), 0.3 * torch.randn(rows, d), 0.3 * torch.randn(rows, packed_size(d))
    return [t.requires_grad_() for t in tensors]


CALLS = {
    "diag_gaussian_rsample": lambda m, s, t, i: F.diag_gaussian_rsample(m, s, (2,), row_offset=3, impl=i),
    "diag_gaussian_rsample_with_kl": lambda m, s, t, i: F.diag_gaussian_rsample_with_kl(m, s, impl=i),
    "diag_gaussian_log_prob": lambda m, s, t, i: (F.diag_gaussian_log_prob(torch.ones_like(m), m, s, impl=i),),
    "diag_gaussian_kl": lambda m, s, t, i: (F.diag_gaussian_kl(m, s, impl=i),),
    "tril_gaussian_rsample": lambda m, s, t, i: F.tril_gaussian_rsample(m, s, t, (2,), row_offset=3, impl=i),
    "tril_gaussian_rsample_with_kl": lambda m, s, t, i: F.tril_gaussian_rsample_with_kl(
        m, s, t, kl="dimensions", impl=i
    ),
    "tril_gaussian_kl": lambda m, s, t, i: (F.tril_gaussian_kl(m, s, t, impl=i),),
}


class Recorder:
    """A backend of torch.compile that runs eagerly and keeps the graph."""

    def __call__(self, graph, _):
        self.targets = [str(node.target) for node in graph.graph.nodes]
        return graph

    def has_ops(self):
        """With gradients an op is inside of its autograd function."""
        return any("fastvae" in target or "autograd_function" in target for target in self.targets)


def run(function, inputs):
    torch.manual_seed(0)
    outputs = function(*inputs)
    wanted = [t for t in inputs if t.requires_grad]
    total = sum((0.5 + i) * o.square().sum() for i, o in enumerate(outputs))
    return [*outputs, *(g for g in torch.autograd.grad(total, wanted, allow_unused=True) if g is not None)]


@pytest.mark.parametrize("name", CALLS)
def test_formulas_have_the_noise_and_values_of_the_kernels(name):
    inputs, recorder = parameters(), Recorder()
    compiled = torch.compile(lambda m, s, t: CALLS[name](m, s, t, "auto"), backend=recorder, fullgraph=True)
    found = run(compiled, inputs)
    assert not recorder.has_ops()
    for got, expected in zip(found, run(lambda m, s, t: CALLS[name](m, s, t, "cpp"), inputs), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CALLS)
def test_large_ones_and_those_asked_for_keep_their_op(name, monkeypatch):
    recorder = Recorder()
    torch.compile(lambda m, s, t: CALLS[name](m, s, t, "cpp"), backend=recorder, fullgraph=True)(*parameters())
    assert recorder.has_ops()
    torch.compiler.reset()
    monkeypatch.setattr(_small, "_MOST_NUMBERS", ROWS * D - 1)
    torch.compile(lambda m, s, t: CALLS[name](m, s, t, "auto"), backend=recorder, fullgraph=True)(*parameters())
    assert recorder.has_ops()


def test_the_choice_of_use_keeps_the_op():
    recorder = Recorder()
    with backend.use("cpp"):
        compiled = torch.compile(lambda m, s: F.diag_gaussian_rsample(m, s), backend=recorder, fullgraph=True)
        compiled(*parameters()[:2])
    assert recorder.has_ops()


def test_only_what_the_extension_would_run_is_left(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    left = [impl for impl in ("cpp", "triton", "reference") if _small.is_left_to_compiler("auto", Route(impl), 1)]
    assert left == ["cpp"]


def test_given_noise_is_used():
    mu, log_sigma, _ = parameters()
    eps = torch.randn(ROWS, D)
    compiled = torch.compile(lambda m, s, e: F.diag_gaussian_rsample(m, s, eps=e), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(mu, log_sigma, eps)[0], mu + log_sigma.exp() * eps)
