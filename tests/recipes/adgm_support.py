"""Small models of the recipe ``adgm``, and one whose posteriors are exact."""

import math

import torch

from fastvae.recipes.batch_statistics import EPS
from fastvae.recipes.systems.adgm.config import ADGMConfig
from fastvae.recipes.systems.adgm.model import ADGM
from fastvae.recipes.systems.adgm.statistics import ClassBatchNorm

KINDS = ("adgm", "sdgm")
SMALL = {"latent_features": 3, "auxiliary_features": 2, "hidden_features": (7, 6)}


def make_model(kind, *, classes=4, pixels=5, likelihood="bernoulli", seed=0, **changes):
    """A model in float64 whose moving averages, and heads of log-sigma, are not those of a new one."""
    torch.manual_seed(seed)
    sizes = SMALL | {"data_features": pixels, "classes": classes, "likelihood": likelihood} | changes
    model = ADGM(ADGMConfig(kind, **sizes)).double()
    for module in model.modules():
        if isinstance(module, ClassBatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            with torch.no_grad():
                module.gain.uniform_(0.5, 2.0)
                module.bias.normal_()
    with torch.no_grad():
        for head in (model.a_head, model.z_head, model.prior_head):
            head.linear.weight.normal_(0.0, 0.3)
    return model


def draw_noise(model, rows, samples=1, classes=None, seed=1):
    """Noise of a and of z: for all classes, or with ``classes=0`` for one class of each image."""
    config, generator = model.config, torch.Generator().manual_seed(seed)
    copies = (config.classes if classes is None else classes,) if classes != 0 else ()
    a = torch.randn(rows, samples, config.auxiliary_features, generator=generator, dtype=torch.float64)
    z = torch.randn(rows, samples, *copies, config.latent_features, generator=generator, dtype=torch.float64)
    return a, z


def moments(model):
    """The moving averages of all layers."""
    return torch.cat([value.flatten() for value in model.buffers()])


@torch.no_grad()
def set_linear(network, head, slopes, deviation):
    """Makes a network and its head N(slope · inputs, deviation²) of numbers: relu(u) - relu(-u) = u."""
    maps = network.first.weights if hasattr(network, "first") else [layer.weight for layer in network.maps]
    for weight, slope in zip(maps, slopes, strict=True):
        weight.copy_(torch.tensor([[slope], [-slope]], dtype=torch.float64))
    if hasattr(network, "first"):
        network.first.class_weight.zero_()
    for norm in network.hidden.norms:
        norm.running_mean.zero_()
        norm.running_var.fill_(1.0 - EPS)
    for layer in network.hidden.layers:
        layer.weight.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
    head.linear.weight.copy_(torch.tensor([[1.0, -1.0], [0.0, 0.0]]))
    head.linear.bias.copy_(torch.tensor([0.0, math.log(deviation)], dtype=torch.float64))


def make_exact(kind):
    """A model of numbers z, a and x with one class whose q are the posteriors of its p; and the variance of x.

    z ~ N(0, 1); each of a and x is a linear function of what the kind gives it, with noise.
    """
    model = ADGM(ADGMConfig(kind, 1, 1, (2, 2), "gaussian", 1, 1)).double()
    noise_a, noise_x = 0.7, 0.4
    # Rows and columns: z, a, x.
    slopes = torch.zeros(3, 3, dtype=torch.float64)
    if kind == "adgm":
        slopes[2, 0], slopes[1, 2], slopes[1, 0] = 1.3, 0.8, -0.6
        set_linear(model.decode_a, model.prior_head, (0.8, -0.6), noise_a)
        set_linear(model.decode_x, model.to_data, (1.3,), noise_x)
    else:
        slopes[1, 0], slopes[2, 1], slopes[2, 0] = -0.6, 0.9, 1.3
        set_linear(model.decode_a, model.prior_head, (-0.6,), noise_a)
        set_linear(model.decode_x, model.to_data, (0.9, 1.3), noise_x)
    spread = torch.linalg.inv(torch.eye(3, dtype=torch.float64) - slopes)
    covariance = spread @ torch.diag(torch.tensor([1.0, noise_a, noise_x], dtype=torch.float64).square()) @ spread.T
    a_given_x = covariance[1, 2] / covariance[2, 2]
    variance = covariance[1, 1] - a_given_x * covariance[1, 2]
    set_linear(model.encode_a, model.a_head, (float(a_given_x),), float(variance.sqrt()))
    given = [2, 1]
    of_z = torch.linalg.solve(covariance[given][:, given], covariance[given, 0])
    variance = covariance[0, 0] - of_z @ covariance[given, 0]
    set_linear(model.encode_z, model.z_head, of_z.tolist(), float(variance.sqrt()))
    return model, covariance[2, 2]
