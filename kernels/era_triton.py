"""
The Triton form of kernels/era.py: one pass forward (6 bytes an element in bf16), one backward (10 bytes).

    hidden = launch_forward(gate, up, gamma=0.1)
    grad_gate, grad_up = launch_backward(grad, gate, up, gamma=0.1)

A program covers a part of one row, and rows may lie apart: gate and up are usually halves of one projection.
There is no libdevice under the interpreter, so tanh is written with e^x and ln(1 + e) as
ln(w) e / (w - 1) with w = 1 + e, which is exact to rounding where w loses digits of e (Goldberg 1991).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.rounding_triton import store_rounded

LARGEST_BLOCK = 1024


@triton.jit
def _era(x, GAMMA: tl.constexpr):
    """ERA(x) and ERA'(x)."""
    # beyond 10 both are those of the limit, and nothing overflows
    t = tl.minimum(tl.maximum(x, -10.0), 10.0)
    e = tl.exp(-1.5957691216057308 * (t + 0.044715 * t * t * t))
    s = 1.0 / (1.0 + e)
    s = tl.where(x > -10.0, s, 0.0)
    value = x * s
    slope = s + t * s * (e * s) * 1.5957691216057308 * (1.0 + 0.134145 * t * t)
    if GAMMA != 0.0:
        decayed = tl.exp(-tl.abs(x))
        w = 1.0 + decayed
        same = w == 1.0
        log1p = tl.where(same, decayed, tl.log(w) * decayed / tl.where(same, 1.0, w - 1.0))
        value += GAMMA * (tl.maximum(x, 0.0) + log1p)
        slope += GAMMA * tl.where(x >= 0.0, 1.0, decayed) / w
    return value, slope


@triton.jit
def _forward_kernel(
    gate_ptr,
    up_ptr,
    out_ptr,
    gate_stride,
    up_stride,
    columns,
    A: tl.constexpr,
    GAMMA: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < columns
    gate = tl.load(gate_ptr + row * gate_stride + offsets, mask=inside, other=0.0).to(A)
    value, _ = _era(gate, GAMMA)
    if GATED:
        value *= tl.load(up_ptr + row * up_stride + offsets, mask=inside, other=0.0).to(A)
    store_rounded(out_ptr + row * columns + offsets, value, inside)


@triton.jit
def _backward_kernel(
    grad_ptr,
    gate_ptr,
    up_ptr,
    grad_gate_ptr,
    grad_up_ptr,
    grad_stride,
    gate_stride,
    up_stride,
    columns,
    A: tl.constexpr,
    GAMMA: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < columns
    grad = tl.load(grad_ptr + row * grad_stride + offsets, mask=inside, other=0.0).to(A)
    gate = tl.load(gate_ptr + row * gate_stride + offsets, mask=inside, other=0.0).to(A)
    value, slope = _era(gate, GAMMA)
    if GATED:
        store_rounded(grad_up_ptr + row * columns + offsets, grad * value, inside)
        grad *= tl.load(up_ptr + row * up_stride + offsets, mask=inside, other=0.0).to(A)
    store_rounded(grad_gate_ptr + row * columns + offsets, grad * slope, inside)


def launch_forward(gate: Tensor, up: Tensor | None, gamma: float) -> Tensor:
    """ERA(gate), times `up` where there is one."""
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    if gate.numel():
        rows = [_rows(gate), _rows(gate if up is None else up)]
        strides = [each.stride(0) for each in rows]
        grid, options = _grid_and_options(rows[0], gamma, up is not None)
        _forward_kernel[grid](*rows, out, *strides, rows[0].shape[1], **options)
    return out


def launch_backward(
    grad: Tensor, gate: Tensor, up: Tensor | None, gamma: float
) -> tuple[Tensor, Tensor | None]:
    """Gradients of gate and up, each contiguous."""
    grad_gate = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    grad_up = None if up is None else torch.empty_like(grad_gate)
    if gate.numel():
        rows = [_rows(grad), _rows(gate), _rows(gate if up is None else up)]
        strides = [each.stride(0) for each in rows]
        grid, options = _grid_and_options(rows[1], gamma, up is not None)
        outputs = grad_gate, grad_gate if grad_up is None else grad_up
        _backward_kernel[grid](*rows, *outputs, *strides, rows[1].shape[1], **options)
    return grad_gate, grad_up


def _rows(tensor: Tensor) -> Tensor:
    """A matrix whose rows are contiguous; a copy only where the layout leaves no other way."""
    matrix = tensor.reshape(-1, tensor.shape[-1]) if tensor.ndim else tensor.reshape(1, 1)
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


def _grid_and_options(matrix: Tensor, gamma: float, gated: bool) -> tuple[tuple[int, int], dict]:
    block = min(LARGEST_BLOCK, triton.next_power_of_2(matrix.shape[1]))
    accumulator = tl.float64 if matrix.dtype == torch.float64 else tl.float32
    options = {"A": accumulator, "GAMMA": float(gamma), "GATED": gated, "BLOCK": block}
    return (matrix.shape[0], triton.cdiv(matrix.shape[1], block)), options
