"""A baseline that depends on the input."""

from __future__ import annotations

from torch import Tensor, nn

from ..structure.integers import integer
from ._refusals import check_floating, check_linear

__all__ = ["InputBaseline"]


class InputBaseline(nn.Module):
    r"""A network that predicts the learning signal of a score function from the input.

    .. math::
        b_\psi(x) = w^\top \tanh(W x + v) + c

    Train it by the squared error between its output and the signal. It does not see the sample, so that the estimate of
    :func:`fastvae.objectives.score_function` stays unbiased.

    Args:
        in_features: numbers of an input.
        hidden_features: width of the hidden layer.

    Shape:
        ``x`` ``(*, in_features)`` to ``(*)``.

    Raises:
        TypeError: a size is no int, or ``x`` no floating-point tensor.
        ValueError: a size is below 1, or ``x`` has another width.

    Reference:
        *Neural Variational Inference and Learning in Belief Networks* (Mnih, Gregor, 2014).

    Example:
        >>> import torch
        >>> InputBaseline(784)(torch.zeros(5, 784)).shape
        torch.Size([5])
    """

    def __init__(self, in_features: int, hidden_features: int = 100) -> None:
        super().__init__()
        self.in_features = integer("in_features", in_features, 1)
        self.hidden = nn.Linear(self.in_features, integer("hidden_features", hidden_features, 1))
        self.out = nn.Linear(self.hidden.out_features, 1)

    def forward(self, x: Tensor) -> Tensor:
        check_floating("x", x)
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"x must have shape (*, {self.in_features}), got {tuple(x.shape)}")
        check_linear("x", x, self.hidden)
        check_linear("x", x, self.out)
        predicted: Tensor = self.out(self.hidden(x).tanh())
        return predicted.squeeze(-1)
