"""What an op of ``torch.ops.fastvae`` is registered with exists, and an op without a GPU launcher says what to call."""

import importlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only

from fastvae.ops._library import TRITON_MODULES
from tests.support.op_arguments import KERNEL, in_dtype, op_arguments

OPS = [name.removeprefix("fastvae::") for name in torch._C._dispatch_get_all_op_names() if name.startswith("fastvae::")]
WITHOUT_A_LAUNCHER = [name for name, module in TRITON_MODULES.items() if module is None]


def on_gpu(name, *args):
    """Calls what is registered for CUDA tensors."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    return getattr(torch.ops.fastvae, name).default.redispatch(keys, *args)


def test_every_op_says_where_its_launcher_is():
    assert set(OPS) == set(TRITON_MODULES)


@pytest.mark.parametrize(("name", "module"), [item for item in TRITON_MODULES.items() if item[1] is not None])
def test_triton_launchers_exist(name, module):
    assert callable(getattr(importlib.import_module(f"fastvae.kernels.{module}"), name))


@pytest.mark.parametrize("name", OPS)
def test_each_op_is_registered_for_both_devices(name):
    for key in ("CPU", "CUDA", "Meta"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastvae::{name}", key), key


def test_only_whole_networks_have_no_launcher():
    flows = [f"autoregressive_{stem}_{direction}" for stem in ("flow", "inverse") for direction in ("bwd", "fwd")]
    assert sorted(WITHOUT_A_LAUNCHER) == [*flows, "mlp_bernoulli_fwd"]


@pytest.mark.parametrize("name", ["autoregressive_flow_fwd", "autoregressive_inverse_fwd"])
def test_forward_on_a_gpu_says_what_to_call(name):
    tensors, degrees = [torch.zeros(2, 3), torch.zeros(6, 2)], [torch.ones(n, dtype=torch.int64) for n in (3, 2, 6)]
    with pytest.raises(RuntimeError, match=rf"fastvae::{name} runs on CPU tensors only: on a GPU call .*fastvae\.nn"):
        on_gpu(name, torch.zeros(4, 3), tensors, [False] * 5, degrees, [3, 2, 0, 1, 0, 0], False)


@pytest.mark.parametrize("name", ["autoregressive_flow_bwd", "autoregressive_inverse_bwd"])
def test_backward_on_a_gpu_says_what_to_call(name):
    d_out, degrees = torch.zeros(4, 3), [torch.ones(n, dtype=torch.int64) for n in (3, 2, 6)]
    with pytest.raises(RuntimeError, match=rf"fastvae::{name} runs on CPU tensors only: on a GPU call .*fastvae\.nn"):
        on_gpu(
            name, d_out, torch.zeros(4), torch.zeros(1), [], [False] * 5, False, degrees, [3, 2, 0, 1, 0, 0], [True] * 2
        )


def calls():
    """Of every op, and of layers of which nothing is kept."""
    arguments = op_arguments()
    layers = ("masked_linear_fwd", "masked_conv2d_fwd")
    return arguments | {f"{name} alone": (*arguments[name][:-1], False) for name in layers}


def imagine_on_gpu(t):
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda")


def describe(outputs):
    """All of the outputs that a compiler relies on."""
    return [(t.shape, t.dtype, t.stride() if t.numel() else None) for t in tree_leaves(outputs)]


@pytest.mark.parametrize("name", [name for name in calls() if TRITON_MODULES[name.split()[0]]])
def test_outputs_on_a_gpu_are_those_that_are_inferred(name):
    """In a half type, where some outputs are wider. What the launchers compute is tested elsewhere."""
    op, arguments = name.split()[0], in_dtype(name, calls()[name], torch.bfloat16)
    arguments = tree_map_only(torch.Tensor, lambda t: t.to(KERNEL), arguments)
    with FakeTensorMode():
        there = tree_map_only(torch.Tensor, imagine_on_gpu, arguments)
        inferred = describe(getattr(torch.ops.fastvae, op)(*there))
    assert describe(on_gpu(op, *arguments)) == inferred
