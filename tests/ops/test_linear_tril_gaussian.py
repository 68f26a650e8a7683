import math

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

import fastvae.functional as F
from fastvae import _C, backend
from fastvae.ops import linear_tril_gaussian
from tests.support.gaussians import packed_size
from tests.support.implementations import DTYPES, device_of
from tests.support.oracle import Problem, check

OPS = torch.ops.fastvae
sample = F.linear_tril_gaussian_rsample_with_kl
# A GPU runs the layer and the kernel of the Gaussian, which has tests of its own.
two_impls = pytest.mark.parametrize("impl", ["cpp", "reference"])
both_kinds = pytest.mark.parametrize("kl", ["sum", "dimensions"])

# Batch, features, dimensions, and why.
SHAPES = [
    ((1,), 5, 7),  # a block that is mostly empty
    ((15,), 400, 2),  # one entry below the diagonal
    ((16,), 1, 64),  # one feature; whole vectors
    ((63,), 5, 1),  # no entry below the diagonal
    ((65,), 400, 7),  # two blocks, one of a single sample
    ((130,), 5, 65),  # three blocks; rows of the factor longer than a block of terms
    ((2, 3), 5, 7),  # two batch dimensions
    ((), 5, 7),  # no batch
    ((0,), 5, 7),  # no rows
    ((5, 0), 5, 7),
    ((5,), 0, 7),  # no features: the bias alone
    ((700,), 3, 4),  # more blocks than a task has
]


def outputs_of(latents):
    return 2 * latents + packed_size(latents)


def head(features, latents, dtype=torch.float32, device="cpu"):
    """A layer whose Gaussians are well conditioned."""
    weight = torch.randn(outputs_of(latents), features) / math.sqrt(max(features, 1))
    weight[2 * latents :] *= 0.5 / math.sqrt(latents)
    return [t.to(device, dtype) for t in (weight, 0.3 * torch.randn(outputs_of(latents)))]


def problem(shape=((20,), 5, 7), with_bias=True, **options):
    batch, features, latents = shape
    weight, bias = head(features, latents)
    inputs, eps = [torch.randn(*batch, features), weight], torch.randn(*batch, latents)

    def call(impl, p):
        return sample(p[0], p[1], p[2] if with_bias else None, eps=eps.to(p[0]), impl=impl, **options)

    return Problem(call, [t.requires_grad_() for t in ([*inputs, bias] if with_bias else inputs)])


@both_kinds
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_backward(shape, kl):
    check(lambda: problem(shape, kl=kl, tril_scale=0.5), "cpp", torch.float32)


@two_impls
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype, impl):
    check(lambda: problem(((20,), 12, 9)), impl, dtype)


@both_kinds
@pytest.mark.parametrize("tril_scale", [0.0, 0.1, 1, -2.0])
def test_scale_without_a_bias(tril_scale, kl):
    check(lambda: problem(with_bias=False, tril_scale=tril_scale, kl=kl), "cpp", torch.float32)


@pytest.mark.parametrize("isa", _C.available_isas())
def test_instruction_sets(isa):
    before = _C.isa()
    _C.set_isa(isa)
    try:
        for dtype in (torch.float32, torch.float64):
            check(lambda: problem(((67,), 6, 11), log_sigma_bounds=(-0.5, 0.5)), "cpp", dtype)
    finally:
        _C.set_isa(before)


@two_impls
@pytest.mark.parametrize("tril_scale", [0.0, 0.3, 1.0])
def test_is_the_gaussian_of_the_layer(tril_scale, impl):
    """The sample's density and divergence by torch.distributions."""
    latents = 5
    weight, bias = head(8, latents, torch.float64)
    h = torch.randn(20, 8, dtype=torch.float64)
    bounds = -0.2, 0.3
    z, log_q, kl = sample(h, weight, bias, tril_scale=tril_scale, log_sigma_bounds=bounds, impl=impl)
    mu, log_sigma, tril = torch.nn.functional.linear(h, weight, bias).split([latents, latents, packed_size(latents)], 1)
    assert (log_sigma < bounds[0]).any()
    assert (log_sigma > bounds[1]).any()
    factor = torch.diag_embed(log_sigma.clamp(*bounds).exp())
    row, column = torch.tril_indices(latents, latents, -1)
    factor[:, row, column] = tril_scale * tril
    q = MultivariateNormal(mu, scale_tril=factor)
    torch.testing.assert_close(log_q, q.log_prob(z))
    prior = MultivariateNormal(mu.new_zeros(latents), torch.eye(latents, dtype=mu.dtype))
    torch.testing.assert_close(kl, kl_divergence(q, prior))
    *_, parts = sample(h, weight, bias, tril_scale=tril_scale, log_sigma_bounds=bounds, impl=impl, kl="dimensions")
    torch.testing.assert_close(parts.sum(-1), kl)


@pytest.mark.parametrize("rows", [4, 70])
@pytest.mark.parametrize("impl", ["auto", "cpp"])
def test_strides(impl, rows):
    """Rows of a wider tensor, transposed ones, those of one that is repeated, and a bias of every second number."""
    weight, bias = head(6, 9, torch.float64)
    h = torch.randn(rows, 6, dtype=torch.float64)
    eps = torch.randn(rows, 9, dtype=torch.float64)
    forms = [
        (torch.cat([h, h], 1)[:, :6], torch.cat([weight, weight], 1)[:, 6:], torch.stack([bias, -bias], 1)[:, 0]),
        (h.t().contiguous().t(), weight.t().contiguous().t(), bias),
        (h[:1].expand(rows, 6), weight, bias[:1].expand(len(bias))),
    ]
    for form in forms:
        expected, got = [], []
        for found, layout, which in ((expected, torch.Tensor.contiguous, "reference"), (got, torch.Tensor, impl)):
            leaves = [layout(t).detach().requires_grad_() for t in form]
            outputs = sample(*leaves, eps=eps.t().contiguous().t(), impl=which)
            found += [*outputs, *torch.autograd.grad(sum(o.square().sum() for o in outputs), leaves)]
        torch.testing.assert_close(got, expected)


def bounded(log_sigma, impl):
    """Twenty rows whose log-sigma is that of the bias."""
    latents = len(log_sigma)
    bias = torch.cat([torch.zeros(latents), log_sigma, torch.zeros(packed_size(latents))])
    h, weight, eps = torch.zeros(20, 3), torch.zeros(len(bias), 3), torch.zeros(20, latents)
    return sample(h, weight, bias, log_sigma_bounds=(-1.0, 2.0), eps=eps, impl=impl)


@two_impls
def test_bounds(impl):
    """Beyond a bound a gradient passes where its descent step leads back."""
    values = torch.tensor([-9.0, -1.0, 0.5, 2.0, 9.0, math.inf, -math.inf], requires_grad=True)
    _, log_q, kl = bounded(values, impl)
    bound = torch.tensor([-1.0, -1.0, 0.5, 2.0, 2.0, 2.0, -1.0])
    torch.testing.assert_close(log_q.detach(), -(bound.sum() + 3.5 * math.log(2 * math.pi)).expand(20))
    torch.testing.assert_close(kl.detach(), (0.5 * ((2 * bound).exp() - 1) - bound).sum().expand(20))
    # The gradient of log q is -1 everywhere. Its descent step is up, and that of its negative down.
    for sign, expected in ((1, [-1, -1, -1, -1, 0, 0, -1]), (-1, [0, 1, 1, 1, 1, 1, 0])):
        z, log_q, _ = bounded(values, impl)
        (found,) = torch.autograd.grad(sign * log_q.sum() + z.sum(), values)
        assert found.tolist() == [20 * number for number in expected]


@two_impls
@pytest.mark.parametrize("bounds", [None, (-1.0, 2.0)])
def test_nan_stays(bounds, impl):
    (weight, bias), h = head(4, 3), torch.randn(20, 4)
    bias[4] = math.nan
    z, log_q, kl = sample(h, weight, bias, log_sigma_bounds=bounds, impl=impl, kl="dimensions")
    assert log_q.isnan().all()
    assert torch.equal(z.isnan(), torch.tensor([False, True, False]).expand(20, 3))
    assert torch.equal(kl.isnan(), z.isnan())


def test_half_open_bounds():
    weight, h = torch.tensor([[0.0], [3.0]]), torch.tensor([[1.0], [-1.0]] * 10)
    for impl in ("cpp", "auto", "reference"):
        log_q = sample(h, weight, None, log_sigma_bounds=(-math.inf, 1.0), eps=torch.zeros(20, 1), impl=impl)[1]
        torch.testing.assert_close(log_q[:2], -torch.tensor([1.0, -3.0]) - 0.5 * math.log(2 * math.pi))


@pytest.mark.parametrize("rows", [3, 40, 130])
@pytest.mark.parametrize("latents", [1, 9, 70])
def test_noise_is_that_of_the_gaussian(latents, rows):
    """The sample of N(0, I) is the noise."""
    h, weight = torch.randn(rows, 2), torch.zeros(outputs_of(latents), 2)
    one, other = (torch.Generator().manual_seed(3) for _ in range(2))
    mu = torch.zeros(rows, latents)
    expected = F.tril_gaussian_rsample_with_kl(mu, mu, torch.zeros(rows, packed_size(latents)), generator=one)
    for got, wanted in zip(sample(h, weight, None, generator=other, impl="cpp"), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)
    assert torch.equal(sample(h, weight, None, generator=other.manual_seed(3), impl="cpp")[0], expected[0])
    torch.manual_seed(5)
    drawn = sample(h, weight, None)[0]
    torch.manual_seed(5)
    assert torch.equal(drawn, sample(h, weight, None)[0])
    assert not torch.equal(drawn, sample(h, weight, None)[0])


def test_a_shard_draws_the_noise_of_its_rows():
    (weight, bias), h = head(4, 6), torch.randn(50, 4)
    whole = sample(h, weight, bias, generator=torch.Generator().manual_seed(1))
    for begin, end in ((0, 20), (20, 21), (33, 50)):
        shard = sample(h[begin:end], weight, bias, generator=torch.Generator().manual_seed(1), row_offset=begin)
        for a, b in zip(whole, shard, strict=True):
            torch.testing.assert_close(a[begin:end], b)


@pytest.mark.parametrize("rows", [15, 16])
def test_few_rows_run_layer_and_gaussian(rows, monkeypatch):
    def refuse(*_):
        raise NotImplementedError

    monkeypatch.setattr(linear_tril_gaussian, "_fwd_cpu", refuse)
    monkeypatch.setattr(linear_tril_gaussian, "FWD", linear_tril_gaussian.FWD._replace(cpu=refuse))
    (weight, bias), h = head(4, 3), torch.randn(rows, 4)
    if rows == 15:
        assert sample(h, weight, bias)[0].shape == (15, 3)
    else:
        with pytest.raises(NotImplementedError):
            sample(h, weight, bias)


@pytest.mark.parametrize("needs", [(i & 1 > 0, i & 2 > 0, i & 4 > 0) for i in range(8)])
def test_each_gradient_alone(needs):
    made = problem(((20,), 6, 9))
    expected = torch.autograd.grad(sum(o.sum() for o in made.outputs("reference")), made.inputs)
    inputs = [t.detach().requires_grad_(need) for t, need in zip(made.inputs, needs, strict=True)]
    outputs = made.call("cpp", inputs)
    assert all(o.requires_grad == any(needs) for o in outputs)
    if any(needs):
        sum(o.sum() for o in outputs).backward()
    for t, e, need in zip(inputs, expected, needs, strict=True):
        assert (t.grad is not None) == need
        if need:
            torch.testing.assert_close(t.grad, e, rtol=1e-4, atol=1e-4)


@both_kinds
@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_outputs_that_nobody_uses(used, kl):
    made = problem(((20,), 6, 9), kl=kl, log_sigma_bounds=(-0.5, 0.5)).to(torch.float64, "cpu")
    found = []
    for impl in ("cpp", "reference"):
        outputs = made.outputs(impl)
        upstream = [torch.linspace(-1, 2, o.numel(), dtype=o.dtype).view(o.shape) for o in outputs]
        found.append(torch.autograd.grad([outputs[i] for i in used], made.inputs, [upstream[i] for i in used]))
    torch.testing.assert_close(*found)


def test_infinite_mean_and_an_unused_divergence():
    """Zero times infinity is NaN: what is not used has no gradient."""
    made = problem()
    with torch.no_grad():
        made.inputs[2][3] = math.inf
    z, _, _ = made.outputs("cpp")
    for gradient in torch.autograd.grad(z, made.inputs, torch.ones_like(z)):
        assert gradient.isfinite().all()


@both_kinds
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e30])
def test_not_finite(value, kl):
    """A sample that is not finite spoils its own row alone."""
    made = problem(((20,), 6, 9), kl=kl)
    with torch.no_grad():
        made.inputs[0][17, 2] = value
    outputs = [made.outputs(i) for i in ("cpp", "reference")]
    for got, expected in zip(*outputs, strict=True):
        torch.testing.assert_close(got, expected, equal_nan=True, rtol=1e-4, atol=1e-4)
        assert got[:17].isfinite().all()
    got, expected = (torch.autograd.grad(o[0].sum() + o[2].sum(), made.inputs[0])[0] for o in outputs)
    torch.testing.assert_close(got[:17], expected[:17], rtol=1e-4, atol=1e-4)
    assert torch.equal(got[17].isfinite(), expected[17].isfinite())


@both_kinds
def test_gradients_of_gradients(kl):
    made = problem(((3,), 2, 3), kl=kl, tril_scale=0.7).to(torch.float64, "cpu")
    assert torch.autograd.gradcheck(lambda *p: made.call("cpp", p), made.inputs)
    assert torch.autograd.gradgradcheck(lambda *p: made.call("cpp", p), made.inputs)


def test_gradients_of_gradients_draw_the_same_noise():
    """The reference that differentiates again has the noise of the seed, and of the rows before."""
    (weight, bias), h = head(4, 6, torch.float64), torch.randn(20, 4, dtype=torch.float64, requires_grad=True)
    options = {"row_offset": 7, "log_sigma_bounds": (-0.5, 0.5)}
    draws = [{"generator": torch.Generator().manual_seed(1)}]
    zero = [torch.zeros_like(t) for t in (weight, bias)]
    draws.append({"eps": sample(h.detach(), *zero, generator=torch.Generator().manual_seed(1), row_offset=7)[0]})
    found = []
    for noise in draws:
        z, log_q, kl = sample(h, weight, bias, impl="cpp", **options, **noise)
        (d_h,) = torch.autograd.grad(z.square().sum() + kl.sum() + log_q.sum(), h, create_graph=True)
        found.append((d_h, *torch.autograd.grad(d_h.square().sum(), h)))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("impl", ["auto", "cpp"])
def test_functional_transforms(impl):
    """auto falls to the reference, which has every rule; a kernel that is asked for says that it has none."""
    (weight, bias), h = head(4, 3), torch.randn(5, 20, 4)
    eps = torch.randn(5, 20, 3)

    def call(h, eps):
        return sample(h, weight, bias, eps=eps, log_sigma_bounds=(-0.2, 0.2), impl=impl)

    if impl == "cpp":
        with pytest.raises(RuntimeError, match="impl='cpp'"):
            torch.func.vmap(call)(h, eps)
        return
    expected = call(h, eps)
    torch.testing.assert_close(torch.func.vmap(call)(h, eps), expected)
    _, tangents = torch.func.jvp(lambda h: call(h, eps), (h,), (torch.ones_like(h),))
    step = 1e-3
    for tangent, after, before in zip(tangents, call(h + step, eps), call(h - step, eps), strict=True):
        # Few numbers are so near a bound that a step crosses it.
        close = (tangent - (after - before) / (2 * step)).abs() < 0.05
        assert close.float().mean() > 0.9
    gradient = torch.func.vmap(torch.func.grad(lambda h, e: call(h, e)[2].sum()))(h, eps)
    leaf = h.clone().requires_grad_()
    torch.testing.assert_close(gradient, torch.autograd.grad(call(leaf, eps)[2].sum(), leaf)[0])


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compile_fullgraph(compiler):
    """Forward and backward in one graph each, for two batches under one dynamic compilation."""
    weight, bias = (t.requires_grad_() for t in head(4, 6))

    def loss(h, eps, tril_scale):
        outputs = sample(h, weight, bias, eps=eps, tril_scale=tril_scale, log_sigma_bounds=(-0.3, 0.3))
        return sum(o.square().sum() for o in outputs)

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=compiler)
    for rows, scale in ((20, 0.5), (70, 0.5), (33, 0.25)):
        h, eps = torch.randn(rows, 4, requires_grad=True), torch.randn(rows, 6)
        expected, got = (torch.autograd.grad(f(h, eps, scale), (h, weight, bias)) for f in (loss, compiled))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_compile_draws_noise():
    (weight, bias), h = head(4, 6), torch.randn(20, 4)
    torch._dynamo.reset()
    compiled = torch.compile(lambda h: sample(h, weight, bias), fullgraph=True, backend="aot_eager")
    torch.manual_seed(3)
    found = compiled(h)
    torch.manual_seed(3)
    torch.testing.assert_close(found, sample(h, weight, bias))
    assert (compiled(h)[0] != found[0]).all()


@both_kinds
@pytest.mark.parametrize("rows", [4, 1 << 40])
def test_meta(rows, kl):
    weight, bias = (t.to("meta") for t in head(4, 6))
    z, log_q, divergence = sample(torch.empty(rows, 4, device="meta"), weight, bias, kl=kl)
    assert (z.shape, log_q.shape) == ((rows, 6), (rows,))
    assert divergence.shape == ((rows, 6) if kl == "dimensions" else (rows,))


def test_no_rows_at_the_op():
    """Direct calls may have none: gradients are zeros."""
    weight, bias = head(4, 6)
    h, eps = torch.empty(0, 4), torch.empty(0, 6)
    z, log_q, kl, kept = OPS.linear_tril_gaussian_fwd(h, weight, bias, eps, 6, 1.0, -7.0, 7.0, 0, True, True)
    assert (z.shape, log_q.shape, kl.shape, kept.shape) == ((0, 6), (0,), (0, 6), (0,))
    found = OPS.linear_tril_gaussian_bwd(z, log_q, kl, h, weight, bias, kept, 6, 1.0, -7.0, 7.0, [True] * 3)
    assert [g.shape for g in found] == [h.shape, weight.shape, bias.shape]
    assert not any(g.any() for g in found)


def test_autocast_runs_the_layer_in_its_dtype():
    (weight, bias), h, eps = head(4, 6), torch.randn(20, 4), torch.randn(20, 6)
    with torch.autocast("cpu", torch.bfloat16):
        got = sample(h, weight, bias, eps=eps)
        apart = torch.nn.functional.linear(h, weight, bias)
    assert [o.dtype for o in got] == [torch.bfloat16, torch.float32, torch.float32]
    assert apart.dtype == torch.bfloat16
    for a, b in zip(got, sample(h.bfloat16(), weight.bfloat16(), bias.bfloat16(), eps=eps), strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("impl", ["cpp", "auto"])
def test_lanes_without_a_sample_make_no_nan(impl):
    made = problem(((17,), 5, 7))
    with torch.autograd.detect_anomaly():
        sum(o.sum() for o in made.outputs(impl)).backward()
    assert all(t.grad.isfinite().all() for t in made.inputs)


def test_a_gpu_runs_two_steps():
    """Who asks for the implementation gets the kernel of the Gaussian."""
    device = device_of("triton")
    weight, bias = head(4, 3, device=device)
    h, eps = torch.randn(20, 4, device=device), torch.randn(20, 3, device=device)
    with backend.use("triton"):
        found = sample(h, weight, bias, eps=eps)
    torch.testing.assert_close(found, sample(h, weight, bias, eps=eps, impl="reference"), rtol=1e-5, atol=1e-5)
