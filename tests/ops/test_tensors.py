"""How the extension reads tensors and makes its outputs (csrc/bindings/tensors.cpp), on the ops of masked networks."""

import pytest
import torch

from fastvae import _C
from fastvae.ops._network import structure_fields
from fastvae.ops._network_call import recognise
from fastvae.ops.autoregressive_flow import autoregressive_flow
from fastvae.ops.autoregressive_inverse import autoregressive_inverse
from fastvae.reference.made import MadeParameters
from fastvae.structure import MadeStructure, hidden_degrees_of

N, D, WIDTH = 70, 5, 12
STRUCTURE = MadeStructure(D, hidden_degrees_of((WIDTH, WIDTH), D, True), tuple(range(D)))
LAYERS = 3


@pytest.fixture(params=[True, False], ids=["torch's table", "methods"])
def reading(request):
    """Both ways to read a tensor; the second one is all there is before torch 2.10."""
    used = _C.use_exchange(request.param)
    assert used == (request.param and hasattr(torch.Tensor, "__dlpack_c_exchange_api__"))
    yield request.param
    _C.use_exchange(True)


def tensors(dtype=torch.float32):
    """z, context term, weights, biases, factors."""
    widths = [len(degrees) for degrees in STRUCTURE.degrees]
    pairs = list(zip(widths[1:], widths[:-1], strict=True))
    shapes = [(N, D), (N, WIDTH), *pairs, *((o,) for o, _ in pairs), *((o,) for o, _ in pairs)]
    return [(0.3 * torch.randn(shape, dtype=dtype)).requires_grad_() for shape in shapes]


def network(z, context_term, *parts):
    layers = [parts[i * LAYERS : (i + 1) * LAYERS] for i in range(3)]
    return z, context_term, MadeParameters(*layers), STRUCTURE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("entry", [autoregressive_flow, autoregressive_inverse])
def test_both_ways_give_the_same_bits(entry, dtype):
    inputs, found = tensors(dtype), []
    upstream = [torch.randn(N, D, dtype=dtype), torch.randn(N, dtype=dtype)]
    for wanted in (True, False):
        _C.use_exchange(wanted)
        try:
            outputs = entry(*network(*inputs))
            found.append([*outputs, *torch.autograd.grad(outputs, inputs, upstream)])
        finally:
            _C.use_exchange(True)
    for by_table, by_methods in zip(*found, strict=True):
        assert torch.equal(by_table, by_methods)


def is_ready(inputs, impl="auto"):
    z, context_term, parameters, structure = network(*inputs)
    fields = structure_fields(structure, "gated")
    return recognise(z, context_term, parameters, structure, "gated", fields, False, impl) is not None


def replace(inputs, index, tensor):
    return [*inputs[:index], tensor, *inputs[index + 1 :]]


class Subclass(torch.Tensor):
    pass


# What the kernels do not take as it is, and the same numbers as they take them.
DETOURS = {
    "three dimensions": lambda p: [p[0].view(7, 10, D), p[1].view(7, 10, WIDTH), *p[2:]],
    "columns of z apart": lambda p: replace(p, 0, p[0].repeat_interleave(2, 1)[:, ::2]),
    "a weight the other way round": lambda p: replace(p, 3, p[3].T.contiguous().T),
    "rows of the context apart": lambda p: replace(p, 1, torch.cat((p[1], p[1]), 1)[:, :WIDTH]),
    "a bias with gaps": lambda p: replace(p, 5, p[5].repeat_interleave(2)[::2]),
    "one context for all": lambda p: replace(p, 1, p[1][:1]),
    "a subclass": lambda p: replace(p, 0, p[0].detach().as_subclass(Subclass)),
    "float16": lambda p: [t.half() for t in p],
}


@pytest.mark.parametrize("name", DETOURS)
def test_what_is_not_ready_takes_the_long_way(name, reading):
    inputs = tensors()
    assert is_ready(inputs)
    changed = [t.detach() for t in DETOURS[name](inputs)]
    assert not is_ready(changed)
    out, log_det = autoregressive_flow(*network(*changed))
    if name == "float16":
        return
    plain = [t.detach().as_subclass(torch.Tensor).contiguous() for t in changed]
    expected, expected_log_det = autoregressive_flow(*network(*plain), impl="reference")
    torch.testing.assert_close(out.as_subclass(torch.Tensor), expected)
    torch.testing.assert_close(log_det.as_subclass(torch.Tensor), expected_log_det)


def test_rows_of_z_may_lie_apart(reading):
    inputs = tensors()
    wide = torch.cat((inputs[0], inputs[0]), 1)[:, :D].detach()
    strided = replace([t.detach() for t in inputs], 0, wide)
    assert is_ready(strided)
    for got, expected in zip(
        autoregressive_flow(*network(*strided)), autoregressive_flow(*network(*inputs)), strict=True
    ):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(
    "index", range(2 + 3 * LAYERS), ids=lambda i: ["z", "context", *(f"part {j}" for j in range(9))][i]
)
@pytest.mark.parametrize("wrong", ["shape", "dtype", "device"])
def test_nothing_wrong_is_ready(index, wrong, reading):
    inputs = [t.detach() for t in tensors()]
    t = inputs[index]
    changed = {"shape": lambda: torch.cat((t, t)), "dtype": t.double, "device": lambda: t.to("meta")}[wrong]()
    if (index, wrong) == (0, "shape"):
        changed = torch.cat((t, t), 1)  # twice the rows would be fine without a context
    assert not is_ready(replace(inputs, index, changed))


@pytest.mark.parametrize("impl", ["reference", "triton", "no such"])
def test_other_implementations_are_never_ready(impl):
    assert not is_ready(tensors(), impl)


def test_transforms_are_seen_even_by_tensors_outside_them():
    inputs, seen = [t.detach() for t in tensors()], []

    def call(x):
        seen.append(is_ready(inputs))
        return x.sum()

    torch.func.vmap(call)(torch.ones(2, 3))
    torch.func.grad(call)(torch.ones(3))
    with torch.autograd.forward_ad.dual_level():
        call(torch.ones(3))
    assert seen == [False, False, False]


def test_large_outputs_live_in_blocks():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)  # which the suite switches on, and which fills memory
    try:
        layer = torch.randn(600, 600), torch.arange(600), torch.arange(600)
        x = torch.randn(600, 600)
        y, pre = _C.masked_linear_fwd(x, layer[0], None, None, *layer[1:], 0, False)
        small = _C.masked_norm_fwd(*layer)
    finally:
        torch.use_deterministic_algorithms(before)
    assert pre is None
    assert y.data_ptr() % (2 << 20) == 0
    assert small.data_ptr() % (2 << 20) != 0
    torch.testing.assert_close(y, x @ layer[0].tril().T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wrong", [3, "text", [1.0], torch.randn(2, 3, device="meta")])
def test_what_is_no_tensor_on_the_cpu_is_an_error(wrong, reading):
    degrees = torch.arange(3)
    with pytest.raises(TypeError, match="tensors in the memory of the CPU"):
        _C.masked_norm_fwd(wrong, degrees, degrees)
