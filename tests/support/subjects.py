"""Everything public that computes, as modules of tensors: what runs under every mechanism of PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

import fastvae.functional as F
from fastvae import nn as layers
from fastvae.distributions import DiagonalGaussian, StandardNormal, TriangularGaussian
from fastvae.sampling import Categorical

D = 3  # a dense triangle and a packed one have the same width


class Call(nn.Module):
    """A function of tensors as a module without parameters."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> object:
        return self.function(*inputs)


class Method(nn.Module):
    """One method of a module, such as ``inverse`` of a flow, with options as the forward of another."""

    def __init__(self, inner: nn.Module, method: str, **options: object) -> None:
        super().__init__()
        self.inner, self.method, self.options = inner, method, options

    def forward(self, *inputs: Tensor) -> object:
        return getattr(self.inner, self.method)(*inputs, **self.options)


@dataclass(frozen=True)
class Subject:
    """One way to call something public.

    Attributes:
        name: what the tests call it.
        covers: the public names that it runs.
        build: the module; parameters are drawn anew.
        inputs: its tensors for a batch of some size, float32.
        constants: places of the inputs that have no gradient.
    """

    name: str
    covers: tuple[str, ...]
    build: Callable[[], nn.Module]
    inputs: Callable[[int], list[Tensor]]
    constants: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.name

    def outputs(self, module: nn.Module, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        return tensors_of(module(*inputs))

    def draw(self, batch: int = 4, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, list[Tensor]]:
        """The module, in evaluation mode, and inputs that require gradients where they have one."""
        module = self.build().to(dtype).eval()
        inputs = [t.to(dtype) for t in self.inputs(batch)]
        return module, [t.requires_grad_(i not in self.constants) for i, t in enumerate(inputs)]


def tensors_of(outputs: object) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def normal(*shape: int) -> Callable[[int], Tensor]:
    return lambda batch: 0.5 * torch.randn(batch, *shape)


def uniform(*shape: int) -> Callable[[int], Tensor]:
    return lambda batch: torch.rand(batch, *shape)


def several(*parts: Callable[[int], Tensor]) -> Callable[[int], list[Tensor]]:
    return lambda batch: [part(batch) for part in parts]


def levels(channels: int, count: int, symmetric: bool) -> Callable[[int], Tensor]:
    """Images of random levels."""

    def draw(batch: int) -> Tensor:
        level = torch.randint(count, (batch, channels, 3, 4)) / (count - 1)
        return 2 * level - 1 if symmetric else level

    return draw


def dense(batch: int) -> Tensor:
    """A factor whose diagonal and upper triangle nobody may read."""
    return (0.5 * torch.randn(batch, D, D)).masked_fill(torch.ones(D, D, dtype=torch.bool).triu(), float("nan"))


def function(name: str, call: Callable[..., object], *inputs: Callable[[int], Tensor], **more: object) -> Subject:
    return Subject(name, (name.split()[0],), lambda: Call(call), several(*inputs), **more)


def layer(name: str, build: Callable[[], nn.Module], *inputs: Callable[[int], Tensor], **more: object) -> Subject:
    return Subject(name, (name.split()[0],), build, several(*inputs), **more)


VECTOR, PACKED = normal(D), normal(D * (D - 1) // 2)
DEGREES = torch.tensor([1, 2, 3]), torch.tensor([0, 0, 1, 2, 2])
SCALE = torch.tensor([0.5, 1.0, 2.0, 1.5, 0.7])
BITS = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])
WEIGHT = 0.5 * torch.randn(5, D, generator=torch.Generator().manual_seed(1))
TRIANGLE = 0.5 * torch.randn(9, D, generator=torch.Generator().manual_seed(3))
SPREAD, NOISE = torch.linspace(-1.0, 2.0, 16)[:, None], torch.linspace(-1.5, 2.0, 16 * D).sin().view(16, D)
KERNEL = 0.3 * torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(2))


def masked_linear(x: Tensor, activation: str = "silu", scaled: bool = False) -> Tensor:
    ins, outs = (d.to(x.device) for d in DEGREES)
    weight, scale = WEIGHT.to(x), SCALE.to(x)
    return F.masked_linear(
        x, weight, weight[:, 0], in_degrees=ins, out_degrees=outs, activation=activation,
        weight_scale=scale if scaled else None,
    )  # fmt: skip


def class_linear(x: Tensor, a: Tensor) -> Tensor:
    weight = WEIGHT.to(x)
    return F.class_linear((x, a), (weight, 2 * weight), weight[:, :2], weight[:, 2], activation="tanh")


def class_linear_of_labels(x: Tensor, z: Tensor) -> Tensor:
    weight = WEIGHT.to(x)
    classes = torch.tensor([1, 0, 1], device=x.device)
    each = z.unsqueeze(-2) * torch.tensor([[1.0], [2.0], [0.5]]).to(z)
    return F.class_linear((x.unsqueeze(-2), each), (weight, weight), weight[:, :2], labels=classes, activation="silu")


def linear_bernoulli_log_prob(h: Tensor) -> Tensor:
    weight = WEIGHT.to(h)
    return F.linear_bernoulli_log_prob(h, weight, weight[:, 0], BITS.to(h))


def linear_tril_gaussian(h: Tensor) -> tuple[Tensor, ...]:
    """Of as many rows as the kernel takes."""
    weight, many = TRIANGLE.to(h), h.unsqueeze(-2) * SPREAD.to(h)
    return F.linear_tril_gaussian_rsample_with_kl(
        many, weight, weight[:, 0], tril_scale=0.5, eps=NOISE.to(h).expand_as(many)
    )


def mlp_bernoulli_log_prob(z: Tensor) -> Tensor:
    first, last = WEIGHT.to(z), WEIGHT.t().to(z)
    return F.mlp_bernoulli_log_prob(z, [first, last], [first[:, 0], None], BITS[:D].to(z), activation="tanh")


def latent_gradient(z: Tensor) -> tuple[Tensor, Tensor]:
    first, last = WEIGHT.to(z), WEIGHT.t().to(z)
    return F.latent_gradient(z, [first, last], [first[:, 0], None], BITS[:D].to(z), activation="tanh")


def latent_hessian_product(z: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    first, last = WEIGHT.to(z), WEIGHT.t().to(z)
    return F.latent_hessian_product(z, v, [first, last], [None, last[:, 0]], BITS[:D].to(z), activation="silu")


def masked_conv2d(x: Tensor, activation: str = "gelu") -> Tensor:
    weight = KERNEL.to(x)
    return F.masked_conv2d(x, weight, weight[:, 0, 0, 0], mask_type="B", padding=1, num_colors=2, activation=activation)


def triangular(mu: Tensor, log_sigma: Tensor, tril: Tensor) -> TriangularGaussian:
    return TriangularGaussian(mu, log_sigma, tril)


def moments(q: DiagonalGaussian | TriangularGaussian) -> tuple[Tensor, ...]:
    return q.entropy(), q.mean, q.variance, q.covariance_matrix


FUNCTIONS = [
    function("diag_gaussian_rsample", lambda m, s, e: F.diag_gaussian_rsample(m, s, eps=e), *[VECTOR] * 3,
             constants=(2,)),
    function("diag_gaussian_rsample of two samples",
             lambda m, s, e: F.diag_gaussian_rsample(m, s, (2,), eps=torch.stack([e, -e])), *[VECTOR] * 3,
             constants=(2,)),
    function("bernoulli_sample", lambda m, u: F.bernoulli_sample(m, uniforms=u)[1], VECTOR, uniform(D), constants=(1,)),
    function("bernoulli_sample pairs", lambda m, u: F.bernoulli_sample(m, uniforms=u, antithetic=True)[1], VECTOR,
             uniform(D), constants=(1,)),
    function("diag_gaussian_rsample_with_kl", lambda m, s, e: F.diag_gaussian_rsample_with_kl(m, s, eps=e),
             *[VECTOR] * 3, constants=(2,)),
    function("diag_gaussian_rsample_with_kl of dimensions",
             lambda m, s, e: F.diag_gaussian_rsample_with_kl(m, s, (2,), kl="dimensions", eps=torch.stack([e, -e])),
             *[VECTOR] * 3, constants=(2,)),
    function("diag_gaussian_log_prob", F.diag_gaussian_log_prob, *[VECTOR] * 3),
    function("diag_gaussian_kl", F.diag_gaussian_kl, *[VECTOR] * 2),
    function("diag_gaussian_kl to a prior", F.diag_gaussian_kl, *[VECTOR] * 4),
    function("gaussian_merge", F.gaussian_merge, *[VECTOR] * 4),
    function("gaussian_merge_rsample", lambda m, s, p, t, e: F.gaussian_merge_rsample(m, s, p, t, eps=e),
             *[VECTOR] * 5, constants=(4,)),
    function("gaussian_merge_rsample of dimensions",
             lambda m, s, p, t, e: F.gaussian_merge_rsample(m, s, torch.stack([p, -p]), torch.stack([t, t]),
                                                            kl="dimensions", eps=torch.stack([e, -e])),
             *[VECTOR] * 5, constants=(4,)),
    function("tril_gaussian_rsample", lambda m, s, t, e: F.tril_gaussian_rsample(m, s, t, eps=e),
             VECTOR, VECTOR, PACKED, VECTOR, constants=(3,)),
    function("tril_gaussian_rsample dense",
             lambda m, s, t, e: F.tril_gaussian_rsample(m, s, t, (2,), eps=torch.stack([e, -e])),
             VECTOR, VECTOR, dense, VECTOR, constants=(3,)),
    function("tril_gaussian_rsample_with_kl", lambda m, s, t, e: F.tril_gaussian_rsample_with_kl(m, s, t, eps=e),
             VECTOR, VECTOR, PACKED, VECTOR, constants=(3,)),
    function("tril_gaussian_rsample_with_kl dense",
             lambda m, s, t, e: F.tril_gaussian_rsample_with_kl(m, s, t, (2,), kl="dimensions",
                                                                eps=torch.stack([e, -e])),
             VECTOR, VECTOR, dense, VECTOR, constants=(3,)),
    function("tril_gaussian_log_prob", F.tril_gaussian_log_prob, VECTOR, VECTOR, VECTOR, PACKED),
    function("tril_gaussian_log_prob dense", F.tril_gaussian_log_prob, VECTOR, VECTOR, VECTOR, dense),
    function("tril_gaussian_kl", F.tril_gaussian_kl, VECTOR, VECTOR, PACKED),
    function("tril_gaussian_kl dense", F.tril_gaussian_kl, VECTOR, VECTOR, dense),
    function("masked_linear", masked_linear, VECTOR),
    function("masked_linear with factors", lambda x: masked_linear(x, "elu", scaled=True), VECTOR),
    function("class_linear", class_linear, VECTOR, VECTOR),
    function("class_linear of labels", class_linear_of_labels, VECTOR, VECTOR),
    function("linear_bernoulli_log_prob", linear_bernoulli_log_prob, VECTOR),
    function("linear_tril_gaussian_rsample_with_kl", linear_tril_gaussian, VECTOR),
    function("mlp_bernoulli_log_prob", mlp_bernoulli_log_prob, VECTOR),
    function("latent_gradient", latent_gradient, VECTOR),
    function("latent_hessian_product", latent_hessian_product, VECTOR, VECTOR),
    function("attention_filters", lambda w: F.attention_filters(w, 3, (4, 5)), normal(5)),
    function("attention_read", lambda x, w: F.attention_read(x, w, 3), normal(4, 5), normal(5)),
    function("attention_read of two images", lambda x, y, w: F.attention_read((x, y), w, 2), normal(4, 5), normal(4, 5),
             normal(5)),
    function("attention_write", lambda p, w: F.attention_write(p, w, (4, 5)), normal(3, 3), normal(5)),
    function("affine_flow", F.affine_flow, *[VECTOR] * 3),
    function("affine_flow inverse", lambda z, m, s: F.affine_flow(z, m, s, kind="softplus", inverse=True),
             *[VECTOR] * 3),
    function("affine_flow shares", lambda z, m, s: F.affine_flow(z, m, s, log_det_map=True), *[VECTOR] * 3),
    function("masked_conv2d", masked_conv2d, normal(2, 4, 5)),
    function("gated_activation", F.gated_activation, normal(4, 3, 5)),
    function("gated_activation with a vector", F.gated_activation, normal(4, 3, 5), normal(4)),
    function("gated_activation with a map", F.gated_activation, normal(4, 3, 5), normal(4, 3, 5)),
    function("logistic_mixture_log_prob", F.logistic_mixture_log_prob, levels(3, 256, True), normal(20, 3, 4),
             constants=(0,)),
    function("logistic_mixture_log_prob of one channel", F.logistic_mixture_log_prob, levels(1, 256, True),
             normal(6, 3, 4), constants=(0,)),
    function("discretized_logistic_log_prob", F.discretized_logistic_log_prob, levels(1, 256, True),
             normal(1, 3, 4), normal(1, 3, 4), constants=(0,)),
    function("logistic_mixture_sample",
             lambda p: F.logistic_mixture_sample(p, generator=torch.Generator().manual_seed(0)), normal(20, 3, 4),
             constants=(0,)),
]  # fmt: skip

FLOWS = [
    layer("MADE", lambda: layers.MADE(D, (8, 8)), VECTOR),
    layer("MADE residual with a context", lambda: layers.MADE(D, (8, 8, 8), residual=True, context_features=2,
          activation="gelu"), VECTOR, normal(2)),
    layer("InverseAutoregressiveFlow", lambda: layers.InverseAutoregressiveFlow(D, (8,), steps=2), VECTOR),
    layer("InverseAutoregressiveFlow normalised",
          lambda: layers.InverseAutoregressiveFlow(D, (8,), context_features=2, weight_norm=True), VECTOR, normal(2)),
    layer("InverseAutoregressiveFlow inverse",
          lambda: Method(layers.InverseAutoregressiveFlow(D, (8,), steps=2), "inverse"), VECTOR),
    layer("InverseAutoregressiveFlow shares",
          lambda: Method(layers.InverseAutoregressiveFlow(D, (8,), steps=2), "forward", log_det_map=True), VECTOR),
    layer("MaskedAutoregressiveFlow",
          lambda: layers.MaskedAutoregressiveFlow(D, (8,), kind="softplus", context_features=2), VECTOR, normal(2)),
    layer("MaskedAutoregressiveFlow inverse",
          lambda: Method(layers.MaskedAutoregressiveFlow(D, (8,), kind="location_only"), "inverse"), VECTOR),
    layer("MaskedAutoregressiveFlow shares",
          lambda: Method(layers.MaskedAutoregressiveFlow(D, (8,), steps=2), "forward", log_det_map=True), VECTOR),
    layer("FlowSequence", lambda: layers.FlowSequence(layers.InverseAutoregressiveFlow(D, (8,)),
          layers.HouseholderFlow(D, 2)), VECTOR),
    layer("HouseholderFlow", lambda: layers.HouseholderFlow(D, 2, 2), VECTOR, normal(2)),
    layer("LinearInverseAutoregressiveFlow", lambda: layers.LinearInverseAutoregressiveFlow(D, 2), VECTOR, normal(2)),
    layer("PlanarFlow", lambda: layers.PlanarFlow(D, 2), VECTOR, normal(2)),
    layer("SylvesterFlow", lambda: layers.SylvesterFlow(D, "triangular", 2, permutation=[2, 0, 1]), VECTOR, normal(2)),
    layer("SylvesterFlow orthogonal", lambda: layers.SylvesterFlow(D, "orthogonal", columns=2, iterations=4), VECTOR),
    layer("Permutation", lambda: layers.Permutation([2, 0, 1]), VECTOR),
    layer("AffineTransform", lambda: layers.AffineTransform(torch.arange(3.0), torch.tensor([1.0, 2.0, 0.5])), VECTOR),
    layer("ConvMADE", lambda: layers.ConvMADE(2, (4,)), normal(2, 3, 3)),
    layer("ConvInverseAutoregressiveFlow", lambda: layers.ConvInverseAutoregressiveFlow(2, (4,), context_channels=2),
          normal(2, 3, 3), normal(2, 3, 3)),
]  # fmt: skip

LAYERS = [
    layer("MaskedLinear", lambda: layers.MaskedLinear(D, 5, *DEGREES, activation="tanh"), VECTOR),
    layer("MaskedLinear normalised", lambda: layers.MaskedLinear(D, 5, *DEGREES, weight_norm=True), VECTOR),
    layer("ClassLinear", lambda: layers.ClassLinear([D, 2], 3, 4, activation="softplus"), VECTOR, normal(2)),
    layer("MaskedConv2d", lambda: layers.MaskedConv2d(2, 4, 3, mask_type="A", num_colors=2, padding=1),
          normal(2, 4, 5)),
    layer("MaskedConv2d of groups", lambda: layers.MaskedConv2d(4, 4, 3, mask_type="B", groups=2, padding="same",
          activation="elu"), normal(4, 4, 5)),
    layer("MaskedConv2d normalised",
          lambda: layers.MaskedConv2d(2, 4, 3, padding=1, num_colors=2, weight_norm=True), normal(2, 4, 5)),
    layer("DownShiftedConv2d", lambda: layers.DownShiftedConv2d(2, 3), normal(2, 4, 5)),
    layer("DownRightShiftedConv2d", lambda: layers.DownRightShiftedConv2d(2, 3), normal(2, 4, 5)),
    layer("GatedActivation", lambda: layers.GatedActivation("linear"), normal(4, 3, 5), normal(4)),
    layer("GatedMaskedConv2d", lambda: layers.GatedMaskedConv2d(2, 2, context_features=2), normal(2, 4, 5),
          normal(2, 4, 5), normal(2)),
    layer("CodeEmbedding", lambda: layers.CodeEmbedding(5, 3), levels(1, 5, False), constants=(0,)),
    layer("PixelCNN", lambda: layers.PixelCNN(1, 4, 2, likelihood=Categorical(3)), levels(1, 3, False)),
    layer("PixelCNN log_prob", lambda: Method(layers.PixelCNN(1, 4, 2), "log_prob"), levels(1, 2, False),
          constants=(0,)),
    layer("GatedPixelCNN", lambda: layers.GatedPixelCNN(1, 4, 2, context_features=2), levels(1, 2, False), normal(2)),
    layer("GatedPixelCNN of a map", lambda: layers.GatedPixelCNN(2, 4, 2, context_channels=2), levels(2, 2, False),
          normal(2, 3, 4)),
    layer("PixelCNNpp", lambda: layers.PixelCNNpp(3, 6, 1), levels(3, 256, True)),
    layer("PixelCNNpp log_prob", lambda: Method(layers.PixelCNNpp(1, 6, 1, context_features=2), "log_prob"),
          levels(1, 256, True), normal(2), constants=(0,)),
    layer("InputBaseline", lambda: layers.InputBaseline(D, 4), VECTOR),
    layer("DiagonalGaussianHead", lambda: Posterior(layers.DiagonalGaussianHead(D, 2)), VECTOR),
    layer("TriangularGaussianHead", lambda: Posterior(layers.TriangularGaussianHead(D, 3, tril_init_scale=1.0)),
          VECTOR),
    layer("TriangularGaussianHead sampled", lambda: Sampled(layers.TriangularGaussianHead(D, 3, tril_init_scale=1.0)),
          VECTOR),
]  # fmt: skip


class Posterior(nn.Module):
    """What a head's posterior is used for."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        q = self.head(features)
        return q.log_prob(torch.zeros_like(q.mean)), *self.head.posterior_parameters(features)


class Sampled(nn.Module):
    """A sample in one call with the layer, of as many rows as the kernel takes."""

    def __init__(self, head: layers.TriangularGaussianHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        many = features.unsqueeze(-2) * SPREAD.to(features)
        return self.head.rsample_with_kl(many, kl="dimensions", eps=NOISE.to(features).expand_as(many))


def distribution(name: str, call: Callable[..., object], *inputs: Callable[[int], Tensor], **more: object) -> Subject:
    return function(name, call, *inputs, **more)


DISTRIBUTIONS = [
    distribution("DiagonalGaussian", lambda m, s, e: DiagonalGaussian(m, s).rsample_with_log_prob(eps=e),
                 *[VECTOR] * 3, constants=(2,)),
    distribution("DiagonalGaussian with kl", lambda m, s, e: DiagonalGaussian(m, s).rsample_with_kl(eps=e),
                 *[VECTOR] * 3, constants=(2,)),
    distribution("DiagonalGaussian moments", lambda m, s: moments(DiagonalGaussian(m, s)), *[VECTOR] * 2),
    distribution("DiagonalGaussian kl", lambda m, s: kl_divergence(DiagonalGaussian(m, s),
                 Independent(Normal(0.5 * m, s.exp() + 0.1), 1)), *[VECTOR] * 2),
    distribution("StandardNormal", lambda m, s: kl_divergence(DiagonalGaussian(m, s), StandardNormal(D)),
                 *[VECTOR] * 2),
    distribution("TriangularGaussian", lambda m, s, t, e: triangular(m, s, t).rsample_with_log_prob(eps=e),
                 VECTOR, VECTOR, PACKED, VECTOR, constants=(3,)),
    distribution("TriangularGaussian with kl",
                 lambda m, s, t, e: triangular(m, s, t).rsample_with_kl(kl="dimensions", eps=e),
                 VECTOR, VECTOR, dense, VECTOR, constants=(3,)),
    distribution("TriangularGaussian log_prob", lambda m, s, t, z: triangular(m, s, t).log_prob(z),
                 VECTOR, VECTOR, dense, VECTOR),
    distribution("TriangularGaussian moments", lambda m, s, t: moments(triangular(m, s, t)), VECTOR, VECTOR, dense),
    distribution("TriangularGaussian kl", lambda m, s, t: kl_divergence(triangular(m, s, t),
                 triangular(0.5 * m, -s, 0.3 * t)), VECTOR, VECTOR, PACKED),
    distribution("TriangularGaussian kl to torch's", lambda m, s, t: kl_divergence(triangular(m, s, t),
                 MultivariateNormal(torch.zeros_like(m), scale_tril=torch.eye(D).to(m) + 0.5 * t.tril(-1))),
                 VECTOR, VECTOR, lambda batch: dense(batch).nan_to_num(0.0)),
]  # fmt: skip

SUBJECTS = [*FUNCTIONS, *FLOWS, *LAYERS, *DISTRIBUTIONS]
MODULES = [subject for subject in SUBJECTS if subject in FLOWS or subject in LAYERS]
# Nothing that computes: errors, reports and a check that runs a module on its own terms.
NOT_RUN = {
    "AutoregressiveError",
    "AutoregressiveReport",
    "check_autoregressive",
    "initialize_from_data",
    "shared_first_batch",
}
