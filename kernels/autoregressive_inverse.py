"""Inverse of an autoregressive affine flow in one sweep over the features, and the transposed sweep for its gradient.

Units are in ascending order of degree. So the known units are the first ones (or, transposed, the last ones), and every
weight is used once. A program owns rows, and keeps what it knows of them in a buffer that starts as zeros. It reads
whole blocks of the buffer: units that are not known yet, and weights that do not count, are zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..structure import ACTIVATION_NAMES, MadeStructure, spread_degrees
from ._activations import OF_PRE_ACTIVATION, activate, through
from ._affine import KINDS, inside_clamp, scale_of, slopes_of
from ._inverse_sweep import count_known, find_sweep
from ._launch import AotCase, Plan, by_shape, compute_dtype, meta, warp_size
from ._matrix import launch_options
from ._tiles import ceil_div, next_power_of_2, row_stride
from .masked_linear import masked_layer
from .sorted_units import WIDTH_STEP, SortedStructure, sorted_structure, sorted_units

# Two programs for each multiprocessor of a large device.
_BUSY = 264
# Products that a program makes at once: 32 for each of its threads.
_PRODUCTS, _WARPS = 4096, 4
_MOST_UNITS = 16


@triton.jit
def _weighted_sum(
    known_ptrs, exists, weight_ptrs, wanted, begin, end,
    BLOCK_N: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """(BLOCK_N, BLOCK_U) sums of weight times known unit over the blocks that hold units begin, ..., end - 1."""
    total = tl.zeros((BLOCK_N, BLOCK_U, BLOCK_K), known_ptrs.dtype.element_ty)
    for block in range(begin // BLOCK_K, tl.cdiv(end, BLOCK_K)):
        k = block * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
        known = tl.load(known_ptrs[:, None] + k, exists[:, None], 0.0)
        weight = tl.load(weight_ptrs[:, None] + k, wanted[:, None], 0.0).to(known.dtype)
        total += known[:, None, :] * weight[None, :, :]
    return tl.sum(total, 2)


@triton.jit
def _column(t, index: tl.constexpr, BLOCK: tl.constexpr):
    return tl.sum(tl.where(tl.arange(0, BLOCK)[None, :] == index, t, 0.0), 1)


@triton.jit(do_not_specialize=["n_rows"])
def _autoregressive_inverse_fwd_kernel(
    x_ptr, log_det_ptr, known_ptr, z_ptr, context_ptr, weights_ptr, biases_ptr, scales_ptr, counts_ptr,
    features_ptr, first_units_ptr, n_rows, D, K, stride_z, stride_context,
    KIND: tl.constexpr, ACTIVATION: tl.constexpr, LAYERS: tl.constexpr, RESIDUAL: tl.constexpr,
    HAS_CONTEXT: tl.constexpr, PARAMS: tl.constexpr, SHARES: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_N rows and walks the features in order.

    x_i = (z_i - c(s_i) m_i) / a(s_i),  log_det = -sum(log a(s_i)); then the units of degree i become known.
    With SHARES log_det has the summands. The buffer has K numbers of a row for its features, each hidden layer, and the
    residual stream if there is one.
    """
    dtype: tl.constexpr = log_det_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    exists = row < n_rows
    known_ptrs = known_ptr + row * ((LAYERS + 2 if RESIDUAL else LAYERS + 1) * K)
    log_det = tl.zeros((BLOCK_N,), dtype)
    log_a = log_det
    for place in range(0, D):
        known = place
        for layer in tl.static_range(LAYERS):
            begin = tl.load(counts_ptr + layer * (D + 1) + place)
            end = tl.load(counts_ptr + layer * (D + 1) + place + 1)
            for first in range(begin, end, BLOCK_U):
                unit = first + tl.arange(0, BLOCK_U)
                wanted = unit < end
                weight_ptrs = weights_ptr + (layer * K + unit).to(tl.int64) * K
                h = _weighted_sum(
                    known_ptrs + layer * K, exists, weight_ptrs, wanted, 0, known, BLOCK_N, BLOCK_U, BLOCK_K
                )
                scale = tl.load(scales_ptr + layer * K + unit, wanted, 0.0)
                h = h * scale[None, :] + tl.load(biases_ptr + layer * K + unit, wanted, 0.0)[None, :]
                owned = exists[:, None] & wanted[None, :]
                if layer == 0 and HAS_CONTEXT:
                    column = tl.load(first_units_ptr + unit, wanted, 0)
                    at = row[:, None] * stride_context + column[None, :]
                    h += tl.load(context_ptr + at, owned, 0.0).to(dtype)
                if RESIDUAL and layer % 2 == 0:
                    stream_ptrs = known_ptrs[:, None] + ((LAYERS + 1) * K + unit)[None, :]
                    if layer > 0:
                        h += tl.load(stream_ptrs, owned, 0.0)
                    tl.store(stream_ptrs, h, owned)
                if not RESIDUAL or layer < LAYERS - 1:
                    h = activate(h, ACTIVATION)
                tl.store(known_ptrs[:, None] + ((layer + 1) * K + unit)[None, :], h, owned)
            known = end
            tl.debug_barrier()  # other threads of this program read next what these have written
        param = place * PARAMS + tl.arange(0, PARAMS)
        weight_ptrs = weights_ptr + (LAYERS * K + param).to(tl.int64) * K
        params = _weighted_sum(
            known_ptrs + LAYERS * K, exists, weight_ptrs, param >= 0, 0, known, BLOCK_N, PARAMS, BLOCK_K
        )
        params *= tl.load(scales_ptr + LAYERS * K + param)[None, :]
        params += tl.load(biases_ptr + LAYERS * K + param)[None, :]
        feature = tl.load(features_ptr + place)
        value = tl.load(z_ptr + row * stride_z + feature, exists, 0.0).to(dtype)
        m = _column(params, 0, PARAMS)
        if KIND == "location_only":
            value -= m
        else:
            log_a, a, c = scale_of(_column(params, 1, PARAMS), KIND)
            value = (value - c * m) / a
            log_det -= log_a
        if SHARES:
            tl.store(log_det_ptr + row * D + feature, -log_a, exists)
        tl.store(x_ptr + row * D + feature, value.to(x_ptr.dtype.element_ty), exists)
        tl.store(known_ptrs + place, value, exists)
        tl.debug_barrier()
    if not SHARES:
        tl.store(log_det_ptr + row, log_det, exists)


@triton.jit(do_not_specialize=["n_rows"])
def _autoregressive_inverse_solve_kernel(
    lam_ptr, adjoint_ptr, d_x_ptr, d_log_det_ptr, x_ptr, params_ptr, kept_ptr, weights_ptr, counts_ptr, features_ptr,
    n_rows, D, K, stride_d_x, stride_x, stride_params, param_stride, feature_stride,
    KIND: tl.constexpr, ACTIVATION: tl.constexpr, LAYERS: tl.constexpr, RESIDUAL: tl.constexpr, PARAMS: tl.constexpr,
    SHARES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_N rows and walks the features from the last to the first.

    lam_i = (d_x_i - what later features send back to i) / a(s_i); then the adjoints of m_i and s_i become known.
    The buffer has K adjoints of a row for each hidden layer, before its activation, and for the outputs.
    """
    dtype: tl.constexpr = d_log_det_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    exists = row < n_rows
    adjoint_ptrs = adjoint_ptr + row * ((LAYERS + 1) * K)
    kept_ptrs = kept_ptr + row * (LAYERS * K)
    one = tl.arange(0, 1)
    if not SHARES:
        d_log_det = tl.load(d_log_det_ptr + row, exists, 0.0)
    for step in range(0, D):
        place = D - 1 - step
        # Units of degree place + 1 feed the features that are done, and those only.
        known, known_end = (place + 1) * PARAMS, D * PARAMS
        for layer in tl.static_range(LAYERS - 1, -1, -1):
            begin = tl.load(counts_ptr + layer * (D + 1) + place + 1)
            end = tl.load(counts_ptr + layer * (D + 1) + tl.minimum(place + 2, D))
            for first in range(begin, end, BLOCK_U):
                unit = first + tl.arange(0, BLOCK_U)
                wanted = unit < end
                weight_ptrs = weights_ptr + ((layer + 1) * K + unit).to(tl.int64) * K
                d_h = _weighted_sum(
                    adjoint_ptrs + (layer + 1) * K, exists, weight_ptrs, wanted, known, known_end,
                    BLOCK_N, BLOCK_U, BLOCK_K,
                )  # fmt: skip
                owned = exists[:, None] & wanted[None, :]
                if not RESIDUAL or layer < LAYERS - 1:
                    at = (layer * K + unit)[None, :]
                    d_h = through(d_h, tl.load(kept_ptrs[:, None] + at, owned, 0.0).to(dtype), ACTIVATION)
                    if RESIDUAL and layer % 2 == 0:
                        d_h += tl.load(adjoint_ptrs[:, None] + at + 2 * K, owned, 0.0)
                tl.store(adjoint_ptrs[:, None] + (layer * K + unit)[None, :], d_h, owned)
            known, known_end = begin, tl.load(counts_ptr + layer * (D + 1) + D)
            tl.debug_barrier()  # other threads of this program read next what these have written
        weight_ptrs = weights_ptr + (place + one).to(tl.int64) * K
        back = _weighted_sum(adjoint_ptrs, exists, weight_ptrs, one == 0, known, known_end, BLOCK_N, 1, BLOCK_K)
        feature = tl.load(features_ptr + place)
        lam = tl.load(d_x_ptr + row * stride_d_x + feature, exists, 0.0).to(dtype) - tl.sum(back, 1)
        adjoints = adjoint_ptrs + LAYERS * K + place * PARAMS
        if KIND == "location_only":
            tl.store(adjoints, lam, exists)
        else:
            at = row * stride_params + feature * feature_stride
            m = tl.load(params_ptr + at, exists, 0.0).to(dtype)
            s = tl.load(params_ptr + at + param_stride, exists, 0.0).to(dtype)
            x = tl.load(x_ptr + row * stride_x + feature, exists, 0.0).to(dtype)
            _, a, c = scale_of(s, KIND)
            d_log_a, d_c = slopes_of(s, a, c, KIND)
            lam = lam / a
            tl.store(adjoints, c * lam, exists)
            if SHARES:
                d_log_det = tl.load(d_log_det_ptr + row * D + feature, exists, 0.0)
            d_s = (a * x * lam + d_log_det) * d_log_a + d_c * m * lam
            tl.store(adjoints + 1, inside_clamp(d_s, s, KIND), exists)
        tl.store(lam_ptr + row * D + feature, lam.to(lam_ptr.dtype.element_ty), exists)
        tl.debug_barrier()


def _options(dtype: torch.dtype) -> dict[str, int]:
    """Warps, and on NVIDIA so few registers that four programs share a multiprocessor: a batch of 1024 is one wave.

    float64 would spill.
    """
    options = launch_options(_WARPS)
    return options if warp_size() == 64 or dtype == torch.float64 else options | {"maxnreg": 128}


class _Network(NamedTuple):
    """What plans depend on: see `SortedStructure` for `width` and `most`."""

    kind: str
    activation: str
    layers: int
    residual: bool
    width: int
    most: int

    @classmethod
    def of(cls, structure: MadeStructure, kind: str, units: SortedStructure) -> _Network:
        layers = len(structure.hidden_degrees)
        return cls(kind, structure.activation, layers, structure.residual, units.width, units.most)


def _choose_blocks(rows: int, network: _Network) -> tuple[int, int, int]:
    """How many rows a program owns, how many units and inputs it takes at once. Small batches get small programs."""
    block_n = min(max(next_power_of_2(rows // _BUSY + 1) // 2, 1), 16)
    block_u = min(next_power_of_2(network.most), _MOST_UNITS)
    return block_n, block_u, min(_PRODUCTS // (block_n * block_u), network.width, WIDTH_STEP)


@by_shape
def _plan(
    device: int,
    dtypes: Sequence[torch.dtype],
    n: int,
    d: int,
    strides: Sequence[int],
    network: _Network,
    is_solve: bool,
    **also: bool,
) -> Plan:
    block_n, block_u, block_k = _choose_blocks(n, network)
    return Plan(
        device, _autoregressive_inverse_solve_kernel if is_solve else _autoregressive_inverse_fwd_kernel,
        ceil_div(n, block_n), (n, d, network.width, *strides),
        KIND=network.kind, ACTIVATION=network.activation, LAYERS=network.layers, RESIDUAL=network.residual,
        PARAMS=_params(network.kind), **also, BLOCK_N=block_n, BLOCK_U=block_u, BLOCK_K=block_k, **_options(dtypes[0]),
    )  # fmt: skip


def _params(kind: str) -> int:
    return 1 if kind == "location_only" else 2


def _choices(structure: MadeStructure, kind: str) -> tuple[int, int, bool]:
    """Kind, activation and residual as the sweeps' kernels take them."""
    return KINDS.index(kind), ACTIVATION_NAMES.index(structure.activation), structure.residual


def autoregressive_inverse_fwd(
    z: Tensor,
    context_term: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    weight_scales: Sequence[Tensor | None],
    structure: MadeStructure,
    kind: str,
    log_det_map: bool = False,
) -> tuple[Tensor, Tensor]:
    """x (N, D) whose flow step is z, and the log-determinant of the inverse, float32 or float64.

    The log-determinant is (N,), with `log_det_map` (N, D): each feature's share.
    """
    (n, d), layers, dtype = z.shape, len(structure.hidden_degrees), compute_dtype(z.dtype)
    x, log_det = z.new_empty((n, d)), z.new_empty((n, d) if log_det_map else n, dtype=dtype)
    params = _params(kind)
    units = sorted_structure(structure, params, z.device)
    sweep = find_sweep("autoregressive_inverse_fwd", (z, context_term), structure, params, units)
    if sweep is not None:
        # Its rows are known units, whose weights to all later units are side by side.
        matrices, vectors, _ = sorted_units(weights, biases, weight_scales, units, True, True)
        context, stride = (z, 0) if context_term is None else (context_term, context_term.stride(0))
        sizes = (n, d, layers, params, units.width, count_known(units, params), z.stride(0), stride)
        sweep.run(
            n,
            (x, log_det, z, context, matrices, vectors, units.counts, units.orders[0], units.orders[1]),
            (*sizes, *_choices(structure, kind), context_term is not None, log_det_map),
        )
        return x, log_det
    matrices, vectors, scales = sorted_units(weights, biases, weight_scales, units, False, False)
    known = z.new_zeros((n, layers + 1 + structure.residual, units.width), dtype=dtype)
    strides, network = (z.stride(0), row_stride(context_term)), _Network.of(structure, kind, units)
    plan = _plan(
        z.get_device(), (z.dtype,), n, d, strides, network, False,
        SHARES=log_det_map, HAS_CONTEXT=context_term is not None,
    )  # fmt: skip
    plan.launch(
        x, log_det, known, z, context_term, matrices, vectors, scales, units.counts, units.orders[0], units.orders[1]
    )
    return x, log_det


def _activations(
    x: Tensor,
    context_term: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    weight_scales: Sequence[Tensor | None],
    structure: MadeStructure,
    degrees: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """The network's output for x, and for each hidden layer the tensor that gives the slope of its activation."""
    last, act = len(structure.hidden_degrees), structure.activation
    h, stream, kept = x, context_term, []
    for layer in range(last + 1):
        joins = structure.residual and layer % 2 == 0 and layer < last
        name = "identity" if layer == last or (joins and layer == last - 1) else act
        addend = stream if layer == 0 or joins else None
        keep = joins or name in OF_PRE_ACTIVATION
        arguments = (weights[layer], biases[layer], weight_scales[layer], addend, degrees[layer], degrees[layer + 1])
        h, pre = masked_layer(h, *arguments, name, keep)
        if joins:
            stream = pre
        kept.append(pre if name in OF_PRE_ACTIVATION else h)
    return h, kept[:last]


def autoregressive_inverse_solve(
    d_x: Tensor,
    d_log_det: Tensor,
    x: Tensor,
    context_term: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    weight_scales: Sequence[Tensor | None],
    structure: MadeStructure,
    kind: str,
) -> Tensor:
    """The gradient (N, D) to z of the inverse that returned x.

    d_log_det is (N,) or (N, D). Let F be the forward step, and J its Jacobian at x. The gradient is the lam of
    d_x = J^T lam + d_log_det grad(log_det F). The gradients to everything else are those of F for the upstream
    gradients -lam and -d_log_det.
    """
    (n, d), layers, dtype = x.shape, len(structure.hidden_degrees), compute_dtype(x.dtype)
    lam = x.new_empty((n, d))
    units = sorted_structure(structure, _params(kind), x.device)
    outputs, kept = _activations(x, context_term, weights, biases, weight_scales, structure, units.degrees)
    sorted_kept = x.new_empty((n, layers, units.width))
    for layer, values in enumerate(kept):
        sorted_kept[:, layer, : values.shape[1]] = values[:, units.orders[layer + 1]]
    shares = d_log_det.dim() == 2
    param_stride, feature_stride = (d, 1) if structure.layout == "blocked" else (1, structure.params_per_feature)
    sweep = find_sweep("autoregressive_inverse_solve", (d_x, x, outputs), structure, _params(kind), units)
    if sweep is not None:
        # Its rows are known units, whose weights to all units before them are side by side.
        matrices, _, _ = sorted_units(weights, biases, weight_scales, units, False, True)
        strides = (d_x.stride(0), x.stride(0), outputs.stride(0), param_stride, feature_stride)
        known = count_known(units, _params(kind))
        sweep.run(
            n,
            (lam, d_x, d_log_det, x, outputs, sorted_kept, matrices, units.counts, units.orders[0]),
            (n, d, layers, _params(kind), units.width, known, *strides, *_choices(structure, kind), shares),
        )
        return lam
    matrices, _, _ = sorted_units(weights, biases, weight_scales, units, True, True)
    adjoint = x.new_zeros((n, layers + 1, units.width), dtype=dtype)
    strides = d_x.stride(0), x.stride(0), outputs.stride(0), param_stride, feature_stride
    network = _Network.of(structure, kind, units)
    plan = _plan(x.get_device(), (x.dtype, d_x.dtype), n, d, strides, network, True, SHARES=shares)
    plan.launch(lam, adjoint, d_x, d_log_det, x, outputs, sorted_kept, matrices, units.counts, units.orders[0])
    return lam


def aot_cases() -> list[AotCase]:
    cases = []
    for dtype, d, hidden, residual, kind, activation, shares in (
        (torch.float32, 64, (512, 512), False, "gated", "elu", False),
        (torch.bfloat16, 64, (512, 512), False, "exp", "gelu", False),
        (torch.float32, 63, (128, 128, 128), True, "softplus", "relu", True),
        (torch.bfloat16, 64, (256, 256, 256), True, "gated", "elu", False),
    ):
        degrees = tuple(spread_degrees(width, d, True) for width in hidden)
        structure = MadeStructure(d, degrees, tuple(range(d)), activation=activation, residual=residual)
        widths = [len(layer) for layer in structure.degrees]
        weights = [meta(widths[i + 1], widths[i], dtype=dtype) for i in range(len(widths) - 1)]
        vectors = [meta(width, dtype=dtype) for width in widths[1:]]
        n, name = 1024, f"{str(dtype)[6:]}, {d}, {kind}{', residual' if residual else ''}"
        z, context = meta(n, d, dtype=dtype), meta(n, widths[1], dtype=dtype)
        network = (context, weights, vectors, [None] * len(weights), structure, kind)
        d_log_det = meta(*((n, d) if shares else (n,)), dtype=compute_dtype(dtype))
        cases += [
            AotCase(name, autoregressive_inverse_fwd, (z, *network, shares)),
            AotCase(name, autoregressive_inverse_solve, (z, d_log_det, z, *network)),
        ]
    return cases
