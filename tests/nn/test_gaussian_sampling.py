"""A head that samples in one call with its layer, and whoever changes the layer."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, parametrize, prune

from fastvae.distributions import TriangularGaussian
from fastvae.nn import TriangularGaussianHead
from fastvae.nn import gaussian as module

ROWS, FEATURES, D = 20, 6, 5


def head_of(head_class=TriangularGaussianHead, **options):
    return head_class(FEATURES, D, **{"log_sigma_bounds": (-0.3, 0.3), "tril_init_scale": 1.0} | options)


def draws(head, features, **options):
    """In one call, and from the posterior."""
    eps = torch.randn(*features.shape[:-1], D).to(features.dtype)
    q = head(features)
    scaled = TriangularGaussian(q.mu, q.log_sigma, options.get("tril_scale", 1.0) * q.tril)
    apart = scaled.rsample_with_kl(eps=eps, kl=options.get("kl", "sum"))
    return head.rsample_with_kl(features, eps=eps, **options), apart


class Counter:
    """Whether calls ran in one with the layer."""

    def __init__(self, monkeypatch):
        self.count, fused = 0, module.linear_tril_gaussian_rsample_with_kl

        def counted(*args, **options):
            self.count += 1
            return fused(*args, **options)

        monkeypatch.setattr(module, "linear_tril_gaussian_rsample_with_kl", counted)


@pytest.fixture
def fused(monkeypatch):
    return Counter(monkeypatch)


@pytest.mark.parametrize("kl", ["sum", "dimensions"])
@pytest.mark.parametrize("tril_scale", [1.0, 0.1, 0.0])
@pytest.mark.parametrize("batch", [(ROWS,), (2, 3), (), (0,), (70,)])
def test_is_the_sample_of_the_posterior(batch, tril_scale, kl, fused):
    head, features = head_of(), torch.randn(*batch, FEATURES)
    torch.testing.assert_close(*draws(head, features, tril_scale=tril_scale, kl=kl))
    assert fused.count == 1


def test_gradients_are_those_of_the_posterior():
    head, features = head_of(dtype=torch.float64), torch.randn(ROWS, FEATURES, dtype=torch.float64, requires_grad=True)
    found = [
        torch.autograd.grad(sum(o.square().sum() for o in outputs), [features, *head.parameters()])
        for outputs in draws(head, features, tril_scale=0.5)
    ]
    torch.testing.assert_close(*found)


def double(*arguments):
    return 2 * arguments[-1]


class Doubling(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Shifted(TriangularGaussianHead):
    def posterior_parameters(self, features):
        mu, log_sigma, tril = super().posterior_parameters(features)
        return mu + 1, log_sigma, tril


class Own(TriangularGaussianHead):
    """A subclass that changes nothing of the posterior."""


def with_hook(head):
    head.linear.register_forward_hook(double)


def with_pre_hook(head):
    head.linear.register_forward_pre_hook(lambda layer, inputs: (2 * inputs[0],))


def with_another_layer(head):
    head.linear = Doubling(FEATURES, head.linear.out_features)


def with_another_forward(head):
    own = head.linear.forward
    head.linear.forward = lambda x: 2 * own(x)


def with_a_wrapper(head):
    head.linear = nn.Sequential(head.linear, nn.Tanh())


def with_a_changed_weight(head):
    parametrize.register_parametrization(head.linear, "weight", nn.Softplus())


CHANGES = {
    "hook": with_hook,
    "hook before": with_pre_hook,
    "weight norm": lambda head: parametrizations.weight_norm(head.linear),
    "spectral norm": lambda head: parametrizations.spectral_norm(head.linear.eval()),
    "older weight norm": lambda head: nn.utils.weight_norm(head.linear),
    "pruning": lambda head: prune.l1_unstructured(head.linear, "weight", 0.5),
    "parametrisation": with_a_changed_weight,
    "another layer": with_another_layer,
    "another forward": with_another_forward,
    "wrapper": with_a_wrapper,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("change", CHANGES)
def test_changed_layers_run_as_they_are(change, fused):
    head, features = head_of(), torch.randn(ROWS, FEATURES)
    before = head(features).mu
    CHANGES[change](head)
    with torch.no_grad():
        for name, p in head.named_parameters():
            if "original0" in name or name.endswith("weight_g"):
                p.mul_(1.5)
    together, apart = draws(head.eval(), features)
    torch.testing.assert_close(together, apart)
    assert not torch.allclose(before, head(features).mu)
    assert fused.count == 0
    sum(o.sum() for o in together).backward()
    assert all(p.grad is not None for p in head.parameters())


def test_hooks_on_all_modules_see_the_layer(fused):
    head, seen = head_of(), []
    handle = register_module_forward_hook(lambda layer, *_: seen.append(layer))
    try:
        head.rsample_with_kl(torch.randn(ROWS, FEATURES))
    finally:
        handle.remove()
    assert seen == [head.linear]
    assert fused.count == 0


def test_removed_changes_leave_the_kernel(fused):
    head, features = head_of(), torch.randn(ROWS, FEATURES)
    head.linear.register_forward_hook(double).remove()
    parametrizations.weight_norm(head.linear)
    parametrize.remove_parametrizations(head.linear, "weight")
    torch.testing.assert_close(*draws(head, features))
    assert fused.count == 1


@pytest.mark.parametrize(("head_class", "count"), [(Shifted, 0), (Own, 1)])
def test_subclasses(head_class, count, fused):
    torch.testing.assert_close(*draws(head_of(head_class), torch.randn(ROWS, FEATURES)))
    assert fused.count == count


def test_pickle_deepcopy_and_state_dict():
    head, features = head_of(), torch.randn(ROWS, FEATURES)
    assert list(head.state_dict()) == ["linear.weight", "linear.bias"]
    fresh = head_of()
    fresh.load_state_dict(head.state_dict())
    eps = torch.randn(ROWS, D)
    expected = head.rsample_with_kl(features, eps=eps)
    for twin in (pickle.loads(pickle.dumps(head)), copy.deepcopy(head), fresh):
        for a, b in zip(twin.rsample_with_kl(features, eps=eps), expected, strict=True):
            assert torch.equal(a, b)


def test_noise_of_a_generator_and_of_rows():
    head, features = head_of(), torch.randn(ROWS, FEATURES)
    whole, again = (head.rsample_with_kl(features, generator=torch.Generator().manual_seed(2)) for _ in range(2))
    part = head.rsample_with_kl(features[7:], generator=torch.Generator().manual_seed(2), row_offset=7)
    for a, b, c in zip(whole, again, part, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a[7:], c)
    drawn = head(features).rsample_with_kl(generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(drawn, whole)


@pytest.mark.parametrize("changes", [False, True])
def test_compile(changes):
    head, features, eps = head_of(), torch.randn(ROWS, FEATURES), torch.randn(ROWS, D)
    if changes:
        with_hook(head)

    def step(features):
        return head.rsample_with_kl(features, eps=eps, tril_scale=0.5)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features), step(features))
    actual, expected = (
        torch.autograd.grad(sum(t.sum() for t in f(features)), head.linear.weight) for f in (compiled, step)
    )
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("rows", [4, ROWS])
def test_bfloat16_and_autocast(rows):
    features = torch.randn(rows, FEATURES)
    head = head_of(dtype=torch.bfloat16)
    torch.testing.assert_close(*draws(head, features.bfloat16()), rtol=0.02, atol=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = head_of().rsample_with_kl(features)
    assert [o.dtype for o in outputs] == [torch.bfloat16, torch.float32, torch.float32]


@pytest.mark.parametrize(("impl", "is_kernel"), [("cpp", True), ("reference", False)])
def test_implementation_of_the_head_is_asked_for(impl, is_kernel):
    z, _, _ = head_of(impl=impl).rsample_with_kl(torch.randn(3, FEATURES))
    assert (z.grad_fn.name() == "_LinearTrilGaussianBackward") == is_kernel


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda h: h.rsample_with_kl([0.0]), TypeError, "features must be a tensor, got list"),
        (lambda h: h.rsample_with_kl(torch.zeros(3, 5)), ValueError, r"features must have shape \(\*, 6\), got"),
        (lambda h: h.rsample_with_kl(torch.zeros(3, 6, device="meta")), ValueError, "features must be on the device"),
        (lambda h: h.rsample_with_kl(torch.zeros(3, 6), kl="mean"), ValueError, "kl must be 'sum' or 'dimensions'"),
    ],
)
@pytest.mark.parametrize("changes", [False, True])
def test_bad_arguments(call, error, match, changes):
    head = head_of()
    if changes:
        parametrizations.weight_norm(head.linear)
    with pytest.raises(error, match=match):
        call(head)
