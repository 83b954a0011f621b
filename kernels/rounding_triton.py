"""
Stores of fp32 values in any dtype, rounded to nearest even, for the Triton form of every kernel.

    store_rounded(pointer, value, mask)        # inside a kernel; value of any shape, mask of the same

Under the interpreter a store from fp32 to bf16 truncates, so rounding is done on the bits, there and on the
GPU alike.
"""

import triton
import triton.language as tl


@triton.jit
def round_to_bf16(x):
    """fp32 -> bf16, to nearest even; a NaN stays one."""
    bits = x.to(tl.int32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    rounded = tl.where(x == x, rounded, 0x7FC0)
    return rounded.to(tl.int16).to(tl.bfloat16, bitcast=True)


@triton.jit
def store_rounded(pointer, value, mask):
    """Store fp32 in the dtype that the pointer is of."""
    if pointer.dtype.element_ty == tl.bfloat16:
        tl.store(pointer, round_to_bf16(value), mask=mask)
    else:
        tl.store(pointer, value.to(pointer.dtype.element_ty), mask=mask)
