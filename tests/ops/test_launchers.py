"""What an op of ``torch.ops.fastvae`` is registered with exists, and an op without a GPU launcher says what to call."""

import importlib

import pytest
import torch

from fastvae.ops._library import TRITON_MODULES

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


def test_only_a_decoder_alone_has_no_launcher():
    assert WITHOUT_A_LAUNCHER == ["mlp_bernoulli_fwd"]


def test_an_op_without_a_launcher_says_on_a_gpu_what_to_call():
    with pytest.raises(RuntimeError, match="fastvae::mlp_bernoulli_fwd runs on CPU tensors only: on a GPU call "):
        on_gpu("mlp_bernoulli_fwd", torch.zeros(2, 3), [torch.zeros(4, 3)], [False], torch.zeros(2, 4), 1, "relu")
