"""What the adapters share: importing a peer when it is needed, and telling flows from other things."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from torch import nn


def peer(module: str, package: str) -> ModuleType:
    """``module`` of another library.

    Raises:
        ImportError: it is not installed; the error names the package.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] != module.partition(".")[0]:
            raise  # the library is there, one that it needs is not
        raise ImportError(
            f"this needs {module.partition('.')[0]}: pip install {package}, or fastvae-kernels[peers]"
        ) from None


def check_flow(flow: Any) -> nn.Module:
    if not isinstance(flow, nn.Module):
        raise TypeError(
            f"flow must be a module with forward(z, context=None) -> (z, log_det), got {type(flow).__name__}"
        )
    return flow
