"""The system ``hvi``."""

import math

import pytest
import torch

from fastvae.distributions import DiagonalGaussian
from fastvae.objectives import standard_normal_log_prob
from fastvae.recipes.leapfrog import leapfrog
from fastvae.recipes.systems.hvi.config import HVIConfig, HVITrainConfig
from fastvae.recipes.systems.hvi.model import HVI, Encoded

CONFIGS = {
    "dense": HVIConfig("dense", 2, 3, hidden_features=(8,), momentum_features=5),
    "conv": HVIConfig("conv", 2, 3, (2, 3, 2), (8,), 5),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=CONFIGS)
def model(request):
    torch.manual_seed(4)
    made = HVI(CONFIGS[request.param]).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return made


@pytest.fixture
def x():
    return torch.rand(4, 784, generator=seeded(3), dtype=torch.float64).round()


def quartic(z):
    return -z.pow(3) - z.roll(1, -1)


def test_leapfrog_is_reversible():
    z, v = torch.randn(2, 7, 5, generator=seeded(), dtype=torch.float64)
    step_size, mass = torch.rand(2, 5, generator=seeded(1), dtype=torch.float64) * 0.3 + 0.1
    there = leapfrog(z, v, quartic, step_size, mass)
    back_z, back_v = leapfrog(there[0], -there[1], quartic, step_size, mass)
    assert (there[0] - z).abs().max() > 1e-2
    assert max((back_z - z).abs().max(), (back_v + v).abs().max()) < 1e-10


def test_leapfrog_keeps_the_volume():
    point = torch.randn(2, 3, generator=seeded(), dtype=torch.float64)
    step_size, mass = torch.tensor([[0.1, 0.3, 0.2], [1.0, 2.0, 0.5]], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(
        lambda p: torch.stack(leapfrog(p[0], p[1], quartic, step_size, mass)), point
    )
    assert torch.linalg.det(jacobian.reshape(6, 6)).item() == pytest.approx(1.0, abs=1e-10)


def test_gradient_of_the_decoder(model, x):
    z = torch.randn(2, 4, 3, generator=seeded(), dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(model.decoder.log_prob(x, z).sum(), z, create_graph=True)
    log_p_x, found = model.decoder.gradient(x, z)
    torch.testing.assert_close(log_p_x, model.decoder.log_prob(x, z))
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(z)
    weights = [p for p in model.decoder.parameters() if p is not model.decoder.last_bias]
    for ours, theirs in zip(
        torch.autograd.grad((found * direction).sum(), [z, *weights]),
        torch.autograd.grad((expected * direction).sum(), [z, *weights]),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        log_p_x, found = model.decoder.gradient(x, z.detach())
    assert not log_p_x.requires_grad
    torch.testing.assert_close(found, expected.detach())


def test_bound_by_hand(model, x):
    eps = torch.randn(6, 4, 9, generator=seeded(1), dtype=torch.float64)
    encoded = model.encode(x)
    q = encoded.start
    z = q.mu + q.log_sigma.exp() * eps[..., :3]
    bound = -normal(z, q.mu, q.log_sigma)
    for t in range(2):
        mu, log_sigma = model.momenta[t](encoded.features, z)
        v = mu + log_sigma.exp() * eps[..., 3 + 3 * t : 6 + 3 * t]
        bound = bound - normal(v, mu, log_sigma)
        step_size, mass = 0.5 * model.step_logits[t].sigmoid(), model.log_mass[t].exp()
        v = v + 0.5 * step_size * joint_gradient(model, x, z)
        z = z + step_size * v / mass
        v = v + 0.5 * step_size * joint_gradient(model, x, z)
        bound = bound + normal(v, *model.reverse[t](encoded.features, z))
    bound = bound + model.decoder.log_prob(x, z) + standard_normal_log_prob(z)
    torch.testing.assert_close(model.log_weights(x, encoded, 6, eps=eps), bound)
    log_p_x, kl = model.measure(x, encoded, eps=eps[0])
    torch.testing.assert_close(log_p_x - kl[:, 0], bound[0])


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_steps_share_the_gradient_where_they_meet(steps, x, monkeypatch):
    model = HVI(HVIConfig("dense", steps, 3, hidden_features=(8,), momentum_features=5)).double()
    asked, gradient = [], model.decoder.gradient
    monkeypatch.setattr(model.decoder, "gradient", lambda x, z: asked.append(z) or gradient(x, z))
    drawn = model.draw(model.encode(x), generator=seeded())
    assert len(asked) == (steps + 1 if steps else 0)
    torch.testing.assert_close(drawn.log_p_x, model.decoder.log_prob(x, drawn.z))


def joint_gradient(model, x, z):
    at = z.detach().requires_grad_()
    joint = (model.decoder.log_prob(x, at) + standard_normal_log_prob(at)).sum()
    return torch.autograd.grad(joint, at)[0]


def normal(z, mu, log_sigma):
    return (-0.5 * ((z - mu) / log_sigma.exp()).square() - log_sigma - 0.5 * math.log(2 * math.pi)).sum(-1)


def test_compiler_takes_the_gradient_of_convolutions(x):
    torch.manual_seed(4)
    decoder = HVI(CONFIGS["conv"]).double().decoder
    z, weights = torch.randn(4, 3, generator=seeded(1), dtype=torch.float64), list(decoder.parameters())

    def cost(z):
        log_p_x, gradient = decoder.gradient(x, z)
        return (log_p_x - gradient.square().sum(-1)).sum()

    compiled = torch.compile(cost, fullgraph=True, backend="aot_eager")
    found, expected = (torch.autograd.grad(function(z), weights) for function in (compiled, cost))
    torch.testing.assert_close(found, expected)


def test_without_steps_it_is_a_vae(x):
    model = HVI(HVIConfig("dense", 0, 3, hidden_features=(8,))).double()
    q = model.encode(x).start
    z, log_q = q.rsample_with_log_prob((5,), generator=seeded())
    expected = model.decoder.log_prob(x, z) + standard_normal_log_prob(z) - log_q
    torch.testing.assert_close(model.log_weights(x, model.encode(x), 5, generator=seeded()), expected)


def test_noise_does_not_depend_on_the_shares_of_a_batch(model, x):
    whole = model.log_weights(x, model.encode(x), 3, generator=seeded(7))
    parts = [
        model.log_weights(x[rows], model.encode(x[rows]), 3, generator=seeded(7), row_offset=rows.start)
        for rows in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(torch.cat(parts, 1), whole)


class Linear(torch.nn.Module):
    """z ~ N(0, I), x ~ N(b z, s^2) by dimension."""

    def __init__(self, b, s):
        super().__init__()
        self.b, self.s = b, s

    def log_prob(self, x, z):
        return DiagonalGaussian(self.b * z, self.s.log().expand_as(z)).log_prob(x.expand_as(z))

    def gradient(self, x, z):
        return self.log_prob(x, z), self.b * (x - self.b * z) / self.s.square()


def test_exact_reverse_model_gives_log_p():
    """The dynamics of a Gaussian are linear: a start can be chosen from which one step ends in the exact posterior."""
    b, s = torch.tensor([[1.3, -0.4, 0.8], [0.6, 0.9, 0.4]], dtype=torch.float64)
    x = torch.randn(5, 3, generator=seeded(2), dtype=torch.float64)
    model = HVI(HVIConfig("dense", 1, 3, hidden_features=(3,))).double()
    model.decoder = Linear(b, s)
    precision = 1 + (b / s).square()
    mean = b * x / s.square() / precision
    with torch.no_grad():
        step_size, mass = 0.5 * model.step_logits[0].sigmoid(), model.log_mass[0].exp()
    zero, one = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)

    def step(z, v):
        return leapfrog(z, v, lambda at: -precision * at, step_size, mass)

    # (z1, v1) = A (z0, v0) around the mean, by dimension; v0 has variance 0.7.
    (a, c), (d, e) = step(one, zero), step(zero, one)
    v_variance = 0.7 * one
    z_variance = (1 / precision - d.square() * v_variance) / a.square()
    covariance = a * c * z_variance + d * e * v_variance
    v1_variance = c.square() * z_variance + e.square() * v_variance
    slope = covariance * precision
    residual = v1_variance - covariance.square() * precision
    model.momenta[0].forward = lambda features, z: (torch.zeros_like(z), 0.5 * v_variance.log().expand_as(z))
    model.reverse[0].forward = lambda features, z: (slope * (z - mean), 0.5 * residual.log().expand_as(z))
    encoded = Encoded(x, x, DiagonalGaussian(mean, 0.5 * z_variance.log().expand_as(mean)))
    total = 0.5 * (b.square() + s.square()).log()
    expected = DiagonalGaussian(torch.zeros_like(x), total.expand_as(x)).log_prob(x)
    found = model.log_weights(x, encoded, 6, generator=seeded())
    torch.testing.assert_close(found, expected.expand(6, 5), rtol=1e-10, atol=1e-10)


def test_start_of_a_new_model(model, x):
    """Features and logits vary by 1 over the first batch, and the intensities are those asked for."""
    x = (torch.rand(64, 784, generator=seeded(3)) < torch.linspace(0.1, 0.6, 784)).double()
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)]
    others, seen = {name: value.clone() for name, value in model.state_dict().items()}, {}
    eps, means = torch.randn(64, model.noise_features, generator=seeded(5)).double(), torch.full((784,), 0.2).double()
    model.initialize_from(x, means, eps=eps)
    for layer in layers:
        layer.register_forward_hook(lambda layer, args, output: seen.update({layer: output}))
    z, _ = model.encode(x).start.rsample_with_log_prob(eps=eps[:, :3])
    logits = model.decode(z)
    seen.pop(model.head.linear)
    assert len(seen) >= 3
    for output in seen.values():
        dims = [0, 2, 3] if output.dim() == 4 else [0]
        std = torch.std(output, dims, correction=0)
        # A unit may be constant: all its inputs are.
        torch.testing.assert_close(std[std > 1e-6], torch.ones_like(std[std > 1e-6]), rtol=1e-6, atol=0)
    spread = (logits - means.logit()).square().mean()
    assert 0.5 < spread < 2.0
    for name, value in others.items():
        if not name.startswith(("encoder.", "decoder.")):
            assert torch.equal(model.state_dict()[name], value), name


def test_settings():
    with pytest.raises(ValueError, match=r"hidden_features must be one size for network='conv', got \(5, 4\)"):
        HVIConfig(hidden_features=(5, 4))
    with pytest.raises(ValueError, match="leapfrog must be >= 0, got -1"):
        HVIConfig(leapfrog=-1)
    with pytest.raises(ValueError, match=r"final_learning_rate must be between 0 and learning_rate=0.001, got 1"):
        HVITrainConfig(final_learning_rate=1.0)
