"""The bound of data without a label, by enumeration of the classes."""

import math

import pytest
import torch
from torch.distributions import Categorical, MultivariateNormal, Normal

from fastvae.objectives import class_bound, elbo

C = 4


def draw(dtype=torch.float64):
    numbers, uniform, logits = torch.randn(5, C), torch.rand(5, C), torch.randn(5, C)
    return tuple(t.to(dtype) for t in (10 * numbers - 90, 5 * uniform, logits))


def test_by_hand():
    log_likelihood, kl, logits = draw()
    log_prior = torch.randn(C, dtype=torch.float64).log_softmax(-1)
    bound, labelled = class_bound(log_likelihood, kl, logits, log_prior)
    torch.testing.assert_close(labelled, elbo(log_likelihood, kl) + log_prior)
    q = Categorical(logits=logits)
    torch.testing.assert_close(bound, (q.probs * labelled).sum(-1) + q.entropy())
    uniform = class_bound(log_likelihood, kl, logits, torch.full((C,), -math.log(C), dtype=torch.float64))
    torch.testing.assert_close(class_bound(log_likelihood, kl, logits), uniform)


def test_gradients_by_enumeration():
    """Those of a sum over the classes, each a plain expression."""
    log_likelihood, kl, logits = (t.requires_grad_() for t in draw())
    bound, labelled = class_bound(log_likelihood, kl, logits)
    upstream, of_labelled = torch.randn_like(bound), torch.randn_like(labelled)
    got = torch.autograd.grad((bound, labelled), (log_likelihood, kl, logits), (upstream, of_labelled))
    total = bound.new_zeros(())
    for y in range(C):
        term = log_likelihood[:, y] - kl[:, y] - math.log(C)
        log_q = logits[:, y] - logits.exp().sum(-1).log()
        total = total + (upstream * log_q.exp() * (term - log_q)).sum() + (of_labelled[:, y] * term).sum()
    torch.testing.assert_close(got, torch.autograd.grad(total, (log_likelihood, kl, logits)))
    inputs = [t[:2].detach().requires_grad_() for t in (log_likelihood, kl, logits)]
    assert torch.autograd.gradcheck(class_bound, inputs)
    assert torch.autograd.gradgradcheck(class_bound, inputs)


@pytest.mark.parametrize("sure", [math.inf, 1e4, 200.0])
def test_sure_class_is_the_labelled_bound(sure):
    """Impossible classes, with a logit of -inf or one that underflows, add nothing, whatever their terms are."""
    log_likelihood, kl, _ = draw(dtype=torch.float32)
    log_likelihood[:, 1] = -math.inf
    logits = torch.full((5, C), -sure)
    logits[:, 2] = 0.0
    leaves = [t.requires_grad_() for t in (log_likelihood, kl, logits)]
    bound, labelled = class_bound(*leaves)
    assert torch.equal(bound, labelled[:, 2])
    d_log_likelihood, d_kl, d_logits = torch.autograd.grad(bound.sum(), leaves)
    one_hot = torch.zeros(5, C).index_fill_(1, torch.tensor(2), 1.0)
    assert torch.equal(d_log_likelihood, one_hot)
    assert torch.equal(d_kl, -one_hot)
    torch.testing.assert_close(d_logits, torch.zeros(5, C))


def test_class_without_prior_probability_leaves_no_bound():
    log_likelihood, kl, logits = draw()
    log_prior = torch.tensor([0.0, 0.0, 0.0, -math.inf], dtype=torch.float64)
    assert class_bound(log_likelihood, kl, logits, log_prior)[0].tolist() == [-math.inf] * 5


def test_order_of_classes_does_not_matter():
    given, order = draw(), torch.randperm(C)
    bound, labelled = class_bound(*given)
    other_bound, other_labelled = class_bound(*(t[:, order] for t in given))
    torch.testing.assert_close(other_bound, bound)
    torch.testing.assert_close(other_labelled, labelled[:, order])


def test_exact_posteriors_give_log_p():
    """A mixture of linear Gaussians: with q(z | x, y) and q(y | x) exact the bound is log p(x), for any z."""
    d, k = 3, 2
    prior = torch.randn(C, dtype=torch.float64).log_softmax(-1)
    loading, mean = torch.randn(C, d, k, dtype=torch.float64), torch.randn(C, d, dtype=torch.float64)
    covariance = loading @ loading.mT + 0.5 * torch.eye(d, dtype=torch.float64)
    x, z = torch.randn(6, d, dtype=torch.float64), torch.randn(6, C, k, dtype=torch.float64)
    log_p_x_y = MultivariateNormal(mean, covariance).log_prob(x[:, None]) + prior
    precision = torch.eye(k, dtype=torch.float64) + 2.0 * loading.mT @ loading
    centre = torch.linalg.solve(precision, 2.0 * loading.mT @ (x[:, None] - mean).unsqueeze(-1)).squeeze(-1)
    log_q_z = MultivariateNormal(centre, precision_matrix=precision).log_prob(z)
    log_p_z = Normal(0.0, 1.0).log_prob(z).sum(-1)
    rebuilt = mean + (loading @ z.unsqueeze(-1)).squeeze(-1)
    log_likelihood = Normal(rebuilt, math.sqrt(0.5)).log_prob(x[:, None]).sum(-1)
    bound, labelled = class_bound(log_likelihood, log_q_z - log_p_z, log_p_x_y.log_softmax(-1), prior)
    torch.testing.assert_close(labelled, log_p_x_y)
    torch.testing.assert_close(bound, log_p_x_y.logsumexp(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_dtypes_and_samples(dtype):
    log_likelihood, kl, logits = (t.to(dtype) for t in (torch.randn(3, 5, C), torch.rand(5, C), torch.randn(5, C)))
    bound, labelled = class_bound(log_likelihood, kl, logits)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert (bound.shape, labelled.shape, bound.dtype, labelled.dtype) == ((3, 5), (3, 5, C), wide, wide)
    each = [class_bound(one.double(), kl.double(), logits.double())[0] for one in log_likelihood]
    torch.testing.assert_close(bound.double(), torch.stack(each), rtol=1e-5, atol=1e-5)
    assert class_bound(log_likelihood[:0], kl, logits)[0].shape == (0, 5)
    one = class_bound(log_likelihood[..., :1], kl[:, :1], logits[:, :1])
    assert torch.equal(one[0], one[1][..., 0])


def test_compile_and_transforms():
    given = draw()
    expected = class_bound(*given)
    torch.testing.assert_close(torch.compile(class_bound, fullgraph=True, backend="aot_eager")(*given), expected)
    torch.testing.assert_close(torch.func.vmap(class_bound)(*given), expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"log_likelihood": torch.zeros(())}, ValueError, r"log_likelihood must have shape \(\*, C\) with C >= 1"),
        ({"log_likelihood": torch.zeros(5, 0)}, ValueError, r"log_likelihood must have .* C >= 1, got \(5, 0\)"),
        ({"kl": torch.zeros(5, 1)}, ValueError, r"kl must have the shape of log_likelihood, \(5, 4\).*got \(5, 1\)"),
        ({"kl": torch.zeros(5)}, ValueError, "kl must have the shape of log_likelihood"),
        ({"class_logits": torch.zeros(2, 5, C)}, ValueError, "class_logits must have the shape of log_likelihood"),
        ({"log_prior": torch.zeros(3)}, ValueError, "log_prior must have the shape of log_likelihood"),
        ({"class_logits": torch.zeros(5, C).long()}, TypeError, "class_logits must be floating point, got torch.int64"),
        ({"kl": 0.0}, TypeError, "kl must be a tensor, got float"),
    ],
)
def test_errors(change, error, message):
    given = {"log_likelihood": torch.zeros(5, C), "kl": torch.zeros(5, C), "class_logits": torch.zeros(5, C)} | change
    with pytest.raises(error, match=message):
        class_bound(**given)
