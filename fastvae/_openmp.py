"""The OpenMP that PyTorch brings, which also serves the extension of a wheel."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

import torch


def share_openmp() -> None:
    """Lets every library find PyTorch's OpenMP: some of PyTorch's wheels keep theirs to themselves.

    The extension of a wheel names no library, as PyTorch's has another name in each of its wheels.
    """
    if not hasattr(os, "RTLD_NOLOAD"):
        return
    folder = Path(torch.__file__).parent
    for path in (*folder.glob("lib/lib[gi]omp*"), *folder.parent.glob("torch.libs/lib[gi]omp*")):
        # One that is not loaded is not PyTorch's choice.
        with contextlib.suppress(OSError):
            ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | ctypes.RTLD_GLOBAL)
