"""Arguments that fit, for every op of ``torch.ops.fastvae``."""

from __future__ import annotations

import torch

from tests.support.gaussians import tril_input
from tests.support.implementations import device_of

KERNEL = device_of("triton") if torch.cuda.is_available() else "cpu"


def op_arguments() -> dict[str, tuple]:
    n, d, k = 3, 10, 2
    mu, log_sigma, prior_mu, prior_log_sigma = torch.randn(4, n, d, device=KERNEL)
    z, per_row, per_sample = (torch.randn(s, device=KERNEL) for s in ((k, n, d), (n,), (k, n)))
    seed = torch.tensor(7, device=KERNEL)
    packed, dense = (tril_input((n,), d, dense).to(KERNEL) for dense in (False, True))
    images, patches = torch.randn(2, n, 4, 5, device=KERNEL), torch.randn(n, 2, 3, 3, device=KERNEL)
    window = 0.5 * torch.randn(n, 5, device=KERNEL)
    arguments = {
        "attention_read_fwd": (images[0].clone(), None, window, 3),
        "attention_read_fwd of two images": (*images.clone(), window, 2),
        "attention_read_bwd": (patches[:, :1].clone(), images[0].clone(), None, window, [True, False, True]),
        "attention_read_bwd of two images": (patches, *images.clone(), window, [False, True, True]),
        "attention_write_fwd": (patches[:, 0].clone(), window, 4, 5),
        "attention_write_bwd": (images[0].clone(), patches[:, 0].clone(), window, [True, True]),
        "bernoulli_fwd": (mu, seed, (k, n, d), 0, False),
        "bernoulli_fwd pairs": (mu, seed, (2, k, n, d), 0, True),
        "bernoulli_bwd": (per_sample, (z > 0).to(z), mu),
        "diag_gaussian_fwd": (mu, log_sigma, seed, (k, n, d), 0, True),
        "diag_gaussian_bwd": (z[0], per_sample[0], log_sigma, seed, z[0].clone(), n, 0),
        "diag_gaussian_bwd_samples": (z, per_sample, log_sigma, seed, z.clone(), n, 0),
        "diag_gaussian_with_kl_fwd": (mu, log_sigma, seed, (k, n, d), 0, False, True),
        "diag_gaussian_with_kl_fwd of dimensions": (mu, log_sigma, seed, (k, n, d), 0, True, True),
        "diag_gaussian_with_kl_bwd": (z, per_sample, per_row, mu, log_sigma, seed, z.clone(), 0),
        "diag_gaussian_with_kl_bwd of dimensions": (z, None, z[0].clone(), mu, log_sigma, seed, z.clone(), 0),
        "diag_gaussian_log_prob_fwd": (z, mu, log_sigma),
        "diag_gaussian_log_prob_bwd": (per_sample, z, mu, log_sigma),
        "diag_gaussian_kl_fwd": (mu, log_sigma),
        "diag_gaussian_kl_bwd": (per_row, mu, log_sigma),
        "diag_gaussian_kl_prior_fwd": (mu, log_sigma, prior_mu, prior_log_sigma),
        "diag_gaussian_kl_prior_bwd": (per_row, mu, log_sigma, prior_mu, prior_log_sigma),
    }
    parameters = (mu, log_sigma, z.view(k * n, d), 0.1 * z.flip(0).reshape(k * n, d))
    arguments |= {
        "gaussian_merge_fwd": (*parameters, seed, (k, n, d), 0, False, True),
        "gaussian_merge_fwd of dimensions": (*parameters, z.clone(), (k, n, d), 0, True, False),
        "gaussian_merge_bwd": (z, *(per_sample.clone() for _ in range(3)), *parameters, z.clone(), 0),
        "gaussian_merge_bwd of dimensions": (z, per_sample, per_sample, z.clone(), *parameters, z.clone(), 0),
    }
    for name, tril in (("packed", packed), ("dense", dense)):
        arguments |= {
            f"tril_gaussian_fwd {name}": (mu, log_sigma, tril, seed, (k, n, d), 0, True),
            f"tril_gaussian_bwd {name}": (z, per_sample, log_sigma, seed, z.clone(), 0, name == "dense", True),
            f"tril_gaussian_with_kl_fwd {name}": (mu, log_sigma, tril, seed, (k, n, d), 0, name == "dense", True),
            f"tril_gaussian_with_kl_bwd {name}": (
                z,
                per_sample,
                z[0].clone() if name == "dense" else per_row,
                mu,
                log_sigma,
                tril,
                seed,
                z.clone(),
                0,
            ),
            f"tril_gaussian_log_prob_fwd {name}": (z, mu, log_sigma, tril),
            f"tril_gaussian_log_prob_bwd {name}": (per_sample, z, log_sigma, tril),
            f"tril_gaussian_kl_fwd {name}": (mu, log_sigma, tril),
            f"tril_gaussian_kl_bwd {name}": (per_row, mu, log_sigma, tril),
        }
    return arguments | network_arguments() | image_arguments()


def image_arguments() -> dict[str, tuple]:
    x, condition, d_y = (torch.randn(s, device=KERNEL) for s in ((2, 6, 3, 4), (2, 6, 1, 1), (2, 3, 3, 4)))
    weight, bias = torch.randn(3, 6, 3, 3, device=KERNEL), torch.randn(3, device=KERNEL)
    degrees = [torch.tensor(v, device=KERNEL) for v in ([0, 0, 1, 1, 2, 2], [0, 1, 2])]
    conv = ([0, 1, 2, 3, 4], 4, [1, 1, 1, 1], [1, 1], 1, "silu")
    image, params = torch.rand(2, 1, 3, 4, device=KERNEL), torch.randn(2, 6, 3, 4, device=KERNEL)
    return {
        "gated_activation_fwd": (x, condition, "tanh"),
        "gated_activation_bwd": (d_y, x, condition, "tanh"),
        "masked_conv2d_fwd": (x, weight, bias, *degrees, *conv, True),
        "masked_conv2d_bwd": (d_y, d_y.clone(), x, weight, *degrees, *conv, [True, True, True]),
        "logistic_mixture_fwd": (image, params, 256, True),
        "logistic_mixture_bwd": (torch.rand(2, device=KERNEL), image, params, torch.randn_like(params), 256),
    }


def network_arguments() -> dict[str, tuple]:
    """Of the masked layers; the fused network runs in the extension only."""
    n, d, width = 64, 3, 8  # a whole block: in `saved`, lanes without a sample are undefined
    degrees = [torch.tensor(v) for v in ([1, 2, 3], [0, 0, 1, 1, 1, 2, 2, 2], [0, 1, 2, 0, 1, 2])]
    x, context, y = torch.randn(n, d), torch.randn(n, width), torch.randn(n, width)
    weights = [torch.randn(width, d), torch.randn(2 * d, width)]
    biases, scales = [torch.randn(width), None], [None, torch.rand(2 * d)]
    structure = [d, 2, 6, 1, 0, 0]  # two parameters of each feature, silu, gated
    text = "2 silu 0 blocked;0 1 2;0 0 1 1 1 2 2 2"
    kept = (*weights, scales[1])
    present = [True, True, False, False, True]
    network = ((*weights, context, biases[0], scales[1]), present, degrees, structure)
    saved, log_det, shares = torch.rand(1, d + 2 * width + 2 * d, 64), torch.randn(n), torch.randn(n, d)
    on_device = [t.to(KERNEL) for t in (x, weights[0], biases[0], *degrees[:2], y)]
    x_there, weight, bias, in_degrees, out_degrees, d_y = on_device
    h, weight_there, bias_there, data, per_row = (torch.randn(s, device=KERNEL) for s in ((6, 4), (5, 4), 5, (2, 5), 6))
    decoder = ([torch.randn(s, device=KERNEL) for s in ((7, 4), (5, 7), (7,))], [True, False], data, 1)
    decoder = (*decoder, "silu", "bernoulli")
    layer = (weight, bias, None, in_degrees, out_degrees, "silu")
    # Rows of a whole block: in `kept`, too, lanes without a sample are undefined.
    h_gaussian, of_gaussian, bias_of_gaussian, eps = (torch.randn(s) for s in ((n, 4), (9, 4), 9, (n, d)))
    head, kept_gaussian = (d, 0.5, -7.0, 7.0), torch.rand(n * (3 * d + 3))
    gaussian = (h_gaussian, of_gaussian, bias_of_gaussian)
    rows, cells, classes = (torch.randn(s, device=KERNEL) for s in ((3, 5), (3, 4, 5), (4, 5)))
    return {
        "class_linear_fwd": (rows, None, classes, "softplus", True),
        "class_linear_fwd cells": (rows, cells, classes, "silu", True),
        "class_linear_bwd": (cells, cells.clone(), "gelu", [True, False, True]),
        "class_linear_bwd cells": (cells, cells.clone(), "silu", [True, True, True]),
        "linear_bernoulli_fwd": (h, weight_there, bias_there, data, 1, True),
        "linear_bernoulli_bwd": (per_row, h, weight_there, bias_there, data, None, 1, [True] * 3),
        "linear_tril_gaussian_fwd": (*gaussian, torch.tensor(7), *head, 0, False, True),
        "linear_tril_gaussian_fwd of dimensions": (*gaussian, eps, *head, 0, True, False),
        "linear_tril_gaussian_bwd": (eps, eps[:, 0].clone(), None, *gaussian, kept_gaussian, *head, [True] * 3),
        "linear_tril_gaussian_bwd of dimensions": (
            *(eps, None, eps.clone(), *gaussian, kept_gaussian, *head, [True, False, True]),
        ),
        "mlp_bernoulli_fwd": (h, *decoder[:-1], True),
        "mlp_bernoulli_bwd": (per_row, h, *decoder[:3], torch.rand((2 * 7 + 5) * 64), 1, "silu", True, True),
        "latent_gradient_fwd": (h, *decoder),
        "latent_gradient_bwd": (per_row, h.clone(), h, *decoder),
        "latent_hessian_product_fwd": (h, h.clone(), *decoder),
        "masked_linear_fwd": (x_there, *layer, True),
        "masked_linear_bwd": (d_y, d_y.clone(), x_there, weight, None, in_degrees, out_degrees, "silu", True),
        "masked_norm_fwd": (weights[0], *degrees[:2]),
        "masked_norm_bwd": (torch.rand(width), torch.rand(width), weights[0], *degrees[:2]),
        "affine_flow_fwd": (x_there, x_there.clone(), x_there.clone(), "gated", False, False),
        "affine_flow_fwd shares": (x_there, x_there.clone(), x_there.clone(), "gated", True, True),
        "affine_flow_bwd": (x_there, x_there[:, 0].clone(), *(x_there.clone() for _ in range(3)), "gated", True),
        "affine_flow_bwd shares": (*(x_there.clone() for _ in range(5)), "gated", False),
        "autoregressive_flow_fwd": (x, *network, True, False),
        "autoregressive_flow_fwd shares": (x, *network, True, True),
        "autoregressive_flow_bwd": (x, log_det, saved, kept, present, False, degrees, structure, [True] * 5),
        "autoregressive_flow_bwd shares": (x, shares, saved, kept, present, False, degrees, structure, [True] * 5),
        "autoregressive_flow_bwd context": (
            x,
            log_det,
            saved,
            kept,
            present,
            False,
            degrees,
            structure,
            [False, False, True, False, False],
        ),
        "autoregressive_inverse_fwd": (x, *network, True, False, text),
        "autoregressive_inverse_fwd shares": (x, *network, True, True, text),
        "autoregressive_inverse_bwd": (x, log_det, saved, kept, present, False, degrees, structure, [True] * 5, text),
        "autoregressive_inverse_bwd shares": (
            *(x, shares, saved, kept, present, False, degrees, structure, [True] * 5, text),
        ),
    }


# Tensors of these names are float32 where those of a call are of a half type: kernels compute them so.
_FLOAT32 = ("at", "d_kl", "d_log_det", "d_log_p", "d_log_prob", "d_log_q", "eps", "saved")


def in_dtype(name: str, arguments: tuple, dtype: torch.dtype) -> tuple:
    """Arguments of :func:`op_arguments` with the call's tensors in a half type."""

    def cast(value):
        if isinstance(value, (list, tuple)):
            return type(value)(cast(item) for item in value)
        return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    def stays(argument, value):
        is_data = argument == "x" and any(word in name for word in ("_bernoulli", "latent", "logistic"))
        return is_data or argument in _FLOAT32 or (argument == "kept" and isinstance(value, torch.Tensor))

    schema = getattr(torch.ops.fastvae, name.split()[0]).default._schema
    pairs = zip(schema.arguments, arguments, strict=True)
    return tuple(value if stays(argument.name, value) else cast(value) for argument, value in pairs)
