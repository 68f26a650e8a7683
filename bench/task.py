"""A task to measure: its shapes, its providers, and the least work that it must do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Any]
Inputs = tuple[Tensor, ...]

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
DTYPE_ALIASES = {"fp32": "float32", "fp64": "float64", "bf16": "bfloat16", "fp16": "float16"}
MODES = ("fwd", "fwdbwd", "step")
PROVIDERS = (
    "fastvae",
    "fastvae_compile",
    "fastvae_channels_last",
    "reference",
    "channels_last",
    "compile",
    "distributions",
    "zuko",
    "zuko_compile",
    "nflows",
    "nflows_compile",
    "pyro",
    "naive",
    "repeated",
    "repeated_compile",
    "forward",
    "dense",
)
# The library under an explicit implementation, for comparing kernels with each other.
EXPLICIT = ("cpp", "triton")


@dataclass(frozen=True, order=True)
class Shape:
    """Rows and columns of a batch, and the number of samples drawn per row where there is one."""

    rows: int
    columns: int
    samples: int | None = None

    @classmethod
    def parse(cls, text: str) -> Shape:
        try:
            sizes = [int(size) for size in text.lower().split("x")]
        except ValueError:
            sizes = []
        if len(sizes) not in (2, 3) or min(sizes) < 1:
            raise ValueError(f"a shape must be ROWSxCOLUMNS or SAMPLESxROWSxCOLUMNS with sizes >= 1, got {text!r}")
        *samples, rows, columns = sizes
        return cls(rows, columns, samples[0] if samples else None)

    def __str__(self) -> str:
        return "x".join(str(size) for size in (self.samples, self.rows, self.columns) if size is not None)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return () if self.samples is None else (self.samples,)

    @property
    def draws(self) -> int:
        return 1 if self.samples is None else self.samples


@dataclass(frozen=True)
class Case:
    """One task at one point: a row of the table."""

    op: str
    entry: str
    variant: str
    mode: str
    shape: Shape
    dtype: str
    device: str

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def itemsize(self) -> int:
        return self.torch_dtype.itemsize

    @property
    def density_itemsize(self) -> int:
        """Bytes of one log-density or divergence: float64 for float64 inputs, float32 otherwise."""
        return max(self.itemsize, 4)

    @property
    def task(self) -> str:
        return ".".join(part for part in (self.op, self.entry, self.variant) if part)

    def __str__(self) -> str:
        return f"{self.task} {self.mode} [{self.shape}] {self.dtype} {self.device}"


@dataclass(frozen=True)
class Work:
    """The least that any implementation must do: bytes to and from memory, floating-point operations.

    Each input is read once and each output written once per pass; backward is a second pass. Operations are
    those of the formula: a transcendental function counts as one, the drawing of noise as none.
    """

    bytes: int
    flops: int


@dataclass(frozen=True)
class Peer:
    """Another way to the same result, on inputs of its own making.

    Without ``comparable`` its result is of another network of the same size, or of another direction: the task's check
    does not apply. Its calls, backward passes included, run within ``around()``.
    """

    function: Callable[[Case], Function]
    adapt: Callable[[Case, Inputs], Inputs] = field(default=lambda case, inputs: inputs)
    comparable: bool = True
    around: Callable[[], AbstractContextManager[None]] = nullcontext


@dataclass(frozen=True)
class Task:
    """One entry point of one op, or a ``whole`` job of many ops.

    ``compiled(case, impl)`` runs the job as ``torch.compile`` translates it, with ops of ``impl``; without it, the
    provider ``compile`` translates the reference. Only a whole job is compiled with the library's ops in it.
    """

    op: str
    entry: str
    inputs: Callable[[Case, torch.Generator], Inputs]
    fastvae: Callable[[Case, str], Function]
    reference: Callable[[Case], Function]
    work: Callable[[Case], Work]
    shapes: Mapping[str, Sequence[Shape]]
    variant: str = ""
    modes: Sequence[str] = ("fwd", "fwdbwd")
    dtypes: Mapping[str, Sequence[str]] = field(
        default_factory=lambda: {"cpu": ("float32",), "cuda": ("float32", "bfloat16", "float16")}
    )
    peers: Mapping[str, Peer] = field(default_factory=dict)
    compiled: Callable[[Case, str], Function] | None = None
    check: Callable[[Case, Inputs, Any], str | None] | None = None
    sampled: bool = True
    compiles: bool = True
    whole: bool = False

    @property
    def name(self) -> str:
        return ".".join(part for part in (self.op, self.entry, self.variant) if part)

    def offers(self, provider: str) -> bool:
        if provider == "compile":
            return self.compiles
        if provider == "fastvae_compile":
            return self.whole and self.compiled is not None
        return provider in ("fastvae", "reference", *EXPLICIT, *self.peers)

    def checks(self, provider: str) -> bool:
        """Whether results of ``provider`` can be held against the reference."""
        return self.check is not None and (provider not in self.peers or self.peers[provider].comparable)

    def function(self, case: Case, provider: str) -> Function:
        """What ``provider`` runs for ``case``, a function of the task's inputs."""
        if provider == "fastvae":
            return self.fastvae(case, "auto")
        if provider in EXPLICIT:
            return self.fastvae(case, provider)
        if provider == "reference":
            return self.reference(case)
        if provider in ("compile", "fastvae_compile") and self.compiled is not None:
            return self.compiled(case, "reference" if provider == "compile" else "auto")
        if provider == "compile":
            return torch.compile(self.reference(case), dynamic=False)
        return self.peers[provider].function(case)

    def around(self, provider: str) -> Callable[[], AbstractContextManager[None]]:
        return self.peers[provider].around if provider in self.peers else nullcontext

    def adapt(self, case: Case, provider: str, inputs: Inputs) -> Inputs:
        return self.peers[provider].adapt(case, inputs) if provider in self.peers else inputs
