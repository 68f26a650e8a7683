"""The model M2 of binary images."""

from __future__ import annotations

from ...class_models.semi_supervised import SemiSupervisedVAE
from .config import M2Config

__all__ = ["M2"]


class M2(SemiSupervisedVAE):
    r"""p(y) is uniform, p(z) = N(0, I), and p(x | y, z) is Bernoulli.

    Args:
        config: sizes, activation and implementation.

    Reference:
        *Semi-Supervised Learning with Deep Generative Models* (Kingma, Rezende, Mohamed, Welling, 2014).

    Example:
        >>> import torch
        >>> model, x = M2(M2Config(latent_features=8, hidden_features=(32,))), torch.rand(4, 784).round()
        >>> model.unlabelled_bound(x).shape, model.transfer(x, torch.arange(4)).shape
        (torch.Size([4]), torch.Size([4, 10, 784]))
    """

    config: M2Config

    def __init__(self, config: M2Config) -> None:
        super().__init__(config, config.data_features, config.data_features)
