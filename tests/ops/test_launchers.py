"""What an op of ``torch.ops.fastvae`` is registered with exists, and an op without a GPU launcher says what to call."""

import importlib
import re

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only

from fastvae.ops._library import TRITON_MODULES
from tests.gpu.problems import PROBLEMS
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


def test_every_launcher_has_a_problem_for_gpus():
    stems = {re.sub("_(density|gradients)$", "", module) for module in filter(None, TRITON_MODULES.values())}
    assert {re.split("[ ,]", name)[0] for name in PROBLEMS} == {stem for stem in stems if not stem.startswith("_")}


def test_all_others_have_a_launcher():
    without = {"linear_tril_gaussian_fwd", "linear_tril_gaussian_bwd", "mlp_bernoulli_fwd", "mlp_bernoulli_bwd"}
    assert set(WITHOUT_A_LAUNCHER) == without


def test_an_op_without_a_launcher_says_on_a_gpu_what_to_call():
    with pytest.raises(RuntimeError, match="fastvae::mlp_bernoulli_fwd runs on CPU tensors only: on a GPU call "):
        on_gpu(
            "mlp_bernoulli_fwd", torch.zeros(2, 3), [torch.zeros(4, 3)], [False], torch.zeros(2, 4), 1, "relu", False
        )


def calls():
    """Of every op, and of layers of which nothing is kept. Gradients of whole networks read other tensors on a GPU."""
    arguments = {name: args for name, args in op_arguments().items() if not re.match("autoregressive_.*_bwd", name)}
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
