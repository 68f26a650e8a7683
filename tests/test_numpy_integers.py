"""Sizes that numpy computed are sizes: every public constructor and function takes numpy's integers, and no bools."""

import numpy as np
import pytest
import torch

import fastvae.functional as F
from fastvae import nn
from fastvae.distributions import StandardNormal
from fastvae.sampling import Categorical, CausalSampler, LogisticMixture

Z = torch.zeros(2, 4)
IMAGE = torch.zeros(1, 2, 4, 4)

CALLS = {
    "diag_gaussian_rsample": lambda i: F.diag_gaussian_rsample(Z, Z, (i(3),), row_offset=i(2)),
    "diag_gaussian_rsample_with_kl": lambda i: F.diag_gaussian_rsample_with_kl(Z, Z, (i(3),), row_offset=i(2)),
    "attention_filters": lambda i: F.attention_filters(torch.zeros(2, 5), i(3), (i(4), i(5))),
    "attention_read": lambda i: F.attention_read(torch.zeros(2, 4, 5), torch.zeros(2, 5), i(3)),
    "attention_write": lambda i: F.attention_write(torch.zeros(2, 3, 3), torch.zeros(2, 5), (i(4), i(5))),
    "bernoulli_sample": lambda i: F.bernoulli_sample(Z, (i(3),), row_offset=i(2)),
    "tril_gaussian_rsample": lambda i: F.tril_gaussian_rsample(Z, Z, torch.zeros(2, 6), (i(3),), row_offset=i(2)),
    "masked_conv2d": lambda i: F.masked_conv2d(
        IMAGE, torch.zeros(4, 1, 3, 3), mask_type="A", padding=(i(1), i(1)), dilation=i(1), groups=i(2), num_colors=i(1)
    ),
    "logistic_mixture_log_prob": lambda i: F.logistic_mixture_log_prob(
        torch.zeros(1, 1, 2, 2), torch.zeros(1, 6, 2, 2), levels=i(255)
    ),
    "MADE": lambda i: nn.MADE(
        i(4), (i(8),), params_per_feature=i(2), context_features=i(2), order=np.arange(4).astype(np.int32)
    ),
    "MADE.sample": lambda i: nn.MADE(4, (8,), params_per_feature=1).sample(i(3), row_offset=i(1)),
    "InverseAutoregressiveFlow": lambda i: nn.InverseAutoregressiveFlow(i(4), [i(8), i(8)], steps=i(2)),
    "MaskedLinear": lambda i: nn.MaskedLinear(i(3), i(4), np.array([1, 2, 3]), np.arange(4)),
    "MaskedConv2d": lambda i: nn.MaskedConv2d(i(2), i(4), i(3), padding=i(1), groups=i(2), dilation=i(1)),
    "PlanarFlow": lambda i: nn.PlanarFlow(i(4), i(2)),
    "HouseholderFlow": lambda i: nn.HouseholderFlow(i(4), i(2), i(2)),
    "LinearInverseAutoregressiveFlow": lambda i: nn.LinearInverseAutoregressiveFlow(i(4), i(2)),
    "SylvesterFlow": lambda i: nn.SylvesterFlow(i(4), columns=i(2), iterations=i(3)),
    "ConvInverseAutoregressiveFlow": lambda i: nn.ConvInverseAutoregressiveFlow(
        i(2), (i(4),), kernel_size=i(3), steps=i(1), context_channels=i(2)
    ),
    "TriangularGaussianHead": lambda i: nn.TriangularGaussianHead(i(3), i(4))(torch.zeros(2, 3)),
    "InputBaseline": lambda i: nn.InputBaseline(i(3), i(4)),
    "StandardNormal": lambda i: StandardNormal(i(3)),
    "GatedPixelCNN": lambda i: nn.GatedPixelCNN(i(1), i(4), i(2)).eval().sample(i(2), (i(3), i(4))),
    "PixelCNN": lambda i: nn.PixelCNN(i(1), i(4), i(2), likelihood=Categorical(i(3))),
    "PixelCNNpp": lambda i: nn.PixelCNNpp(i(1), i(4), i(1), likelihood=LogisticMixture(i(2), i(8))),
    "CausalSampler": lambda i: CausalSampler(nn.PixelCNN(1, 4, 2), in_channels=i(1)).sample(i(1), i(3)),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_numpys_integers_are_integers(name, kind):
    CALLS[name](kind)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("wrong", [bool, float], ids=["a truth value", "a float"])
def test_what_is_no_integer_is_refused_in_words(name, wrong):
    with pytest.raises((TypeError, ValueError), match=r"must be|must hold|needs"):
        CALLS[name](wrong)
