"""Matrix kernels multiply float32 as torch does, by whichever of its settings TF32 was chosen."""

from types import SimpleNamespace

import pytest
import torch

from fastvae.kernels._matrix import precision

HAS_NEWER = hasattr(torch.backends.cuda.matmul, "fp32_precision")


def choose(everywhere=None, matmul=None, flag=None):
    """Sets what is given: for all of torch, for products on a GPU, and by the older flag."""
    if flag is not None:
        torch.backends.cuda.matmul.allow_tf32 = flag
    if everywhere is not None:
        torch.backends.fp32_precision = everywhere
    if matmul is not None:
        torch.backends.cuda.matmul.fp32_precision = matmul


@pytest.fixture(autouse=True)
def restored():
    before = (torch.backends.fp32_precision, torch.backends.cuda.matmul.fp32_precision) if HAS_NEWER else ()
    yield
    choose(*before, flag=False)


CHOICES = {
    "flag": ({"flag": True}, "tf32"),
    "flag off": ({"flag": False}, "ieee"),
    "newer": ({"matmul": "tf32"}, "tf32"),
    "newer for everything": ({"everywhere": "tf32", "matmul": "none"}, "tf32"),
    "newer, not for products": ({"everywhere": "tf32", "matmul": "ieee"}, "ieee"),
    "both": ({"flag": False, "matmul": "tf32"}, "tf32"),
    "both, against each other": ({"flag": True, "matmul": "ieee"}, "ieee"),
}


@pytest.mark.parametrize("name", [name for name in CHOICES if HAS_NEWER or name.startswith("flag")])
def test_every_setting_counts(name):
    settings, expected = CHOICES[name]
    choose(**settings)
    assert precision(torch.float32) == expected
    assert precision(torch.bfloat16) == precision(torch.float64) == "ieee"


@pytest.mark.parametrize("allowed", [True, False])
def test_a_torch_that_has_the_flag_alone(allowed, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(allow_tf32=allowed))
    assert precision(torch.float32) == ("tf32" if allowed else "ieee")
