"""What is asked of NVRTC and what is made of its answers; tests/gpu runs what it compiles."""

import ctypes

import pytest

from fastvae.kernels import _nvrtc


class Nvrtc:
    """Answers as NVRTC does: through pointers, 0 for success."""

    def __init__(self, *, compiles: bool = True) -> None:
        self.compiles, self.options, self.alive = compiles, [], 0

    def nvrtcCreateProgram(self, program, source, name, headers, *_):  # noqa: N802
        self.source, self.alive = source, self.alive + 1
        return 0

    def nvrtcAddNameExpression(self, program, expression):  # noqa: N802
        self.expression = expression
        return 0

    def nvrtcCompileProgram(self, program, count, options):  # noqa: N802
        self.options = options[:count]
        return 0 if self.compiles else 6

    def nvrtcGetLoweredName(self, program, expression, name):  # noqa: N802
        name._obj.value = b"_Z" + expression
        return 0

    def nvrtcDestroyProgram(self, program):  # noqa: N802
        self.alive -= 1
        return 0

    def _size(self, program, size):
        size._obj.value = 8
        return 0

    def _read(self, program, buffer):
        ctypes.memmove(buffer, b"\x7fELF\0abc" if self.compiles else b"line 1.\0", 8)
        return 0

    nvrtcGetCUBINSize = nvrtcGetProgramLogSize = _size  # noqa: N815
    nvrtcGetCUBIN = nvrtcGetProgramLog = _read  # noqa: N815


def test_code_is_whole_and_named():
    library = Nvrtc()
    code, name = _nvrtc.compile_source(library, "source", "kernel<float>", "sm_90")
    assert code == b"\x7fELF\0abc"
    assert name == "_Zkernel<float>"
    assert (library.source, library.expression) == (b"source", b"kernel<float>")
    assert b"--gpu-architecture=sm_90" in library.options
    assert library.alive == 0


def test_errors_have_what_the_compiler_says():
    library = Nvrtc(compiles=False)
    with pytest.raises(RuntimeError, match=r"kernel<float> for sm_90:\nline 1\.$"):
        _nvrtc.compile_source(library, "source", "kernel<float>", "sm_90")
    assert library.alive == 0


def test_no_library_for_a_build_without_cuda():
    assert _nvrtc.find_library(None) is None
