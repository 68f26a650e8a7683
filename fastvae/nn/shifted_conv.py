"""The shifted convolutions of PixelCNN++."""

from __future__ import annotations

from typing import Any

from ..structure.convolution import pair
from .masked_conv2d import MaskedConv2d

__all__ = ["DownRightShiftedConv2d", "DownShiftedConv2d"]


class DownShiftedConv2d(MaskedConv2d):
    """A convolution over the rows above and one's own: the vertical stream of PixelCNN++.

    Its padding is "same": the middle tap of the last row is at the output's own pixel.

    Args:
        in_channels, out_channels: channels.
        kernel_size: height and width, the latter odd.
        first: whether the own row is left out, as on the image itself; the kernel's last row then never counts.
        device, dtype: of the parameters.
        others: dilation, groups, bias, activation, weight_norm and impl of :class:`MaskedConv2d`.

    Raises:
        ValueError: an even width, or any of the errors of :class:`MaskedConv2d`.

    Reference:
        *PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other Modifications*
        (Salimans, Karpathy, Chen, Kingma, 2017).

    Example:
        >>> import torch
        >>> DownShiftedConv2d(4, 8)(torch.randn(2, 4, 5, 5)).shape
        torch.Size([2, 8, 5, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = (2, 3),
        *,
        first: bool = False,
        device: Any = None,
        dtype: Any = None,
        **others: Any,
    ) -> None:
        height, width = pair("kernel_size", kernel_size, 1)
        if width % 2 == 0:
            raise ValueError(f"kernel_size must have an odd width, got {(height, width)}")
        super().__init__(
            in_channels,
            out_channels,
            (height, width),
            padding="same",
            mask_type="vertical_A" if first else "vertical_B",
            origin=(height - 1, width // 2),
            device=device,
            dtype=dtype,
            **others,
        )


class DownRightShiftedConv2d(MaskedConv2d):
    """A convolution over the pixels above and to the left, and one's own: the horizontal stream of PixelCNN++.

    Its padding is "same": the last tap is at the output's own pixel.

    Args:
        in_channels, out_channels: channels.
        kernel_size: height and width.
        first: whether the own pixel is left out, as on the image itself; the last tap then keeps earlier colours only.
        device, dtype: of the parameters.
        others: dilation, groups, bias, num_colors, color_layout, in_degrees, out_degrees, activation, weight_norm and
            impl of :class:`MaskedConv2d`.

    Raises:
        ValueError: any of the errors of :class:`MaskedConv2d`.

    Reference:
        *PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other Modifications*
        (Salimans, Karpathy, Chen, Kingma, 2017).

    Example:
        >>> import torch
        >>> DownRightShiftedConv2d(4, 8)(torch.randn(2, 4, 5, 5)).shape
        torch.Size([2, 8, 5, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = (2, 2),
        *,
        first: bool = False,
        device: Any = None,
        dtype: Any = None,
        **others: Any,
    ) -> None:
        height, width = pair("kernel_size", kernel_size, 1)
        super().__init__(
            in_channels,
            out_channels,
            (height, width),
            padding="same",
            mask_type="A" if first else "B",
            origin=(height - 1, width - 1),
            device=device,
            dtype=dtype,
            **others,
        )
