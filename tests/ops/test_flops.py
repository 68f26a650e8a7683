"""What FlopCounterMode counts of the ops."""

import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import fastvae.functional as F
from fastvae.nn import MADE, InverseAutoregressiveFlow, MaskedAutoregressiveFlow, MaskedConv2d
from fastvae.ops import linear_bernoulli
from fastvae.ops._library import FLOP_FORMULAS as FORMULAS
from fastvae.ops.autoregressive_flow import masked_network
from fastvae.ops.masked_linear import masked_norm
from fastvae.reference.masked_linear import mask_of

# Ops that multiply no matrices: they count nothing, as PyTorch's elementwise ops do.
ELEMENTWISE = {
    "affine_flow_bwd",
    "affine_flow_fwd",
    "class_linear_bwd",
    "class_linear_fwd",
    "bernoulli_bwd",
    "bernoulli_fwd",
    "diag_gaussian_bwd",
    "diag_gaussian_bwd_samples",
    "diag_gaussian_fwd",
    "diag_gaussian_kl_bwd",
    "diag_gaussian_kl_fwd",
    "diag_gaussian_kl_prior_bwd",
    "diag_gaussian_kl_prior_fwd",
    "diag_gaussian_log_prob_bwd",
    "diag_gaussian_log_prob_fwd",
    "diag_gaussian_with_kl_bwd",
    "diag_gaussian_with_kl_fwd",
    "gated_activation_bwd",
    "gated_activation_fwd",
    "gaussian_merge_bwd",
    "gaussian_merge_fwd",
    "logistic_mixture_bwd",
    "logistic_mixture_fwd",
    "masked_norm_bwd",
    "masked_norm_fwd",
    "tril_gaussian_kl_bwd",
    "tril_gaussian_kl_fwd",
}
N, D = 7, 5


def count_flops(run):
    """Operations of ``run()`` by the name of the op."""
    with FlopCounterMode(display=False) as counter:
        run()
    return {op.__name__: flops for op, flops in counter.get_flop_counts().get("Global", {}).items()}


def connections(network):
    units = [torch.tensor(degrees) for degrees in network.structure.degrees]
    return sum(int(mask_of(units[i], units[i + 1]).sum()) for i in range(len(units) - 1))


def backward(outputs):
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    sum(t.sum() for t in outputs).backward()


def fuse(network, x, context=None):
    """The network in one call of its op, whatever hooks there are."""
    return masked_network(x, network.context_term(x, context), network.fused_parameters(), network.structure)


def test_every_op_has_a_formula_or_multiplies_nothing():
    registered = {name.partition("::")[2] for name in torch._C._dispatch_get_all_op_names() if "fastvae::" in name}
    registered = {name.partition(".")[0] for name in registered}
    assert not FORMULAS.keys() & ELEMENTWISE
    assert registered == FORMULAS.keys() | ELEMENTWISE


@pytest.mark.parametrize("requires_grad", [False, True])
def test_masked_linear(requires_grad):
    ins, outs = torch.randint(0, 9, (13,)), torch.randint(-1, 8, (11,))
    x, weight = torch.randn(2, 3, 13, requires_grad=requires_grad), torch.randn(11, 13, requires_grad=requires_grad)
    count = int(mask_of(ins, outs).sum())
    assert 0 < count < 13 * 11

    def run():
        y = F.masked_linear(x, weight, in_degrees=ins, out_degrees=outs, activation="elu")
        if requires_grad:
            backward(y)

    expected = {"masked_linear_fwd": 2 * 6 * count}
    if requires_grad:
        expected["masked_linear_bwd"] = 4 * 6 * count
    assert count_flops(run) == expected


@pytest.mark.parametrize("settings", [{}, {"residual": True}, {"context_features": 3}, {"layout": "interleaved"}])
def test_made(settings):
    network = MADE(D, (16, 16, 16), **settings)
    x = torch.randn(N, D, requires_grad=True)
    context = torch.randn(N, 3) if settings.get("context_features") else None
    count = connections(network)
    expected = {"autoregressive_flow_fwd": 2 * N * count, "autoregressive_flow_bwd": 4 * N * count}
    if context is not None:
        expected["mm"] = 2 * 2 * N * 3 * 16  # the context's own layer and the gradient of its weight
    assert count_flops(lambda: backward(fuse(network, x, context))) == expected
    with torch.no_grad():
        forward = count_flops(lambda: fuse(network, x, context))
    assert forward["autoregressive_flow_fwd"] == 2 * N * count
    assert "autoregressive_flow_bwd" not in forward


def test_weight_norm_counts_as_without():
    network, x = MADE(D, (16, 16), weight_norm=True).eval(), torch.randn(N, D)
    count = connections(network)
    assert count_flops(lambda: backward(fuse(network, x))) == {
        "autoregressive_flow_fwd": 2 * N * count,
        "autoregressive_flow_bwd": 4 * N * count,
    }


def test_frozen_network_has_no_gradients_of_weights():
    network, x = MADE(D, (16, 16), context_features=3).requires_grad_(False), torch.randn(N, D, requires_grad=True)
    count, context = connections(network), torch.randn(N, 3, requires_grad=True)
    flops = count_flops(lambda: backward(fuse(network, x, context)))
    assert flops["autoregressive_flow_bwd"] == 2 * N * count


@pytest.mark.parametrize("flow_class", [InverseAutoregressiveFlow, MaskedAutoregressiveFlow])
def test_flows(flow_class):
    flow, z = flow_class(D, (16, 12), steps=2), torch.randn(N, D, requires_grad=True)
    count = sum(connections(network) for network in flow.steps())
    # The counter hooks all modules, for which a flow calls its layers one by one.
    parallel = {"masked_linear_fwd": 2 * N * count, "masked_linear_bwd": 4 * N * count}
    # One sweep; one transposed sweep with the backward pass of the step.
    sweep = {"autoregressive_inverse_fwd": 2 * N * count, "autoregressive_inverse_bwd": 6 * N * count}
    is_inverse = flow_class is InverseAutoregressiveFlow
    assert count_flops(lambda: backward(flow(z))) == (parallel if is_inverse else sweep)
    assert count_flops(lambda: backward(flow.inverse(z))) == (sweep if is_inverse else parallel)


@pytest.mark.parametrize("implementation", ["cpp", "reference"])
def test_reference_counts_the_masked_entries_too(implementation):
    network, x = MADE(D, (16, 16), impl=implementation), torch.randn(N, D)
    dense = sum(layer.weight.numel() for layer in network.masked_layers())
    with torch.no_grad():
        total = sum(count_flops(lambda: network(x)).values())
    assert total == 2 * N * (dense if implementation == "reference" else connections(network))


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("num_colors", [1, 3])
@pytest.mark.parametrize("mask_type", ["A", "B", "vertical_A", "vertical_B"])
@pytest.mark.parametrize("image", [(6, 8), (4, 9)])
def test_masked_conv2d(mask_type, num_colors, groups, image):
    conv = MaskedConv2d(
        6, 12, 3, mask_type=mask_type, num_colors=num_colors, groups=groups, padding=1, stride=1, activation="relu"
    )
    x = torch.randn(2, 6, *image, requires_grad=True)
    y = conv(x)
    # An entry counts where its gradient is not zero: all outputs are summed, and their inputs are positive.
    with torch.no_grad():
        conv.weight.fill_(1.0)
        conv.bias.fill_(1.0)
    used = torch.autograd.grad(conv(x.detach().abs() + 1.0).sum(), conv.weight)[0]
    count = int((used != 0).sum())
    pixels = y.shape[0] * y.shape[2] * y.shape[3]
    flops = count_flops(lambda: backward(conv(x)))
    assert flops == {"masked_conv2d_fwd": 2 * pixels * count, "masked_conv2d_bwd": 4 * pixels * count}
    without = count_flops(lambda: backward(conv(x.detach())))
    assert without == {"masked_conv2d_fwd": 2 * pixels * count, "masked_conv2d_bwd": 2 * pixels * count}


@pytest.mark.parametrize("dense", [False, True])
def test_triangular_gaussian(dense):
    mu, log_sigma = torch.randn(N, D, requires_grad=True), torch.randn(N, D, requires_grad=True)
    tril = torch.randn((N, D, D) if dense else (N, D * (D - 1) // 2), requires_grad=True)
    product = 2 * 3 * N * (D * (D - 1) // 2)  # of three samples
    assert count_flops(lambda: backward(F.tril_gaussian_rsample(mu, log_sigma, tril, (3,)))) == {
        "tril_gaussian_fwd": product,
        "tril_gaussian_bwd": product,
    }
    z = torch.randn(3, N, D, requires_grad=True)
    assert count_flops(lambda: backward(F.tril_gaussian_rsample_with_kl(mu, log_sigma, tril, (3,)))) == {
        "tril_gaussian_with_kl_fwd": product,
        "tril_gaussian_with_kl_bwd": product,
    }
    assert count_flops(lambda: backward(F.tril_gaussian_log_prob(z, mu, log_sigma, tril))) == {
        "tril_gaussian_log_prob_fwd": product,
        "tril_gaussian_log_prob_bwd": 2 * product,
    }


def test_elementwise_ops_count_nothing():
    z, weight = torch.randn(N, D, requires_grad=True), torch.randn(3, D, requires_grad=True)

    def run():
        backward(F.affine_flow(z, z, z))
        backward(F.diag_gaussian_rsample(z, z))
        backward(F.diag_gaussian_kl(z, z))
        backward(F.tril_gaussian_kl(z, z, torch.randn(N, D * (D - 1) // 2)))
        backward(masked_norm(weight, in_degrees=torch.arange(D), out_degrees=torch.arange(3)))

    assert count_flops(run) == {}


def test_fake_tensors_count_half_of_the_dense_weights():
    # The degrees of fake tensors have no values.
    with FakeTensorMode():
        degrees = torch.arange(16)
        x, weight = torch.randn(N, 16), torch.randn(16, 16)
        flops = count_flops(lambda: F.masked_linear(x, weight, in_degrees=degrees, out_degrees=degrees))
        assert flops == {"masked_linear_fwd": 2 * N * 16 * 16 // 2}
        conv, image = MaskedConv2d(6, 12, 3, mask_type="B", num_colors=3, padding=1), torch.randn(2, 6, 8, 8)
        assert count_flops(lambda: conv(image)) == {"masked_conv2d_fwd": 2 * 128 * 12 * 6 * 9 // 2}


def test_meta_tensors_count_half_of_the_dense_weights():
    degrees = torch.arange(16, device="meta")
    x, weight = torch.empty(N, 16, device="meta"), torch.empty(16, 16, device="meta")
    args = (x, weight, None, None, degrees, degrees, "relu", False)
    flops = count_flops(lambda: torch.ops.fastvae.masked_linear_fwd(*args))
    assert flops == {"masked_linear_fwd": 2 * N * 16 * 16 // 2}


def test_counts_by_module():
    model, x = torch.nn.Sequential(MADE(D, (16,), params_per_feature=1), torch.nn.Flatten()), torch.randn(N, D)
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert counter.get_total_flops() == sum(counter.get_flop_counts()["Sequential.0"].values()) > 0


@pytest.mark.parametrize("first", ["fastvae.functional", "torch.utils.flop_counter"])
def test_whichever_is_imported_first(first):
    second = ({"fastvae.functional", "torch.utils.flop_counter"} - {first}).pop()
    code = (
        "import torch\n"
        f"import {first}, {second}\n"
        "degrees = torch.arange(4)\n"
        "with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:\n"
        "    fastvae.functional.masked_linear(torch.ones(3, 4), torch.ones(4, 4), in_degrees=degrees, "
        "out_degrees=degrees)\n"
        "print(counter.get_total_flops())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(2 * 3 * 10)]


def test_latent_gradient():
    z, weights, x = torch.randn(2, N, D, requires_grad=True), [torch.randn(7, D), torch.randn(11, 7)], torch.rand(N, 11)
    flops = count_flops(lambda: backward(F.latent_gradient(z, weights, [None, torch.ones(11)], x)))
    once = 4 * 2 * N * (7 * D + 11 * 7)
    assert flops == {"latent_gradient_fwd": once, "latent_gradient_bwd": 2 * once}
    flops = count_flops(lambda: F.latent_hessian_product(z.detach(), z.detach(), weights, [None, None], x))
    assert flops == {"latent_hessian_product_fwd": 2 * once}


def test_attention_window():
    x, other, window = (
        torch.randn(2, N, 8, 9),
        torch.randn(N, 8, 9).requires_grad_(),
        torch.zeros(N, 5).requires_grad_(),
    )
    once = 2 * N * 3 * 9 * (8 + 3)
    flops = count_flops(lambda: backward(F.attention_read((x[0], other), window, 3)))
    # One image has no gradient.
    assert flops == {"attention_read_fwd": 2 * once, "attention_read_bwd": 5 * once}
    flops = count_flops(lambda: backward(F.attention_write(other[:, :3, :3], window, (8, 9))))
    assert flops == {"attention_write_fwd": once, "attention_write_bwd": 3 * once}


def test_mlp_bernoulli():
    z, weights, x = torch.randn(20, N, D), [torch.randn(7, D), torch.randn(11, 7)], torch.rand(N, 11)
    flops = count_flops(lambda: F.mlp_bernoulli_log_prob(z, weights, [None, torch.ones(11)], x))
    once = 2 * 20 * N * (7 * D + 11 * 7)
    assert flops == {"mlp_bernoulli_fwd": once}
    z = torch.randn(64, N, D)
    once = 2 * 64 * N * (7 * D + 11 * 7)
    for of_z, of_layers, products in ((True, False, once), (False, True, 2 * once - 2 * 64 * N * 7 * D)):
        layers = [w.clone().requires_grad_(of_layers) for w in weights]
        point = z.clone().requires_grad_(of_z)
        flops = count_flops(lambda p=point, w=layers: backward(F.mlp_bernoulli_log_prob(p, w, [None] * 2, x)))
        assert flops == {"mlp_bernoulli_fwd": once, "mlp_bernoulli_bwd": products}


def test_linear_tril_gaussian():
    h, weight = torch.randn(20, D, requires_grad=True), torch.randn(27, D, requires_grad=True)
    once, triangle = 2 * 20 * 27 * D, 20 * 6 * 5
    flops = count_flops(lambda: backward(F.linear_tril_gaussian_rsample_with_kl(h, weight, None)))
    assert flops == {"linear_tril_gaussian_fwd": once + triangle, "linear_tril_gaussian_bwd": 2 * once + triangle}
    flops = count_flops(lambda: backward(F.linear_tril_gaussian_rsample_with_kl(h.detach(), weight, None)))
    assert flops["linear_tril_gaussian_bwd"] == once + triangle


@pytest.mark.parametrize(("most", "products"), [(1 << 20, 2), (0, 3)])
def test_linear_bernoulli(most, products, monkeypatch):
    monkeypatch.setattr(linear_bernoulli, "_MOST_KEPT_BYTES", most)
    h, weight, x = torch.randn(2, N, D, requires_grad=True), torch.randn(11, D, requires_grad=True), torch.rand(N, 11)
    flops = count_flops(lambda: backward(F.linear_bernoulli_log_prob(h, weight, None, x)))
    once = 2 * 2 * N * 11 * D
    assert flops == {"linear_bernoulli_fwd": once, "linear_bernoulli_bwd": products * once}
