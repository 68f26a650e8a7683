"""CUDA C++ that NVRTC compiles at run time. PyTorch's wheels bring NVRTC: users need no CUDA toolkit.

`torch.cuda._compile_kernel` asks for the toolkit's headers. So this calls NVRTC itself, and takes only the loading of
modules from PyTorch.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

# Unannotated functions are the device's: the sources are plain C++, too.
_OPTIONS = ("--std=c++17", "--device-as-default-execution-space")


def _candidates(major: str) -> Iterator[str]:
    """Paths of NVRTC in the wheels that PyTorch depends on, beside PyTorch, and where the system's loader looks."""
    name = f"libnvrtc.so.{major}"
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        yield from map(str, sorted(Path(folder).glob(f"*/lib/{name}")))
    yield from map(str, sorted((Path(torch.__file__).parent / "lib").glob("libnvrtc*.so*")))
    yield name


def _load_builtins(path: str) -> None:
    """NVRTC opens a second library by its name only, and the loader finds those that are there already."""
    for builtins in Path(path).parent.glob("libnvrtc-builtins.so*") if Path(path).is_absolute() else ():
        ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)


@lru_cache
def find_library(cuda_version: str | None) -> ctypes.CDLL | None:
    """The NVRTC of this version of CUDA, or None."""
    for path in _candidates(cuda_version.partition(".")[0]) if cuda_version else ():
        try:
            _load_builtins(path)
            library = ctypes.CDLL(path)
        except OSError:
            continue
        if hasattr(library, "nvrtcGetCUBIN"):
            library.nvrtcGetErrorString.restype = ctypes.c_char_p
            return library
    return None


def can_load() -> bool:
    """Whether this PyTorch loads modules whose kernels may use much shared memory."""
    loader = getattr(torch.cuda, "_utils", None)
    kernel = getattr(loader, "_CudaKernel", None)
    return hasattr(loader, "_cuda_load_module") and hasattr(kernel, "set_shared_memory_config")


def compile_source(library: ctypes.CDLL, source: str, kernel: str, architecture: str) -> tuple[bytes, str]:
    """The machine code of `source` for a device such as ``"sm_90"``, and the name in it of `kernel`.

    `kernel` is a C++ expression such as ``"kernel<float>"``. Raises RuntimeError with what the compiler says.
    """

    def check(status: int) -> None:
        if status:
            raise RuntimeError(f"NVRTC: {library.nvrtcGetErrorString(status).decode()}")

    program, expression = ctypes.c_void_p(), kernel.encode()
    check(library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"fastvae.cu", 0, None, None))
    try:
        check(library.nvrtcAddNameExpression(program, expression))
        options = [option.encode() for option in (f"--gpu-architecture={architecture}", *_OPTIONS)]
        if library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options)):
            log = _read(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog, program)
            raise RuntimeError(f"NVRTC does not compile {kernel} for {architecture}:\n{log.rstrip(bytes(1)).decode()}")
        name = ctypes.c_char_p()
        check(library.nvrtcGetLoweredName(program, expression, ctypes.byref(name)))
        assert name.value is not None
        return _read(library.nvrtcGetCUBINSize, library.nvrtcGetCUBIN, program), name.value.decode()
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _read(get_size: Any, get: Any, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    get_size(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    get(program, buffer)
    return buffer.raw


def compile_kernel(source: str, kernel: str, device: torch.device) -> Any:
    """The kernel on the device, to be called with grid, block, arguments and bytes of shared memory."""
    library = find_library(torch.version.cuda)
    if library is None:
        raise RuntimeError(f"NVRTC of CUDA {torch.version.cuda} is not found")
    major, minor = torch.cuda.get_device_capability(device)
    code, name = compile_source(library, source, kernel, f"sm_{major}{minor}")
    with torch.cuda.device(device):
        kernels: Any = torch.cuda._utils._cuda_load_module(code, [name])
    return kernels[name]
