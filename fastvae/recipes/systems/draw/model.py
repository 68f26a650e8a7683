"""A pair of recurrent networks that read an image and draw it on a canvas, glimpse by glimpse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .... import functional as F
from ....distributions import DiagonalGaussian
from ....likelihoods import bernoulli_log_prob
from ....nn import DiagonalGaussianHead
from ....objectives import monte_carlo_elbo, standard_normal_log_prob
from .config import DRAWConfig

__all__ = ["DRAW", "Drawing"]

# Numbers of a window, see fastvae.functional.attention_filters.
WINDOW = 5


class Drawing(NamedTuple):
    """What drawing leaves of each glimpse.

    Args:
        canvases: logits of the image after it, ``(M, pixels)``; the last ones are those of p(x | z).
        written: the window that was written through, ``(M, 5)``; none without attention.
        read: the window that was read through, ``(M, 5)``; none without attention, and of images from the prior.
        latents: ``(M, D)``.
        posteriors: what the latents were drawn from; none of images from the prior.
        log_q: log-density of the latents under the posterior, ``(M,)``, nats.
        kl: divergence of the posterior from N(0, I), ``(M,)`` or ``(M, D)``, nats, where it was asked for.
    """

    canvases: list[Tensor]
    written: list[Tensor]
    read: list[Tensor]
    latents: list[Tensor]
    posteriors: list[DiagonalGaussian]
    log_q: list[Tensor]
    kl: list[Tensor]


class Writer(nn.Module):
    """What the decoder's state adds to the canvas: a patch in a window, or a whole image."""

    def __init__(self, config: DRAWConfig) -> None:
        super().__init__()
        self.config = config
        whole = config.attention == "none"
        self.window = None if whole else nn.Linear(config.hidden_features, WINDOW)
        self.patch = nn.Linear(config.hidden_features, config.data_features if whole else config.write_points**2)

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits ``(M, pixels)``, and the window ``(M, 5)``."""
        patch: Tensor = self.patch(state)
        if self.window is None:
            return patch, None
        window, points, side = self.window(state), self.config.write_points, self.config.side
        image = F.attention_write(patch.unflatten(1, (points, points)), window, (side, side), impl=self.config.impl)
        return image.flatten(1), window


class Reader(nn.Module):
    """What the encoder sees of an image and of what the canvas lacks: a window of both, or all."""

    def __init__(self, config: DRAWConfig) -> None:
        super().__init__()
        self.config = config
        self.window = nn.Linear(config.hidden_features, WINDOW) if config.attention == "window" else None

    @property
    def features(self) -> int:
        """The numbers that it returns of an image."""
        return 2 * (self.config.data_features if self.window is None else self.config.read_points**2)

    def forward(self, x: Tensor, canvas: Tensor, state: Tensor) -> tuple[Tensor, Tensor | None]:
        """``(M, features)``, and the window ``(M, 5)``; images and logits ``(M, pixels)``, the decoder's state."""
        lacking = x - canvas.sigmoid()
        if self.window is None:
            return torch.cat([x, lacking], 1), None
        window, side = self.window(state), self.config.side
        images = x.unflatten(1, (side, side)), lacking.unflatten(1, (side, side))
        patches = F.attention_read(images, window, self.config.read_points, impl=self.config.impl)
        return patches.flatten(1), window


class Recurrent(nn.Module):
    """An LSTM with a state that is learned at the start."""

    def __init__(self, in_features: int, hidden_features: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(in_features, hidden_features)
        self.start = nn.Parameter(torch.zeros(2, hidden_features))

    def begin(self, rows: int) -> tuple[Tensor, Tensor]:
        """Output and cell before the first step, ``(rows, hidden)`` each."""
        output, cell = self.start.unsqueeze(1).expand(2, rows, -1)
        return output, cell

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        output, cell = self.cell(x, state)
        return output, cell


class DRAW(nn.Module):
    r"""The deep recurrent attentive writer.

    .. math::
        r_t &= \mathrm{read}(x, x - \sigma(c_{t-1})), \qquad h^e_t = \mathrm{LSTM}(r_t, h^d_{t-1}), \qquad
        z_t \sim q(z_t \mid h^e_t), \\
        h^d_t &= \mathrm{LSTM}(z_t), \qquad c_t = c_{t-1} + \mathrm{write}(h^d_t), \qquad
        \log p(x) \ge E\Big[\log p(x \mid c_T) - \sum_t D_{KL}(q(z_t \mid h^e_t) \,\|\, N(0, I))\Big]

    Every glimpse has noise of its own. p(x | c) is Bernoulli with logits c. Both windows are functions of the decoder's
    state, see :func:`fastvae.functional.attention_read`. Canvas and states at the start are learned.

    Args:
        config: glimpses, attention, sizes and implementation.

    Reference:
        *DRAW: A Recurrent Neural Network For Image Generation* (Gregor, Danihelka, Graves, Rezende, Wierstra, 2015).

    Example:
        >>> model = DRAW(DRAWConfig(glimpses=3, latent_features=4, hidden_features=8))
        >>> x = torch.rand(5, 784).round()
        >>> model.measure(x)[1].shape, model.log_weights(x, model.encode(x), 6).shape
        (torch.Size([5, 3]), torch.Size([6, 5]))
    """

    def __init__(self, config: DRAWConfig) -> None:
        super().__init__()
        self.config = config
        size, hidden = config.latent_features, config.hidden_features
        self.reader, self.writer = Reader(config), Writer(config)
        self.encoder = Recurrent(self.reader.features + hidden, hidden)
        self.head = DiagonalGaussianHead(hidden, size, impl=config.impl)
        self.decoder = Recurrent(size, hidden)
        self.canvas = nn.Parameter(torch.zeros(config.data_features))

    @property
    def kl_names(self) -> tuple[str, ...]:
        return tuple(f"kl{glimpse}" for glimpse in range(1, self.config.glimpses + 1))

    @property
    def noise_features(self) -> int:
        """Normals of an image: those of the latents of all glimpses."""
        return self.config.glimpses * self.config.latent_features

    @torch.no_grad()
    def start_at(self, pixel_means: Tensor) -> None:
        """Sets the canvas of a new model to these intensities, ``(pixels,)``."""
        self.canvas.copy_(pixel_means.clamp(1e-3, 1.0 - 1e-3).logit())

    def encode(self, x: Tensor) -> Tensor:
        """The images themselves: the posterior of a glimpse depends on the latents of those before it."""
        return x

    def draw(self, x: Tensor, sample_shape: Sequence[int] = (), *, kl: str = "none", **noise: Any) -> Drawing:
        """Draws binary images ``(N, pixels)`` with latents from the posterior.

        Args:
            x: the images.
            sample_shape: of the samples of every image; rows of the result are samples, then images.
            kl: whether divergences are wanted, for one sample of each image: ``"none"``, ``"sum"`` or
                ``"dimensions"`` for the part of every unit.
            noise: ``generator`` and ``row_offset``, or ``eps``, ``(*sample_shape, N, noise_features)``.
        """
        parts = self._split_noise(noise)
        rows = x.expand(*sample_shape, *x.shape).reshape(-1, x.shape[-1])
        canvas = self.canvas.expand_as(rows)
        encoder, decoder = self.encoder.begin(len(rows)), self.decoder.begin(len(rows))
        drawn = Drawing([], [], [], [], [], [], [])
        for of_glimpse in parts:
            seen, window = self.reader(rows, canvas, decoder[0])
            if window is not None:
                drawn.read.append(window)
            encoder = self.encoder(torch.cat([seen, decoder[0]], 1), encoder)
            q = self.head(encoder[0])
            if kl != "none":
                z, log_q, divergence = q.rsample_with_kl(kl=kl, **of_glimpse)
                drawn.kl.append(divergence)
            else:
                eps = self._draw_noise(len(x), sample_shape, like=x, **of_glimpse)
                z, log_q = q.rsample_with_log_prob(eps=eps.flatten(0, -2))
            canvas, decoder = self._write(z, canvas, decoder, drawn)
            drawn.latents.append(z)
            drawn.posteriors.append(q)
            drawn.log_q.append(log_q)
        return drawn

    def imagine(self, n: int, *, generator: torch.Generator | None = None) -> Drawing:
        """Draws ``n`` images with latents from the prior."""
        canvas, decoder = self.canvas.expand(n, -1), self.decoder.begin(n)
        drawn = Drawing([], [], [], [], [], [], [])
        options: Any = {"dtype": canvas.dtype, "device": canvas.device, "generator": generator}
        for _ in range(self.config.glimpses):
            z = torch.randn(n, self.config.latent_features, **options)
            canvas, decoder = self._write(z, canvas, decoder, drawn)
            drawn.latents.append(z)
        return drawn

    def _write(
        self, z: Tensor, canvas: Tensor, decoder: tuple[Tensor, Tensor], drawn: Drawing
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        decoder = self.decoder(z, decoder)
        written, window = self.writer(decoder[0])
        canvas = canvas + written
        drawn.canvases.append(canvas)
        if window is not None:
            drawn.written.append(window)
        return canvas, decoder

    def _draw_noise(
        self, n: int, sample_shape: Sequence[int], *, like: Tensor, eps: Tensor | None = None, **noise: Any
    ) -> Tensor:
        """Normals ``(*sample_shape, n, D)`` that do not depend on how a batch is shared out to processes."""
        if eps is not None:
            return eps
        zeros = like.new_zeros(n, self.config.latent_features)
        return DiagonalGaussian(zeros, zeros, impl=self.config.impl).rsample_with_log_prob(sample_shape, **noise)[0]

    def _split_noise(self, noise: dict[str, Any]) -> list[dict[str, Any]]:
        """The noise of each glimpse. A generator gives each of them a seed of its own."""
        if noise.get("eps") is None:
            return [dict(noise) for _ in range(self.config.glimpses)]
        return [{"eps": eps} for eps in noise["eps"].split(self.config.latent_features, -1)]

    def measure(self, x: Tensor, posterior: Tensor | None = None, **noise: Any) -> tuple[Tensor, Tensor]:
        """log p(x | z) of one sample, ``(N,)``, and the KL divergence of each glimpse, ``(N, T)``, nats.

        Args:
            x: binary images ``(N, pixels)``.
            posterior: what :meth:`encode` returned for them; not needed.
            noise: as of :meth:`draw`.
        """
        drawn = self.draw(x, kl="sum", **noise)
        return bernoulli_log_prob(x, drawn.canvases[-1]), torch.stack(drawn.kl, -1)

    def measure_units(self, x: Tensor, posterior: Tensor, **noise: Any) -> tuple[Tensor, list[Tensor]]:
        """As :meth:`measure`, with the part of every unit in the divergence of its glimpse, ``(N, D)`` each."""
        drawn = self.draw(x, kl="dimensions", **noise)
        return bernoulli_log_prob(x, drawn.canvases[-1]), drawn.kl

    def average_units(self, posterior: Tensor, samples: int, **noise: Any) -> list[Tensor]:
        """The mean of every unit under q, ``(N, D)`` of each glimpse, over samples of the glimpses before it."""
        drawn = self.draw(posterior, (samples,), **noise)
        return [q.mu.view(samples, len(posterior), -1).mean(0) for q in drawn.posteriors]

    def log_weights(self, x: Tensor, posterior: Tensor, samples: int, **noise: Any) -> Tensor:
        """log p(x, z) - log q(z | x) of new samples z, ``(samples, N)``, nats; arguments as of :meth:`measure`."""
        drawn = self.draw(x, (samples,), **noise)
        log_p_z = torch.stack([standard_normal_log_prob(z) for z in drawn.latents]).sum(0)
        log_q, shape = torch.stack(drawn.log_q).sum(0), (samples, len(x))
        log_p_x = bernoulli_log_prob(x, drawn.canvases[-1].view(*shape, -1))
        return monte_carlo_elbo(log_p_x, log_p_z.view(shape), log_q.view(shape))

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Means ``(n, pixels)`` of p(x | z) for latents from the prior."""
        return self.imagine(n, generator=generator).canvases[-1].sigmoid()

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Means ``(N, pixels)`` of p(x | z), each with latents from the posterior."""
        return self.draw(x, generator=generator).canvases[-1].sigmoid()
