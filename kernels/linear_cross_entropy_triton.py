"""
The Triton form of the row pass of kernels/linear_cross_entropy.py: one program per row of logits.

    nll, entropy, normaliser = launch_rows(logits, labels, shares, z_loss=0.0, graded=True)

One sweep over the vocabulary keeps the running maximum m, S = sum e^(z - m) and U = sum e^(z - m) (z - m).
When the maximum moves by D = old - new <= 0, U <- e^D (U + D S), then S <- e^D S. A second sweep writes

    share (e^(z - m) / S (1 + 2 z_loss (m + ln S)) - [v = y])

over the logits. fp32 inside (fp64 for fp64 logits); bf16 is rounded on its bits, because the interpreter's
store truncates.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.rounding_triton import store_rounded

LARGEST_BLOCK = 4096


@triton.jit
def _row_kernel(
    logits_ptr,
    labels_ptr,
    shares_ptr,
    nll_ptr,
    entropy_ptr,
    normaliser_ptr,
    z_loss,
    vocab,
    stride,
    A: tl.constexpr,
    GRADED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride
    label = tl.load(labels_ptr + row)
    chosen = tl.load(row_ptr + label).to(A)

    m, s, u = tl.full((), -3.0e38, A), tl.full((), 0.0, A), tl.full((), 0.0, A)
    for start in range(0, vocab, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        inside = offsets < vocab
        z = tl.load(row_ptr + offsets, mask=inside, other=float("-inf")).to(A)
        new = tl.maximum(m, tl.max(z))
        moved = m - new
        # u before s: it uses the old mass
        u = tl.exp(moved) * (u + moved * s)
        s = tl.exp(moved) * s
        shifted = tl.where(inside, z - new, 0.0)
        e = tl.where(inside, tl.exp(shifted), 0.0)
        u += tl.sum(e * shifted)
        s += tl.sum(e)
        m = new
    log_s = tl.log(s)
    normaliser = m + log_s
    tl.store(nll_ptr + row, normaliser - chosen)
    tl.store(entropy_ptr + row, tl.minimum(tl.maximum(log_s - u / s, 0.0), tl.log(vocab.to(A))))
    tl.store(normaliser_ptr + row, normaliser)

    if GRADED:
        share = tl.load(shares_ptr + row)
        scale = share * (1.0 + 2.0 * z_loss * normaliser) / s
        for start in range(0, vocab, BLOCK):
            offsets = start + tl.arange(0, BLOCK)
            inside = offsets < vocab
            z = tl.load(row_ptr + offsets, mask=inside, other=0.0).to(A)
            gradient = tl.exp(z - m) * scale - tl.where(offsets == label, share, 0.0)
            store_rounded(row_ptr + offsets, gradient, inside)


def launch_rows(
    logits: Tensor, labels: Tensor, shares: Tensor, z_loss: float, graded: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """NLL, entropy and log of the normaliser of each row; `graded` puts d loss / dz into `logits`."""
    rows, vocab = logits.shape
    found = tuple(torch.empty(rows, dtype=shares.dtype, device=logits.device) for _ in range(3))
    accumulator = tl.float64 if shares.dtype == torch.float64 else tl.float32
    sizes = (vocab, logits.stride(0))
    block = min(LARGEST_BLOCK, triton.next_power_of_2(vocab))
    if rows:
        _row_kernel[(rows,)](
            logits, labels, shares, *found, z_loss, *sizes, A=accumulator, GRADED=graded, BLOCK=block
        )
    return found
