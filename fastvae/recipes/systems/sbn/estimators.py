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
    monte_carlo_elbo,
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


def estimate(
    model: SBN, x: Tensor, config: SBNTrainConfig, baselines: Baselines, *, beta: float = 1.0, **noise: Any
) -> Estimate:
    """The estimate of ``config.estimator`` for binary images ``(N, pixels)``.

    Args:
        model: the model.
        x: the images.
        config: the settings of the training.
        baselines: what the estimator learns.
        beta: weight of log p(b) - log q(b | x) in the objective; the bound has weight 1.
        noise: as of :meth:`SBN.draw`.
    """
    return _ESTIMATES[config.estimator](model, x, config, baselines, beta, **noise)


class _Signal(NamedTuple):
    """log p(x | b) + beta (log p(b) - log q(b | x)), log q as a constant; log q; and the bound of one sample."""

    signal: Tensor
    log_q: Tensor
    elbo: Tensor


def _signal(model: SBN, x: Tensor, latents: Latents, beta: float) -> _Signal:
    log_q = torch.stack(latents.log_q).sum(0)
    terms = model.log_likelihood(x, latents.layers[0]), model.log_prior(latents.layers), log_q.detach()
    signal = monte_carlo_elbo(*terms, beta=beta)
    with torch.no_grad():
        return _Signal(signal, log_q, signal.detach() if beta == 1 else monte_carlo_elbo(*terms))


def _draw_signal(model: SBN, x: Tensor, beta: float, sample_shape: tuple[int, ...] = (), **noise: Any) -> _Signal:
    return _signal(model, x, model.draw_latents(model.encode(x), sample_shape, **noise), beta)


def _reinforce(
    model: SBN, x: Tensor, config: SBNTrainConfig, baselines: Baselines, beta: float, **noise: Any
) -> Estimate:
    signal, log_q, elbo = _draw_signal(model, x, beta, **noise)
    baseline = baselines.running(signal) if config.estimator == "running" else None
    return Estimate(signal + score_function(log_q, signal, baseline=baseline), elbo)


def _nvil(model: SBN, x: Tensor, config: SBNTrainConfig, baselines: Baselines, beta: float, **noise: Any) -> Estimate:
    signal, log_q, elbo = _draw_signal(model, x, beta, **noise)
    assert baselines.of_input is not None
    predicted = baselines.of_input(2.0 * x - 1.0)
    mean, _ = baselines.running.moments()
    left = signal.detach() - predicted
    weight = baselines.running.normalise(left)
    return Estimate(signal + score_function(log_q, weight), elbo, (left - mean).square().mean())


def _leave_one_out(
    model: SBN, x: Tensor, config: SBNTrainConfig, baselines: Baselines, beta: float, **noise: Any
) -> Estimate:
    signal, log_q, elbo = _draw_signal(model, x, beta, (config.k,), **noise)
    objective = signal + score_function(log_q, signal, baseline=leave_one_out(signal))
    return Estimate(objective.mean(0), elbo.mean(0))


def _vimco(model: SBN, x: Tensor, config: SBNTrainConfig, baselines: Baselines, beta: float, **noise: Any) -> Estimate:
    signal, log_q, elbo = _draw_signal(model, x, beta, (config.k,), **noise)
    # The signal has no gradient of log q, which the log-weights have.
    log_w = signal - beta * (log_q - log_q.detach())
    return Estimate(vimco_bound(log_w, log_q), elbo.mean(0))


def _antithetic(
    model: SBN, x: Tensor, config: SBNTrainConfig, baselines: Baselines, beta: float, **noise: Any
) -> Estimate:
    """A pair for each layer of units: those below it are the first ones of their pairs, those above are drawn anew."""
    logits, objective, elbo = model.encode(x), None, x.new_empty(0)
    below: tuple[Tensor, ...] = ()
    log_q_below: tuple[Tensor, ...] = ()
    for depth in range(len(model.encoders)):
        pair, log_q, zero_of = _draw_pair(model, logits, config, **noise)
        both = tuple(b.expand_as(pair) for b in below)
        latents = model.draw_above((*both, pair), (*(q.expand_as(log_q) for q in log_q_below), log_q), **noise)
        with torch.set_grad_enabled(torch.is_grad_enabled() and depth == 0):
            found = _signal(model, x, latents, beta)
        zero = zero_of(found.signal.detach())
        if objective is None:
            objective, elbo = found.signal.mean(0) + zero, found.elbo.mean(0)
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


def _rebar(model: SBN, x: Tensor, config: SBNTrainConfig, baselines: Baselines, beta: float, **noise: Any) -> Estimate:
    logits = model.encode(x)
    uniforms = torch.stack([draw_uniforms(logits, **noise) for _ in range(2)])
    # log q - log p of each call; the last has units that are not relaxed.
    kl: list[Tensor] = []

    def signal(b: Tensor) -> Tensor:
        log_p_x, log_p, log_q = model.log_likelihood(x, b), model.log_prior((b,)), bernoulli_log_prob(b, fixed)
        kl.append((log_q - log_p).detach())
        return monte_carlo_elbo(log_p_x, log_p, log_q, beta=beta)

    fixed = logits.detach()
    objective = rebar(signal, logits, temperature=config.temperature, uniforms=uniforms)
    return Estimate(objective, objective.detach() - (1.0 - beta) * kl[-1])


def _concrete(
    model: SBN, x: Tensor, config: SBNTrainConfig, baselines: Baselines, beta: float, **noise: Any
) -> Estimate:
    """Relaxed units all the way up; the bound is that of units that are not."""
    below, layers, log_q = x, [], []
    for encoder in model.encoders:
        logits = encoder(2.0 * below - 1.0)
        below = concrete_sample(logits, config.temperature, uniforms=draw_uniforms(logits, **noise))
        layers.append(below)
        log_q.append(bernoulli_log_prob(below, logits.detach()))
    terms = model.log_likelihood(x, layers[0]), model.log_prior(layers), torch.stack(log_q).sum(0)
    with torch.no_grad():
        elbo = _draw_signal(model, x, 1.0, **noise).elbo
    return Estimate(monte_carlo_elbo(*terms, beta=beta), elbo)


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
