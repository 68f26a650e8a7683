"""The estimators that ``sbn`` trains with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ....likelihoods import bernoulli_log_prob
from ....nn import InputBaseline
from ....objectives import (
    RunningBaseline,
    antithetic_gradient,
    concrete_sample,
    leave_one_out,
    rebar,
    score_function,
    vimco_bound,
)
from .config import SBNTrainConfig
from .model import SBN, Latents, draw_uniforms

__all__ = ["Baselines", "Estimate", "estimate"]


class Estimate(NamedTuple):
    """Of a batch: what to maximise, ``(N,)``, the bound of one sample, ``(N,)``, and a loss of the baseline, 0-d."""

    objective: Tensor
    elbo: Tensor
    baseline_loss: Tensor | float = 0.0


class Baselines(nn.Module):
    """What the estimators learn besides the model."""

    def __init__(self, config: SBNTrainConfig, data_features: int) -> None:
        super().__init__()
        self.running = RunningBaseline(config.baseline_decay)
        self.of_input = InputBaseline(data_features) if config.estimator == "nvil" else None


def estimate(model: SBN, x: Tensor, config: SBNTrainConfig, baselines: Baselines, **noise: Any) -> Estimate:
    """The estimate of ``config.estimator`` for binary images ``(N, pixels)``; ``noise`` as of :meth:`SBN.draw`."""
    return _ESTIMATES[config.estimator](model, x, config, baselines, **noise)


def _signal(model: SBN, x: Tensor, latents: Latents) -> tuple[Tensor, Tensor]:
    """log p(x, b) - log q(b | x), log q as a constant; and log q."""
    log_q = torch.stack(latents.log_q).sum(0)
    return model.log_joint(x, latents.layers) - log_q.detach(), log_q


def _reinforce(model: SBN, x: Tensor, config: SBNTrainConfig, baselines: Baselines, **noise: Any) -> Estimate:
    signal, log_q = _signal(model, x, model.draw_latents(model.encode(x), **noise))
    baseline = baselines.running(signal) if config.estimator == "running" else None
    return Estimate(signal + score_function(log_q, signal, baseline=baseline), signal.detach())


def _nvil(model: SBN, x: Tensor, config: SBNTrainConfig, baselines: Baselines, **noise: Any) -> Estimate:
    signal, log_q = _signal(model, x, model.draw_latents(model.encode(x), **noise))
    assert baselines.of_input is not None
    predicted = baselines.of_input(2.0 * x - 1.0)
    mean, _ = baselines.running.moments()
    left = signal.detach() - predicted
    weight = baselines.running.normalise(left)
    return Estimate(signal + score_function(log_q, weight), signal.detach(), (left - mean).square().mean())


def _leave_one_out(model: SBN, x: Tensor, config: SBNTrainConfig, baselines: Baselines, **noise: Any) -> Estimate:
    signal, log_q = _signal(model, x, model.draw_latents(model.encode(x), (config.k,), **noise))
    objective = signal + score_function(log_q, signal, baseline=leave_one_out(signal))
    return Estimate(objective.mean(0), signal.detach().mean(0))


def _vimco(model: SBN, x: Tensor, config: SBNTrainConfig, baselines: Baselines, **noise: Any) -> Estimate:
    latents = model.draw_latents(model.encode(x), (config.k,), **noise)
    log_q = torch.stack(latents.log_q).sum(0)
    log_w = model.log_joint(x, latents.layers) - log_q
    return Estimate(vimco_bound(log_w, log_q), log_w.detach().mean(0))


def _antithetic(model: SBN, x: Tensor, config: SBNTrainConfig, baselines: Baselines, **noise: Any) -> Estimate:
    """A pair for each layer of units: those below it are the first ones of their pairs, those above are drawn anew."""
    logits, objective, elbo = model.encode(x), None, x.new_empty(0)
    below: tuple[Tensor, ...] = ()
    log_q_below: tuple[Tensor, ...] = ()
    for depth in range(len(model.encoders)):
        pair, log_q, zero_of = _draw_pair(model, logits, config, **noise)
        both = tuple(b.expand_as(pair) for b in below)
        latents = model.draw_above((*both, pair), (*(q.expand_as(log_q) for q in log_q_below), log_q), **noise)
        with torch.set_grad_enabled(torch.is_grad_enabled() and depth == 0):
            signal, _ = _signal(model, x, latents)
        zero = zero_of(signal.detach())
        if objective is None:
            objective, elbo = signal.mean(0) + zero, signal.detach().mean(0)
        else:
            objective = objective + zero
        if depth + 1 < len(model.encoders):
            below, log_q_below = (*below, pair[0]), (*log_q_below, log_q[0])
            logits = model.encoders[depth + 1](2.0 * pair[0] - 1.0)
    assert objective is not None
    return Estimate(objective, elbo)


def _draw_pair(
    model: SBN, logits: Tensor, config: SBNTrainConfig, **noise: Any
) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """A pair, its log q, and what makes the zero with the gradient of its signal."""
    if config.estimator == "disarm":
        pair, log_q = model.draw(logits, antithetic=True, **noise)
        return pair, log_q, lambda signal: antithetic_gradient(logits, signal, b=pair)
    uniforms = draw_uniforms(logits, **noise)
    pair, log_q = model.draw_by(logits, uniforms, antithetic=True)
    return pair, log_q, lambda signal: antithetic_gradient(logits, signal, uniforms=uniforms)


def _signal_of_units(model: SBN, x: Tensor, logits: Tensor) -> Callable[[Tensor], Tensor]:
    """The bound of one sample as a function of units, which may be relaxed; logits are constants."""
    fixed = logits.detach()

    def signal(b: Tensor) -> Tensor:
        return model.log_joint(x, (b,)) - bernoulli_log_prob(b, fixed)

    return signal


def _rebar(model: SBN, x: Tensor, config: SBNTrainConfig, baselines: Baselines, **noise: Any) -> Estimate:
    logits = model.encode(x)
    uniforms = torch.stack([draw_uniforms(logits, **noise) for _ in range(2)])
    signal = _signal_of_units(model, x, logits)
    objective = rebar(signal, logits, temperature=config.temperature, uniforms=uniforms)
    return Estimate(objective, objective.detach())


def _concrete(model: SBN, x: Tensor, config: SBNTrainConfig, baselines: Baselines, **noise: Any) -> Estimate:
    """Relaxed units all the way up; the bound is that of units that are not."""
    below, layers, log_q = x, [], []
    for encoder in model.encoders:
        logits = encoder(2.0 * below - 1.0)
        below = concrete_sample(logits, config.temperature, uniforms=draw_uniforms(logits, **noise))
        layers.append(below)
        log_q.append(bernoulli_log_prob(below, logits.detach()))
    objective = model.log_joint(x, layers) - torch.stack(log_q).sum(0)
    with torch.no_grad():
        elbo, _ = _signal(model, x, model.draw_latents(model.encode(x), **noise))
    return Estimate(objective, elbo)


_ESTIMATES = {
    "reinforce": _reinforce,
    "running": _reinforce,
    "nvil": _nvil,
    "loo": _leave_one_out,
    "vimco": _vimco,
    "arm": _antithetic,
    "disarm": _antithetic,
    "rebar": _rebar,
    "concrete": _concrete,
}
