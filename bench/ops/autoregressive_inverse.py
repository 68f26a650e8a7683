"""Inverse of an autoregressive affine step, beside the libraries that people use and beside its own forward.

The reference is the one-sweep algorithm in plain PyTorch. The library's gain over it is the gain of the kernel. The
peers run the network once for each feature. The provider ``forward`` is the library's forward step on the solution.
"""

from __future__ import annotations

from torch import Tensor

from .. import networks, peers
from ..task import Case, Function, Inputs, Peer, Shape, Task

# Rows, columns and modes by the widths of the hidden layers. Peers keep the activations of every pass for backward;
# with 784 features they do not fit into memory.
SHAPES = {
    "512-512": (Shape(1024, 64), ("fwd", "fwdbwd")),
    "1024-1024": (Shape(256, 784), ("fwd",)),
}


def _fastvae(case: Case, impl: str) -> Function:
    from fastvae.ops.autoregressive_inverse import autoregressive_inverse

    structure = networks.find_structure(case)

    def run(z: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        return autoregressive_inverse(z, None, networks.parameters(tensors), structure, kind=networks.KIND, impl=impl)

    return run


def _reference(case: Case) -> Function:
    from fastvae.reference.autoregressive_inverse import autoregressive_inverse

    structure = networks.find_structure(case)
    return lambda z, *tensors: autoregressive_inverse(z, None, networks.parameters(tensors), structure, networks.KIND)


def _forward(case: Case) -> Function:
    from fastvae.ops.autoregressive_flow import autoregressive_flow

    structure = networks.find_structure(case)
    return lambda x, *tensors: autoregressive_flow(x, None, networks.parameters(tensors), structure, kind=networks.KIND)


def _solve(case: Case, inputs: Inputs) -> Inputs:
    return (_fastvae(case, "auto")(*inputs)[0], *inputs[1:])


TASKS = tuple(
    Task(
        op="autoregressive_inverse",
        entry="inverse",
        variant=variant,
        modes=modes,
        inputs=networks.inputs,
        fastvae=_fastvae,
        reference=_reference,
        peers={name: peers.make_inverse(name) for name in peers.MODULES} | {"forward": Peer(_forward, _solve, False)},
        work=networks.work,
        check=networks.check_inverse,
        shapes={"cpu": (shape,), "cuda": (shape,)},
        dtypes={"cpu": ("float32",), "cuda": ("float32",)},
        sampled=False,
        compiles=False,
    )
    for variant, (shape, modes) in SHAPES.items()
)
