"""
The Triton form of the grouped products of kernels/moe.py, where torch's own would go through the host.

    y_MN = launch_products(x_MK, weight_ENK, offsets_E)              # y_i = x_i W_e^T
    grad_ENK = launch_weight_products(grad_MN, x_MK, offsets_E)      # sum over rows of e of grad_i x_i^T

How many rows an expert has is known on the device alone. An expert begins at most one tile that it does not
fill, so ceil(M / BLOCK_M) + E tiles of rows are enough; each program finds its expert, and those left over
return. Weights are summed by one program per tile over all rows of the expert: no atomics, the same bits
every time. fp32 products stay fp32 (no TF32). The interpreter's tl.dot is wrong for bf16 operands, so there
they are raised to fp32 first.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.resolution import interpreted
from kernels.rounding_triton import store_rounded

BLOCK_M, BLOCK_N, BLOCK_K = 64, 64, 32


@triton.jit
def _dot(a, b, total, UPCAST: tl.constexpr):
    if UPCAST:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def _products_kernel(
    x_ptr,
    weight_ptr,
    y_ptr,
    offsets_ptr,
    N,
    K,
    x_stride,
    expert_stride,
    n_stride,
    k_stride,
    E: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # the expert whose tiles contain this program's, its first row and its end
    tile = tl.program_id(0)
    expert, first, end, tiles, start = 0, 0, 0, 0, 0
    for e in range(E):
        stop = tl.load(offsets_ptr + e)
        here = (stop - start + BLOCK_M - 1) // BLOCK_M
        mine = (tile >= tiles) & (tile < tiles + here)
        expert = tl.where(mine, e, expert)
        first = tl.where(mine, start + (tile - tiles) * BLOCK_M, first)
        end = tl.where(mine, stop, end)
        tiles += here
        start = stop
    if tile < tiles:
        rows = first.to(tl.int64) + tl.arange(0, BLOCK_M)
        columns = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
        in_rows, in_columns = rows < end, columns < N
        base_ptr = weight_ptr + expert.to(tl.int64) * expert_stride
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, K, BLOCK_K):
            inner = k + tl.arange(0, BLOCK_K)
            x = tl.load(
                x_ptr + rows[:, None] * x_stride + inner[None, :],
                mask=in_rows[:, None] & (inner < K)[None, :],
                other=0.0,
            )
            weight = tl.load(
                base_ptr + columns[None, :] * n_stride + inner[:, None] * k_stride,
                mask=in_columns[None, :] & (inner < K)[:, None],
                other=0.0,
            )
            total = _dot(x, weight, total, UPCAST)
        store_rounded(
            y_ptr + rows[:, None] * N + columns[None, :], total, in_rows[:, None] & in_columns[None, :]
        )


@triton.jit
def _weight_products_kernel(
    grad_ptr,
    x_ptr,
    out_ptr,
    offsets_ptr,
    N,
    K,
    grad_stride,
    x_stride,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    expert = tl.program_id(0)
    start = tl.load(offsets_ptr + expert - 1, mask=expert > 0, other=0)
    stop = tl.load(offsets_ptr + expert)
    outer = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.program_id(2).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_outer, in_inner = outer < N, inner < K
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for row in range(start, stop, BLOCK_K):
        rows = row + tl.arange(0, BLOCK_K).to(tl.int64)
        inside = rows < stop
        grad = tl.load(
            grad_ptr + rows[None, :] * grad_stride + outer[:, None],
            mask=inside[None, :] & in_outer[:, None],
            other=0.0,
        )
        x = tl.load(
            x_ptr + rows[:, None] * x_stride + inner[None, :],
            mask=inside[:, None] & in_inner[None, :],
            other=0.0,
        )
        total = _dot(grad, x, total, UPCAST)
    place = out_ptr + expert.to(tl.int64) * N * K + outer[:, None] * K + inner[None, :]
    store_rounded(place, total, in_outer[:, None] & in_inner[None, :])


def launch_products(x_MK: Tensor, weight_ENK: Tensor, offsets_E: Tensor) -> Tensor:
    """x_i W_e^T for every row; the weight may be a transposed view."""
    x_MK = _rows(x_MK)
    (experts, outer, inner), rows = weight_ENK.shape, x_MK.shape[0]
    y_MN = torch.empty(rows, outer, dtype=x_MK.dtype, device=x_MK.device)
    if rows:
        grid = (triton.cdiv(rows, BLOCK_M) + experts, triton.cdiv(outer, BLOCK_N))
        strides = (x_MK.stride(0), *weight_ENK.stride())
        _products_kernel[grid](
            x_MK, weight_ENK, y_MN, offsets_E, outer, inner, *strides, E=experts, **_options(x_MK)
        )
    return y_MN


def launch_weight_products(grad_MN: Tensor, x_MK: Tensor, offsets_E: Tensor) -> Tensor:
    """Sum over the rows of each expert of grad_i x_i^T, [E, N, K]."""
    grad_MN, x_MK = _rows(grad_MN), _rows(x_MK)
    experts, outer, inner = offsets_E.shape[0], grad_MN.shape[1], x_MK.shape[1]
    out_ENK = torch.empty(experts, outer, inner, dtype=x_MK.dtype, device=x_MK.device)
    grid = (experts, triton.cdiv(outer, BLOCK_N), triton.cdiv(inner, BLOCK_M))
    strides = (grad_MN.stride(0), x_MK.stride(0))
    _weight_products_kernel[grid](grad_MN, x_MK, out_ENK, offsets_E, outer, inner, *strides, **_options(x_MK))
    return out_ENK


def _rows(matrix: Tensor) -> Tensor:
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


def _options(x: Tensor) -> dict[str, int | bool]:
    upcast = interpreted() and x.dtype == torch.bfloat16
    return {"UPCAST": upcast, "BLOCK_M": BLOCK_M, "BLOCK_N": BLOCK_N, "BLOCK_K": BLOCK_K}
