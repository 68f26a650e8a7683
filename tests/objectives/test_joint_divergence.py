"""The mean ELBO is minus the divergence of two joint distributions, less the entropy of the data, by enumeration."""

import pytest
import torch

from fastvae.objectives import elbo, monte_carlo_elbo

STATES, POINTS = 4, 5


@pytest.fixture
def model():
    """log p(z), log p(x | z) as ``(z, x)``, log q(z | x) as ``(z, x)``, and the data's probabilities."""
    generator = torch.Generator().manual_seed(0)

    def log_table(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    log_p_z = log_table(STATES).log_softmax(0)
    log_p_x = log_table(STATES, POINTS).log_softmax(1)
    log_q = log_table(STATES, POINTS).log_softmax(0)
    return log_p_z, log_p_x, log_q, log_table(POINTS).softmax(0)


def minus_divergence_and_entropy(log_p_z, log_p_x, log_q, data):
    joint_q = log_q + data.log()
    joint_p = log_p_z[:, None] + log_p_x
    return -(joint_q.exp() * (joint_q - joint_p)).sum() + (data * data.log()).sum()


def test_elbo_by_the_divergence_of_the_posterior(model):
    log_p_z, log_p_x, log_q, data = model
    q = log_q.exp()
    bound = elbo((q * log_p_x).sum(0), (q * (log_q - log_p_z[:, None])).sum(0))
    torch.testing.assert_close((data * bound).sum(), minus_divergence_and_entropy(*model))


def test_elbo_by_samples(model):
    log_p_z, log_p_x, log_q, data = model
    bound = (log_q.exp() * monte_carlo_elbo(log_p_x, log_p_z[:, None].expand_as(log_q), log_q)).sum(0)
    torch.testing.assert_close((data * bound).sum(), minus_divergence_and_entropy(*model))


def test_elbo_at_the_exact_posterior_is_the_likelihood(model):
    log_p_z, log_p_x, _, data = model
    joint = log_p_z[:, None] + log_p_x
    log_q = joint.log_softmax(0)
    for value in monte_carlo_elbo(log_p_x, log_p_z[:, None].expand_as(log_q), log_q):
        torch.testing.assert_close(value, joint.logsumexp(0))
    exact = minus_divergence_and_entropy(log_p_z, log_p_x, log_q, data)
    torch.testing.assert_close(exact, (data * joint.logsumexp(0)).sum())
