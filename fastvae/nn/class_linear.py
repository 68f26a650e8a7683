"""The first layer of a network that is given a class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..ops._layers import activation_of
from ..ops.class_linear import class_linear
from ..structure.integers import integer

__all__ = ["ClassLinear"]


class ClassLinear(nn.Module):
    r"""A linear layer of one or more inputs and a class, for all classes at once or for given labels.

    .. math::
        y_{\dots c} = \operatorname{act}\Big(\sum_i W_i x_i + V_{:,c} + b\Big)

    It is :class:`torch.nn.Linear` of the inputs and the one-hot class, joined, and starts as that does.

    Args:
        in_features: number of features of the input, or of each of several inputs.
        num_classes: C.
        out_features: H.
        bias: whether b is learned.
        activation: ``"relu"``, ``"elu"``, ``"tanh"``, ``"softplus"``, ``"gelu"``, ``"silu"``, or None.
        impl: implementation, see :mod:`fastvae.backend`.

    Attributes:
        weights: W, ``(H, D_i)`` for each input.
        class_weight: V, ``(H, C)``.
        bias: b, ``(H,)``, or None.

    Shape:
        inputs ``(*, D_i)`` to ``(*, C, H)``, or to ``(*, H)`` with labels; see
        :func:`fastvae.functional.class_linear`.

    Raises:
        TypeError: a size is no integer.
        ValueError: a size is below 1, or the activation is unknown.

    Example:
        >>> layer = ClassLinear([784, 100], 10, 500, activation="softplus")
        >>> x, a = torch.rand(8, 784), torch.randn(8, 100)
        >>> layer(x, a).shape, layer(x, a, labels=torch.arange(8)).shape
        (torch.Size([8, 10, 500]), torch.Size([8, 500]))
        >>> z = torch.randn(8, 10, 50)  # differs from class to class
        >>> decoder = ClassLinear(50, 10, 500)
        >>> decoder(z, labels=decoder.classes).shape
        torch.Size([8, 10, 500])
    """

    def __init__(
        self,
        in_features: int | Sequence[int],
        num_classes: int,
        out_features: int,
        bias: bool = True,
        *,
        activation: str | None = None,
        impl: str = "auto",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        several = isinstance(in_features, Sequence)
        sizes = in_features if isinstance(in_features, Sequence) else [in_features]
        self.in_features = tuple(
            integer(f"in_features[{i}]" if several else "in_features", size, 1) for i, size in enumerate(sizes)
        )
        if not self.in_features:
            raise ValueError("in_features must hold one size or more, got none")
        self.num_classes = integer("num_classes", num_classes, 1)
        self.out_features = integer("out_features", out_features, 1)
        activation_of(activation)
        self.activation, self.impl = activation, impl
        options = {"device": device, "dtype": dtype}
        self.weights = nn.ParameterList(
            [nn.Parameter(torch.empty(self.out_features, size, **options)) for size in self.in_features]
        )
        self.class_weight = nn.Parameter(torch.empty(self.out_features, self.num_classes, **options))
        self.bias = nn.Parameter(torch.empty(self.out_features, **options)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the initial weights again."""
        bound = 1 / math.sqrt(sum(self.in_features) + self.num_classes)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    @property
    def classes(self) -> Tensor:
        """All classes, ``(C,)``: labels for inputs ``(*, C, D)`` that differ from class to class."""
        return torch.arange(self.num_classes, device=self.class_weight.device)

    def forward(self, *inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        return class_linear(
            inputs,
            list(self.weights),
            self.class_weight,
            self.bias,
            labels=labels,
            activation=self.activation,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        inputs = self.in_features[0] if len(self.in_features) == 1 else self.in_features
        text = f"in_features={inputs}, num_classes={self.num_classes}, out_features={self.out_features}"
        text += f", bias={self.bias is not None}"
        return text + (f", activation={self.activation}" if self.activation else "")
