"""What every op owes PyTorch: schemas, compilation, transforms, clear errors."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastvae.functional as F
from tests.support.gaussians import gaussian_inputs, packed_size, problems, tril_input
from tests.support.op_arguments import KERNEL, in_dtype, op_arguments

OPS = torch.ops.fastvae
CASES = [
    (stem, entry, dense)
    for stem, entries in (
        ("diag_gaussian", ("rsample", "log_prob", "kl", "kl_prior")),
        ("tril_gaussian", ("rsample", "log_prob", "kl")),
    )
    for entry in entries
    for dense in ((False, True) if stem == "tril_gaussian" else (False,))
]
every_case = pytest.mark.parametrize(("stem", "entry", "dense"), CASES)
KERNEL_IMPL = "triton" if torch.cuda.is_available() else "cpp"


@pytest.mark.parametrize("name", list(op_arguments()))
def test_opcheck(name):
    torch.library.opcheck(getattr(OPS, name.split()[0]).default, op_arguments()[name])


@pytest.mark.parametrize("name", list(op_arguments()))
def test_shapes_and_dtypes_of_half_types_are_inferred(name):
    arguments = in_dtype(name, op_arguments()[name], torch.bfloat16)
    torch.library.opcheck(getattr(OPS, name.split()[0]).default, arguments, test_utils="test_faketensor")


def test_every_registered_op_is_checked():
    registered = {
        name.removeprefix("fastvae::") for name in torch._C._dispatch_get_all_op_names() if name.startswith("fastvae::")
    }
    assert registered == {name.split()[0] for name in op_arguments()}


@every_case
def test_compile_fullgraph(stem, entry, dense):
    """Forward and backward in one graph each, for two shapes under one dynamic compilation."""

    def loss(*parameters):
        return sum(o.float().square().sum() for o in made.call("auto", list(parameters)))

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in ((4,), (6,)):
        made = problems(stem, batch, 8, dense=dense)[entry].to(torch.float32, KERNEL)
        expected = torch.autograd.grad(loss(*made.inputs), made.inputs)
        got = torch.autograd.grad(compiled(*made.inputs), made.inputs)
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("stem", ["diag_gaussian", "tril_gaussian"])
def test_compile_with_inductor_draws_noise(stem):
    """The default compiler, drawing its own seed: the density is that of the sample."""
    parameters = gaussian_inputs((16,), 12)
    if stem == "tril_gaussian":
        parameters.append(tril_input((16,), 12, dense=False))
    parameters = [p.to(KERNEL).requires_grad_() for p in parameters]
    rsample, log_prob = getattr(F, f"{stem}_rsample"), getattr(F, f"{stem}_log_prob")
    torch._dynamo.reset()
    z, log_q = torch.compile(lambda *p: rsample(*p), fullgraph=True)(*parameters)
    torch.testing.assert_close(log_q, log_prob(z, *parameters), rtol=1e-4, atol=1e-4)
    again, _ = torch.compile(lambda *p: rsample(*p), fullgraph=True)(*parameters)
    assert (z != again).all()
    z.sum().backward()
    torch.testing.assert_close(parameters[0].grad, torch.ones_like(z))


@every_case
def test_functional_transforms(stem, entry, dense):
    """auto falls to the reference, which has every rule; an explicit kernel says that it has none."""
    made = problems(stem, (), 4, dense=dense)[entry].to(torch.float32, KERNEL)
    inputs = tuple(t.detach() for t in made.inputs)
    stacked = tuple(torch.stack([t, 2 * t]) for t in inputs)
    mapped = torch.func.vmap(lambda *p: made.call("auto", list(p)))(*stacked)
    for i in range(2):
        expected = made.call("reference", [t[i] for t in stacked])
        torch.testing.assert_close(tuple(o[i] for o in mapped), expected)
    along_mu = (made.inputs[0].detach(),), (torch.ones_like(inputs[0]),)
    tangents = [
        torch.func.jvp(lambda mu, impl=impl: made.call(impl, [mu, *inputs[1:]])[0], *along_mu)[1]
        for impl in ("auto", "reference")
    ]
    torch.testing.assert_close(*tangents)
    with pytest.raises(RuntimeError, match="impl='reference'"):
        torch.func.vmap(lambda *p: made.call(KERNEL_IMPL, list(p)))(*stacked)


def test_gradient_of_given_noise():
    mu, log_sigma = gaussian_inputs((3,), 4)
    eps = torch.randn(3, 4, requires_grad=True)
    z, _ = F.diag_gaussian_rsample(mu, log_sigma, eps=eps)
    (d_eps,) = torch.autograd.grad(z.sum(), eps)
    torch.testing.assert_close(d_eps, log_sigma.exp())
    with pytest.raises(RuntimeError, match="eps requires a gradient"):
        F.diag_gaussian_rsample(mu, log_sigma, eps=eps, impl="cpp")


def test_sizes_beyond_32_bits():
    """Shapes are inferred for 2^31 elements and more without allocating them."""
    with FakeTensorMode():
        mu = torch.empty(2**21, 1024, device=KERNEL)
        z, log_q = OPS.diag_gaussian_fwd(mu, mu, torch.empty((), dtype=torch.int64), (2, 2**21, 1024), 0, False)[:2]
        assert z.shape == (2, 2**21, 1024)
        assert log_q.shape == (2, 2**21)
    meta = torch.empty(2**21, 1024, device="meta")
    tril = torch.empty(2**21, packed_size(1024), device="meta")
    z, log_q = F.tril_gaussian_rsample(meta, meta, tril, impl="auto")
    assert (z.device.type, log_q.shape) == ("meta", (2**21,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    """Layers hand out half precision, parameters stay float32: promoted under autocast, refused outside."""
    layer = torch.nn.Linear(4, 6, device=KERNEL)
    log_sigma = torch.zeros(6, device=KERNEL, requires_grad=True)
    x = torch.randn(3, 4, device=KERNEL)
    with torch.autocast(KERNEL, dtype=dtype):
        mu = layer(x)
        assert mu.dtype == dtype
        z, log_q = F.diag_gaussian_rsample(mu, log_sigma)
        assert (z.dtype, log_q.dtype) == (torch.float32, torch.float32)
        z, log_q = F.diag_gaussian_rsample(mu, mu)
        assert (z.dtype, log_q.dtype) == (dtype, torch.float32)
    z.sum().backward()
    assert layer.weight.grad is not None
    with pytest.raises(TypeError, match=r"log_sigma must have the dtype of mu, torch\..*float16"):
        F.diag_gaussian_rsample(mu, log_sigma)


def test_in_place_use_of_the_sample():
    mu = torch.zeros(3, 4, requires_grad=True)
    z, _ = F.diag_gaussian_rsample(mu, torch.zeros(3, 4))
    z.mul_(2.0)
    z.sum().backward()
    torch.testing.assert_close(mu.grad, torch.full((3, 4), 2.0))


def test_activation_checkpointing_draws_the_same_noise():
    mu = torch.randn(4, 5, requires_grad=True)
    log_sigma = torch.zeros(4, 5, requires_grad=True)

    def loss(mu, log_sigma):
        z, log_q = F.diag_gaussian_rsample(mu, log_sigma)
        return z.pow(3).sum() + log_q.sum()

    torch.manual_seed(1)
    expected = torch.autograd.grad(loss(mu, log_sigma), (mu, log_sigma))
    torch.manual_seed(1)
    checkpointed = torch.utils.checkpoint.checkpoint(loss, mu, log_sigma, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(checkpointed, (mu, log_sigma)), expected, rtol=0, atol=0)


ONE = torch.zeros(2, 4)
ERRORS = [
    (lambda: F.diag_gaussian_rsample([0.0], ONE), TypeError, "mu must be a tensor, got list"),
    (lambda: F.diag_gaussian_rsample(ONE.long(), ONE), TypeError, r"mu must be float16.*got torch\.int64"),
    (lambda: F.diag_gaussian_rsample(ONE, ONE.double()), TypeError, "log_sigma must have the dtype of mu"),
    (lambda: F.diag_gaussian_rsample(ONE, ONE.to("meta")), ValueError, "log_sigma must be on the device of mu"),
    (lambda: F.diag_gaussian_rsample(ONE, ONE[:, :3]), ValueError, "log_sigma must have as many features"),
    (lambda: F.diag_gaussian_rsample(ONE, torch.zeros(3, 4)), ValueError, r"must broadcast, got mu \(2, 4\)"),
    (lambda: F.diag_gaussian_rsample(ONE[0, 0], ONE), ValueError, r"mu must have shape \(\*, D\)"),
    (lambda: F.diag_gaussian_rsample(ONE[:, :0], ONE[:, :0]), ValueError, r"mu must have shape \(\*, D\) with D >= 1"),
    (lambda: F.diag_gaussian_rsample(ONE, ONE, 3), TypeError, r"sample_shape must be a sequence.*\(3,\)"),
    (lambda: F.diag_gaussian_rsample(ONE, ONE, (-1,)), ValueError, "sample_shape must hold sizes >= 0"),
    (lambda: F.diag_gaussian_rsample(ONE, ONE, eps=ONE[0]), ValueError, r"eps must have the shape of the sample"),
    (lambda: F.diag_gaussian_rsample(ONE, ONE, eps=ONE.double()), TypeError, "eps must have the dtype of mu"),
    (lambda: F.diag_gaussian_rsample(ONE, ONE, eps=3.0), TypeError, "eps must be a tensor, got float"),
    (
        lambda: F.diag_gaussian_rsample(ONE, ONE, eps=ONE, generator=torch.Generator()),
        ValueError,
        "eps and generator exclude each other",
    ),
    (lambda: F.diag_gaussian_rsample(ONE, ONE, generator=3), TypeError, "generator must be a torch.Generator, got int"),
    (
        lambda: F.diag_gaussian_rsample(ONE.to("meta"), ONE.to("meta"), generator=torch.Generator()),
        ValueError,
        "generator must live on the device of the parameters, meta; it is on cpu",
    ),
    (lambda: F.diag_gaussian_rsample(ONE, ONE, row_offset=-1), ValueError, "row_offset must be >= 0, got -1"),
    (lambda: F.diag_gaussian_rsample(ONE, ONE, impl="cuda"), ValueError, "impl must be one of 'auto'"),
    (
        lambda: F.diag_gaussian_rsample(ONE.to("meta"), ONE.to("meta"), impl="cpp"),
        RuntimeError,
        "impl='cpp' cannot run on meta tensors here: it runs on CPU tensors only",
    ),
    (
        lambda: F.diag_gaussian_rsample(ONE.to("meta"), ONE.to("meta"), impl="triton"),
        RuntimeError,
        "impl='triton' cannot run on meta tensors here",
    ),
    (lambda: F.diag_gaussian_log_prob(torch.zeros(3, 4), ONE, ONE), ValueError, r"z must have shape.*got \(3, 4\)"),
    (lambda: F.diag_gaussian_log_prob(ONE[:, :3], ONE, ONE), ValueError, "z must have as many features as mu"),
    (lambda: F.diag_gaussian_kl(ONE, ONE, ONE), ValueError, "prior_log_sigma is None"),
    (lambda: F.diag_gaussian_kl(ONE, ONE, ONE, ONE[:, :1]), ValueError, "prior_log_sigma must have as many features"),
    (lambda: F.tril_gaussian_rsample(ONE, ONE, torch.zeros(2, 5)), ValueError, r"tril must have shape \(\*, 6\)"),
    (lambda: F.tril_gaussian_rsample(ONE, ONE, torch.zeros(2, 4, 3)), ValueError, r"got \(2, 4, 3\)"),
    (lambda: F.tril_gaussian_rsample(ONE, ONE, None), TypeError, "tril must be a tensor, got NoneType"),
    (lambda: F.tril_gaussian_rsample(ONE, ONE, torch.zeros(3, 6)), ValueError, r"must broadcast.*tril \(3, 6\)"),
    (lambda: F.tril_gaussian_kl(ONE, ONE, torch.zeros(2, 6).half()), TypeError, "tril must have the dtype of mu"),
    (
        lambda: F.tril_gaussian_log_prob(torch.zeros(5, 4), ONE, ONE, torch.zeros(2, 6)),
        ValueError,
        r"z must have shape",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_errors_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()
