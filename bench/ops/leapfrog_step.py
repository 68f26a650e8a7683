"""A training step of Hamiltonian variational inference with four leapfrog steps, beside the way people write it.

The usual way takes the gradient of the joint density by autograd at both ends of every leapfrog step, and the
likelihood of the last latents in a pass of its own. ``torch.compile`` refuses second derivatives by autograd: it gets
``torch.func.grad``. All have the same weights at first.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..task import Case
from ..usual_steps import Built, make_task

LEAPFROG, MOST_STEP = 4, 0.5


def _model(case: Case, impl: Any, network: Any) -> Any:
    from fastvae.recipes.systems.hvi.config import HVIConfig
    from fastvae.recipes.systems.hvi.model import HVI

    config = HVIConfig(network, LEAPFROG, latent_features=case.shape.columns, impl=impl)
    return HVI(config).to(case.device, case.torch_dtype)


def _fastvae(case: Case, impl: str, network: str) -> Built:
    model = _model(case, impl, network)

    def loss(x: Tensor) -> Tensor:
        log_p_x, kl = model.measure(x)
        return -(log_p_x - kl[:, 0]).mean()

    return model, loss


class Plain(nn.Module):
    """The weights of the model, and its bound in plain PyTorch."""

    def __init__(self, model: Any, functional_gradient: bool) -> None:
        super().__init__()
        self.model, self.functional_gradient = model, functional_gradient

    def log_p(self, x: Tensor, z: Tensor) -> Tensor:
        logits = self.model.decoder(z)
        return -functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)

    def gradient(self, x: Tensor, z: Tensor) -> Tensor:
        def log_joint(z: Tensor) -> Tensor:
            return (self.log_p(x, z) - 0.5 * z.square().sum(-1)).sum()

        if self.functional_gradient:
            found: Tensor = torch.func.grad(log_joint)(z)
        else:
            (found,) = torch.autograd.grad(log_joint(z), z, create_graph=True)
        return found

    def forward(self, x: Tensor) -> Tensor:
        model, features = self.model, self.model.encoder(x)
        z, cost = _draw(_gaussian(model.head, features))
        for t in range(LEAPFROG):
            v, log_q = _draw(_momentum(model.momenta[t], features, z))
            step, mass = MOST_STEP * model.step_logits[t].sigmoid(), model.log_mass[t].exp()
            v = v + 0.5 * step * self.gradient(x, z)
            z = z + step * v / mass
            v = v + 0.5 * step * self.gradient(x, z)
            cost = cost + log_q - _log_normal(v, *_momentum(model.reverse[t], features, z))
        log_p_z = _log_normal(z, torch.zeros_like(z), torch.zeros_like(z))
        return -(self.log_p(x, z) + log_p_z - cost).mean()


def _gaussian(head: Any, features: Tensor) -> tuple[Tensor, Tensor]:
    mu, log_sigma = head.linear(features).chunk(2, -1)
    return mu, log_sigma.clamp(*head.log_sigma_bounds)


def _momentum(network: Any, features: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    return _gaussian(network.head, network.hidden(torch.cat([features, z], -1)))


def _log_normal(value: Tensor, mu: Tensor, log_sigma: Tensor) -> Tensor:
    return (-0.5 * ((value - mu) / log_sigma.exp()).square() - log_sigma - 0.5 * math.log(2.0 * math.pi)).sum(-1)


def _draw(of: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    mu, log_sigma = of
    value = mu + log_sigma.exp() * torch.randn_like(mu)
    return value, _log_normal(value, mu, log_sigma)


def _usual(case: Case, network: str, functional_gradient: bool) -> Built:
    plain = Plain(_model(case, "reference", network), functional_gradient)
    return plain, plain


TASKS = tuple(
    make_task(
        "leapfrog_step",
        f"hvi-{network}",
        32,
        fastvae=partial(_fastvae, network=network),
        usual=partial(_usual, network=network, functional_gradient=False),
        usual_compiled=partial(_usual, network=network, functional_gradient=True),
        rows=(128, 512),
        adamax=True,
        most=800.0,
    )
    for network in ("dense", "conv")
)
