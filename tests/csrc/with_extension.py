"""Runs pytest with another build of the extension: ``python with_extension.py FOLDER [arguments of pytest]``."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch  # noqa: F401 - its OpenMP serves the extension


def load(folder: str) -> None:
    (path,) = Path(folder).glob("_C.*.so")
    spec = importlib.util.spec_from_file_location("fastvae._C", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fastvae._C"] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    load(sys.argv[1])
    sys.exit(pytest.main(sys.argv[2:]))
