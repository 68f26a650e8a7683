"""A training step of the model M2 on images without labels, beside the ways in which its users write it.

All have the same weights at first, ten classes, and hidden layers of 500 and 500 units.
"""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..task import Case, Peer
from ..usual_steps import CLASSES, PIXELS, Built, make_task, take_step


def _model(case: Case, impl: Any) -> Any:
    from fastvae.recipes.systems.m2.config import M2Config
    from fastvae.recipes.systems.m2.model import M2

    return M2(M2Config(latent_features=case.shape.columns, impl=impl)).to(case.device, case.torch_dtype)


def _fastvae(case: Case, impl: str) -> Built:
    model = _model(case, impl)
    return model, lambda x: -model.unlabelled_bound(x).mean()


class Plain(nn.Module):
    """The weights of M2 as dense layers of joined images, or latents, and one-hot classes."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = nn.Sequential(_join(model.encoder_in), nn.Softplus(), *model.encoder, model.head.linear)
        self.decoder = nn.Sequential(_join(model.decoder_in), nn.Softplus(), *model.decoder, model.to_data)
        self.classifier = model.classifier

    def posterior(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        mu, log_sigma = self.encoder(torch.cat([x, y], -1)).chunk(2, -1)
        return mu, log_sigma

    def logits(self, z: Tensor, y: Tensor) -> Tensor:
        found: Tensor = self.decoder(torch.cat([z, y], -1))
        return found


def _join(first: Any) -> nn.Linear:
    weight = torch.cat([*first.weights, first.class_weight], 1).detach()
    layer = nn.Linear(weight.shape[1], len(weight), device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(first.bias)
    return layer


def _repeated(case: Case) -> Built:
    model = Plain(_model(case, "reference"))
    classes = torch.eye(CLASSES, device=case.device, dtype=case.torch_dtype)

    def loss(x: Tensor) -> Tensor:
        log_q = model.classifier(x).log_softmax(-1)
        images, y = x.repeat_interleave(CLASSES, 0), classes.repeat(len(x), 1)
        mu, log_sigma = model.posterior(images, y)
        logits = model.logits(mu + log_sigma.exp() * torch.randn_like(mu), y)
        log_p_x = -functional.binary_cross_entropy_with_logits(logits, images, reduction="none").sum(-1)
        kl = 0.5 * (mu.square() + (2.0 * log_sigma).exp() - 1.0 - 2.0 * log_sigma).sum(-1)
        bounds = (log_p_x - kl).view(-1, CLASSES) - torch.log(torch.tensor(float(CLASSES)))
        return -(log_q.exp() * (bounds - log_q)).sum(-1).mean()

    return model, loss


def _pyro(case: Case) -> Built:
    pyro, infer = importlib.import_module("pyro"), importlib.import_module("pyro.infer")
    distributions = importlib.import_module("pyro.distributions")
    network = Plain(_model(case, "reference"))
    start = torch.zeros(case.shape.columns, device=case.device, dtype=case.torch_dtype)
    even = torch.ones(CLASSES, device=case.device, dtype=case.torch_dtype) / CLASSES

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            y = pyro.sample("y", distributions.OneHotCategorical(even))
            z = pyro.sample("z", distributions.Normal(start, torch.ones_like(start)).to_event(1))
            logits = network.logits(z, y.expand(*z.shape[:-1], CLASSES))
            pyro.sample("x", distributions.Bernoulli(logits=logits, validate_args=False).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            of_class = distributions.OneHotCategorical(logits=network.classifier(x))
            y = pyro.sample("y", of_class, infer={"enumerate": "parallel"})
            shape = (CLASSES, len(x))
            mu, log_sigma = network.posterior(x.expand(*shape, PIXELS), y.expand(*shape, CLASSES))
            pyro.sample("z", distributions.Normal(mu, log_sigma.exp()).to_event(1))

    bound = infer.TraceEnum_ELBO(max_plate_nesting=1)
    return network, lambda x: bound.differentiable_loss(model, guide, x) / len(x)


TASKS = (
    make_task(
        "class_step",
        "m2",
        50,
        fastvae=_fastvae,
        usual=_repeated,
        most=700.0,
        peers={"pyro": Peer(lambda case: take_step(partial(_pyro, case)))},
    ),
)
