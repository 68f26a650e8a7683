"""Every op in the types of GPUs against the float64 oracle, by the rule of all tests of ops."""

import pytest
import torch

from tests.gpu.problems import PROBLEMS
from tests.support.oracle import check


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_as_close_as_eager(name, dtype):
    check(PROBLEMS[name], "triton", dtype)
