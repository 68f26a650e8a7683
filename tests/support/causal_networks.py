"""Small causal networks: each has one thing that a sampler must get right."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastvae.nn.code_embedding import CodeEmbedding
from fastvae.nn.gated_conv import GatedActivation
from fastvae.nn.masked_conv2d import MaskedConv2d


def make_masked(
    inputs: int, outputs: int, kernel: int | tuple[int, int], mask_type: str, **options: Any
) -> MaskedConv2d:
    """Without a kernel of its own, so that only the sampler differs between implementations."""
    return MaskedConv2d(inputs, outputs, kernel, padding="same", mask_type=mask_type, impl="reference", **options)


def gate(kind: str = "tanh") -> GatedActivation:
    return GatedActivation(kind, impl="reference")


class Plain(nn.Module):
    """A 7x7 first layer, residual blocks, 1x1 layers: in a Sequential, with in-place activations."""

    def __init__(self, channels: int = 1, outputs: int = 1, width: int = 4) -> None:
        super().__init__()
        self.first = make_masked(channels, 2 * width, 7, "A")
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(),
                nn.Conv2d(2 * width, width, 1),
                nn.ReLU(inplace=True),
                make_masked(width, width, 3, "B", activation="relu"),
                nn.Dropout(0.5),
                nn.Conv2d(width, 2 * width, 1, bias=False),
            )
            for _ in range(2)
        )
        self.last = nn.Sequential(nn.ReLU(), nn.Conv2d(2 * width, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for block in self.blocks:
            h = h + block(h)
        return self.last(h)


class Gated(nn.Module):
    """Two streams without a blind spot; conditioned on a vector, on a map, or on nothing."""

    def __init__(self, outputs: int = 1, width: int = 3, vector: int = 0, maps: int = 0, kind: str = "tanh") -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for first in (True, False):
            inputs = 1 if first else width
            self.layers.append(
                nn.ModuleDict(
                    {
                        "vertical": make_masked(inputs, 2 * width, 3, "vertical_A" if first else "vertical_B"),
                        "across": nn.Conv2d(2 * width, 2 * width, 1),
                        "horizontal": make_masked(inputs, 2 * width, (1, 3), "A" if first else "B"),
                        "gate": gate(kind),
                        "out": make_masked(width, width, 1, "B"),
                    }
                )
            )
        self.vector = nn.Linear(vector, 2 * width) if vector else None
        self.map = nn.Conv2d(maps, 2 * width, 3, padding=1) if maps else None
        self.last = nn.Conv2d(width, outputs, 1)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        condition = None
        if context is not None and self.vector is not None:
            condition = self.vector(context)
        if context is not None and self.map is not None:
            condition = torch.tanh(self.map(context))
        v, h, residual = x, x, None
        for layer in self.layers:
            vertical = layer["vertical"](v)
            h = layer["out"](layer["gate"](layer["horizontal"](h) + layer["across"](vertical), condition))
            v = layer["gate"](vertical, condition)
            h = h if residual is None else h + residual
            residual = h
        return self.last(functional.elu(h))


class Shifted(nn.Module):
    """PixelCNN++'s: even kernels with an origin, concat_elu, skip connections, concatenation with the context."""

    def __init__(self, channels: int = 1, outputs: int = 1, width: int = 3, maps: int = 0) -> None:
        super().__init__()
        inputs = channels + 1 + maps
        self.first_u = make_masked(inputs, width, (2, 3), "vertical_A", origin=(1, 1))
        self.first_ul = make_masked(inputs, width, (2, 2), "A", origin=(1, 1))
        self.u = make_masked(2 * width, 2 * width, (2, 3), "vertical_B", origin=(1, 1))
        self.ul = make_masked(2 * width, 2 * width, (2, 2), "B", origin=(1, 1))
        self.skip = nn.Conv2d(4 * width, 2 * width, 1)
        self.gate = gate("linear")
        self.dropout = nn.Dropout2d(0.5)
        self.last = nn.Conv2d(2 * width, outputs, 1)

    @staticmethod
    def concat_elu(h: Tensor) -> Tensor:
        return functional.elu(torch.cat([h, -h], 1))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = torch.cat([x, torch.ones_like(x[:, :1])] + ([] if context is None else [context]), dim=1)
        u, ul = self.first_u(x), self.first_ul(x)
        ul = ul + u
        u_next = u + self.gate(self.u(self.concat_elu(u)))
        ul_next = ul + self.gate(
            self.dropout(self.ul(self.concat_elu(ul))) + self.skip(self.concat_elu_pair(u_next, u))
        )
        return self.last(torch.cat((ul_next, functional.silu(u_next)), 1))

    def concat_elu_pair(self, a: Tensor, b: Tensor) -> Tensor:
        return self.concat_elu(torch.cat([a, b], 1))


class Colored(nn.Module):
    """Channels of a pixel in turn; the degrees of a gate's halves are given."""

    def __init__(self, channels: int = 3, per_channel: int = 1, layout: str = "contiguous", width: int = 2) -> None:
        super().__init__()
        colors = {"num_colors": channels, "color_layout": layout}
        # Parameters of a channel lie together, whatever the layout of hidden channels is.
        hidden = torch.arange(channels * width)
        degrees = hidden % channels if layout == "interleaved" else hidden // width
        twice = torch.cat([degrees, degrees])
        outputs = torch.arange(channels).repeat_interleave(per_channel)
        self.first = make_masked(channels, channels * width, 5, "A", **colors)
        self.wide = make_masked(channels * width, 2 * channels * width, 3, "B", in_degrees=degrees, out_degrees=twice)
        self.gate = gate()
        self.mid = make_masked(channels * width, channels * width, 1, "B", activation="elu", **colors)
        self.last = make_masked(
            channels * width, channels * per_channel, 1, "B", in_degrees=degrees, out_degrees=outputs
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(self.mid(h + self.gate(self.wide(h))))


class Grouped(nn.Module):
    """Groups and dilation, plain and masked."""

    def __init__(self) -> None:
        super().__init__()
        self.first = make_masked(2, 4, 3, "A", groups=2, dilation=2)
        self.second = make_masked(4, 6, (3, 5), "B", groups=2, dilation=(1, 2), activation="softplus")
        self.mix = nn.Conv2d(6, 4, 1, groups=2)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(functional.gelu(self.mix(self.second(functional.leaky_relu(self.first(x), 0.3)))))


class Arithmetic(nn.Module):
    """Numbers, slices, products, parameters of its own, every activation, an activation of the pixel itself."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(4, 1, 1))
        self.whole = make_masked(1, 8, 3, "B")  # knows its own pixel, which the next layer leaves out
        self.first = make_masked(8, 8, 3, "A")
        self.second = make_masked(8, 8, 3, "B")
        self.activations = nn.ModuleList([nn.Sigmoid(), nn.Tanh(), nn.Softplus(), nn.GELU(), nn.SiLU(), nn.LeakyReLU()])
        self.last = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        h = self.first(self.whole(2 * x - 1))
        a, b = h.chunk(2, 1)
        c = torch.sigmoid(a) * b - a / 3
        for activation in self.activations:
            c = c + activation(b)
        h = torch.cat([1 - c, c[:, 1:3], -c[:, :1], torch.tanh(h[:, -1:])], 1)
        d, e, _ = torch.split(self.second(h), [4, 3, 1], 1)
        d = torch.relu(d) * self.scale + 0.5
        d += torch.cat([e.tanh(), torch.zeros_like(e[:, :1])], 1)
        return self.last(d) * 1.5


class Embedded(nn.Module):
    """Codes of a VQ-VAE, looked up in a table; the first convolution leaves out the code of the own pixel."""

    def __init__(self, levels: int = 7, width: int = 3) -> None:
        super().__init__()
        self.embed = CodeEmbedding(levels, width)
        self.first = make_masked(width, 2 * width, 3, "A", activation="elu")
        self.last = nn.Sequential(make_masked(2 * width, width, 3, "B", activation="relu"), nn.Conv2d(width, levels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(self.embed(x)))


class LookedUp(Embedded):
    """The same in torch's words."""

    def __init__(self, levels: int = 7, width: int = 3) -> None:
        super().__init__(levels, width)
        self.embed = nn.Embedding(levels, width)

    def forward(self, x: Tensor) -> Tensor:
        codes = (x * (self.embed.num_embeddings - 1)).round().long().squeeze(1)
        return self.last(self.first(self.embed(codes).permute(0, 3, 1, 2)))


class Normed(nn.Module):
    """Batch norms with statistics of their own, with and without weights."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.first = make_masked(1, width, 3, "A")
        self.norms = nn.ModuleList([nn.BatchNorm2d(width), nn.BatchNorm2d(width, eps=0.1, affine=False)])
        self.second = make_masked(width, width, 3, "B")
        self.last = nn.Conv2d(width, 1, 1)
        for norm in self.norms:
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.1, 2.0)
        nn.init.normal_(self.norms[0].bias)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norms[0](self.first(x)))
        return self.last(self.norms[1](self.second(h)))
