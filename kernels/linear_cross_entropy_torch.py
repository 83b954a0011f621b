"""
The plain torch form of the row pass in kernels/linear_cross_entropy.py, and the memory that a chunk needs.

    chunk = chunk_buffers(256, weight, torch.float32, on_torch=True)
    torch.mm(inputs, weight.T, out=chunk.logits)
    found = torch_rows(chunk, labels, share, z_loss=0.0, with_entropy=False, graded=True)
    accumulate(grad_weight, found.gradient, inputs)

On a CPU the products run at full speed, so the rest counts: memory is taken once for all chunks
(fresh memory costs more than the exponentials put into it), softmax is one pass within the cache, and dW is
added up block by block.

V vocabulary, C rows of a chunk, D width.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

CPU_BLOCK_ROWS = 2048  # of dW: 1 MB at width 256, as large as a second-level cache


class Buffers(NamedTuple):
    """
    Memory of one chunk [rows, V]: logits and later their gradient in the dtype of the products; on the torch
    path probabilities in the accumulator's dtype, and the logits in it where that is another (else 0 rows).
    """

    logits: Tensor
    wide: Tensor
    probabilities: Tensor


class RowSums(NamedTuple):
    """Weighted fp64 sums over the rows of a chunk, and d loss / d logits where asked for."""

    loss: Tensor
    entropy: Tensor
    z: Tensor
    gradient: Tensor | None


def chunk_buffers(rows: int, weight: Tensor, accumulator: torch.dtype, on_torch: bool) -> Buffers:
    """Memory for chunks of up to `rows` rows against weight [V, D]."""

    def empty(dtype: torch.dtype, wanted: bool) -> Tensor:
        return torch.empty((rows if wanted else 0, weight.shape[0]), dtype=dtype, device=weight.device)

    converted = on_torch and weight.dtype != accumulator
    return Buffers(empty(weight.dtype, True), empty(accumulator, converted), empty(accumulator, on_torch))


def accumulate(total_VD: Tensor, gradient_CV: Tensor, inputs_CD: Tensor) -> None:
    """total += gradient^T inputs; a product in low precision is added while its block is in the cache."""
    if total_VD.dtype == inputs_CD.dtype:
        total_VD.addmm_(gradient_CV.T, inputs_CD)
        return
    size = CPU_BLOCK_ROWS if total_VD.device.type == "cpu" else len(total_VD)
    for start in range(0, len(total_VD), size):
        block = slice(start, start + size)
        total_VD[block].add_(gradient_CV[:, block].T @ inputs_CD)


def torch_rows(
    chunk: Buffers, labels: Tensor, share: Tensor, z_loss: float, with_entropy: bool, graded: bool
) -> RowSums:
    """Sums over the rows of a chunk. max p = 1 / S, so softmax's own fused pass is enough to know ln S."""
    none = torch.zeros((), dtype=torch.float64, device=share.device)
    logits, label = chunk.wide.copy_(chunk.logits) if len(chunk.wide) else chunk.logits, labels[:, None]
    chosen, largest = logits.gather(1, label).squeeze(1), logits.amax(1)
    p = torch.softmax(logits, 1, out=chunk.probabilities)
    log_mass = -p.amax(1).log()
    normaliser = largest + log_mass
    loss, entropy, z, scale = ((normaliser - chosen) * share).sum(dtype=torch.float64), none, none, share
    if with_entropy:
        moment = logits.sub_(largest[:, None]).mul_(p).sum(1)
        entropies = (log_mass - moment).clamp(0, math.log(logits.shape[1]))
        entropy = (entropies * share).sum(dtype=torch.float64)
    if z_loss:
        z = (normaliser.square() * share).sum(dtype=torch.float64)
        loss, scale = loss + z_loss * z, share * (1 + 2 * z_loss * normaliser)
    if not graded:
        return RowSums(loss, entropy, z, None)
    gradient = p.mul_(scale[:, None]).scatter_add_(1, label, -share[:, None])
    return RowSums(loss, entropy, z, chunk.logits.copy_(gradient) if len(chunk.wide) else gradient)
