"""A training step of an auxiliary deep generative model on images without labels, beside the way people write it.

The usual way takes batch statistics of all rows of the enumeration. Both have the same weights at first, ten classes,
and hidden layers of 500 and 500 units.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..task import Case
from ..usual_steps import CLASSES, PIXELS, Built, make_task


def _model(case: Case, impl: str, kind: Any) -> Any:
    from fastvae.recipes.systems.adgm.config import ADGMConfig
    from fastvae.recipes.systems.adgm.model import ADGM

    sizes: dict[str, Any] = {
        "impl": impl,
        "latent_features": case.shape.columns,
        "auxiliary_features": case.shape.columns,
    }
    config = ADGMConfig(kind, **sizes, likelihood="bernoulli", data_features=PIXELS, classes=CLASSES)
    return ADGM(config).to(case.device, case.torch_dtype)


def _fastvae(case: Case, impl: str, kind: str) -> Built:
    model = _model(case, impl, kind)
    return model, lambda x: -model.unlabelled_training_bound(x).mean()


class Plain(nn.Module):
    """The weights of the model as dense layers of joined inputs and one-hot classes, with torch's batch norm."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encode_a = _join(model.encode_a, model.a_head.linear)
        self.classify = _join(model.classify, model.to_classes)
        self.encode_z = _join(model.encode_z, model.z_head.linear)
        self.decode_a = _join(model.decode_a, model.prior_head.linear)
        self.decode_x = _join(model.decode_x, model.to_data)
        self.skips = model.config.kind == "sdgm"

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of images, given the one-hot classes of each image ten times."""
        mu_a, log_sigma_a = self.encode_a(x).chunk(2, -1)
        a = mu_a + log_sigma_a.exp() * torch.randn_like(mu_a)
        log_q_a = _log_normal(a, mu_a, log_sigma_a)
        log_q = self.classify(torch.cat([x, a], -1)).log_softmax(-1)
        images, of_a = x.repeat_interleave(CLASSES, 0), a.repeat_interleave(CLASSES, 0)
        mu, log_sigma = self.encode_z(torch.cat([images, of_a, y], -1)).chunk(2, -1)
        z = mu + log_sigma.exp() * torch.randn_like(mu)
        kl = 0.5 * (mu.square() + (2.0 * log_sigma).exp() - 1.0 - 2.0 * log_sigma).sum(-1)
        of_prior, of_data = ([z, y], [of_a, z, y]) if self.skips else ([images, z, y], [z, y])
        log_p_a = _log_normal(of_a, *self.decode_a(torch.cat(of_prior, -1)).chunk(2, -1))
        logits = self.decode_x(torch.cat(of_data, -1))
        log_p_x = -functional.binary_cross_entropy_with_logits(logits, images, reduction="none").sum(-1)
        bounds = (log_p_x + log_p_a - kl).view(-1, CLASSES) - log_q_a[:, None]
        prior = torch.log(torch.tensor(float(CLASSES)))
        return -(log_q.exp() * (bounds - prior - log_q)).sum(-1).mean()


def _log_normal(value: Tensor, mu: Tensor, log_sigma: Tensor) -> Tensor:
    return torch.distributions.Normal(mu, log_sigma.exp(), validate_args=False).log_prob(value).sum(-1)


def _join(network: Any, last: nn.Linear) -> nn.Sequential:
    if hasattr(network, "first"):
        maps = [*network.first.weights, network.first.class_weight]
    else:
        maps = [layer.weight for layer in network.maps]
    weight = torch.cat(list(maps), 1).detach()
    first = nn.Linear(weight.shape[1], len(weight), bias=False, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        first.weight.copy_(weight)
    layers: list[nn.Module] = [first]
    for index, norm in enumerate(network.hidden.norms):
        layers += [nn.BatchNorm1d(len(norm.gain), device=weight.device, dtype=weight.dtype), nn.ReLU()]
        layers += list(network.hidden.layers[index : index + 1])
    return nn.Sequential(*layers, last)


def _repeated(case: Case, kind: str) -> Built:
    model = Plain(_model(case, "reference", kind))
    classes = torch.eye(CLASSES, device=case.device, dtype=case.torch_dtype)
    return model, lambda x: model(x, classes.repeat(len(x), 1))


TASKS = tuple(
    make_task(
        "auxiliary_step",
        kind,
        100,
        fastvae=partial(_fastvae, kind=kind),
        usual=partial(_repeated, kind=kind),
        most=800.0,
    )
    for kind in ("adgm", "sdgm")
)
