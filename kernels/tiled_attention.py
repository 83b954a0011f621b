"""
Causal attention with gradients for a CPU, in tiles of queries.

    S = scale Q K^T where visible      P = softmax(S)      O = P V
    dV = P^T dO      dP = dO V^T      dS = P (dP - rowsum(dO O))      dQ = scale dS K      dK = scale dS^T Q

A tile of queries sees only the keys up to its last one, and its probabilities are computed again in the
backward pass (Dao 2022, arXiv 2205.14135), so memory grows with T, not with T^2. Unlike there a tile holds
all its keys: what is left are matrix products over many heads at once, which a CPU is good at.

    output = tiled_attention(query, key, value, visible, scale)

Products and probabilities are rounded to the dtype of the inputs; softmax and sums over tiles are computed in
fp32 (fp64 for fp64 inputs).

B rows, H heads, T tokens, D width of a head; N heads of a part of the rows, I queries of a tile.
"""

import math
import threading
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE_QUERIES = 128
TILE_SCORES = 1 << 20
"""About so many scores are in work at once."""


@torch.compiler.disable
def tiled_attention(
    query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, visible_B1TT: Tensor | None, scale: float
) -> Tensor:
    """
    The attention of each query over the keys that are `visible` (True), none of them after it; None is itself
    and all before it. In shape and dtype of the queries; finite also for a query that sees no key.
    """
    return _TiledAttention.apply(query_BHTD, key_BHTD, value_BHTD, visible_B1TT, scale)


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        visible: Tensor | None,
        scale: float,
    ) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            q, k, v = (query * scale).contiguous(), key.contiguous(), value.contiguous()
            output = torch.empty_like(q)
            for rows in _parts(q.shape):
                q_NTD, k_NTD, v_NTD, out_NTD = (each[rows].flatten(0, 1) for each in (q, k, v, output))
                bias = _bias(visible, rows, q.dtype)
                for begin, end in _tiles(q.shape[2]):
                    p = _probabilities(q_NTD, k_NTD, bias, begin, end)
                    torch.bmm(p, v_NTD[:, :end], out=out_NTD[:, begin:end])
        ctx.save_for_backward(q, k, v, output, visible)
        ctx.scale = scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, output, visible = ctx.saved_tensors
        grads = [torch.empty_like(each) for each in (q, k, v)]
        for rows in _parts(q.shape):
            q_NTD, k_NTD, v_NTD, out_NTD = (each[rows].flatten(0, 1) for each in (q, k, v, output))
            do_NTD = grad[rows].flatten(0, 1)
            dq_NTD, *narrow = (each[rows].flatten(0, 1) for each in grads)
            dk_NTD, dv_NTD = (_scratch(name, k_NTD.shape, _wide(q.dtype)) for name in ("dk", "dv"))
            row_sums = (do_NTD * out_NTD).sum(-1, keepdim=True)
            bias = _bias(visible, rows, q.dtype)
            for begin, end in _tiles(q.shape[2]):
                tile = slice(begin, end)
                p = _probabilities(q_NTD, k_NTD, bias, begin, end)
                ds = _scratch("ds", p.shape, p.dtype)
                torch.bmm(do_NTD[:, tile], v_NTD[:, :end].transpose(1, 2), out=ds)
                ds.sub_(row_sums[:, tile]).mul_(p)
                _collect(dv_NTD, torch.bmm(p.transpose(1, 2), do_NTD[:, tile]))
                _collect(dk_NTD, torch.bmm(ds.transpose(1, 2), q_NTD[:, tile]))
                torch.bmm(ds, k_NTD[:, :end], out=dq_NTD[:, tile])
            dq_NTD.mul_(ctx.scale)
            for target, found in zip(narrow, (dk_NTD, dv_NTD), strict=True):
                target.copy_(found)
        return *grads, None, None


def _parts(shape: torch.Size) -> Iterator[slice]:
    """Ranges of rows, of which the largest tile has a bounded number of scores."""
    rows, heads, tokens, _ = shape
    step = max(1, TILE_SCORES // (heads * min(tokens, TILE_QUERIES) * tokens))
    return (slice(first, min(rows, first + step)) for first in range(0, rows, step))


def _tiles(tokens: int) -> Iterator[tuple[int, int]]:
    """First query and end of each tile, the last one first, which has all keys."""
    begins = range(0, tokens, TILE_QUERIES)
    return ((begin, min(tokens, begin + TILE_QUERIES)) for begin in reversed(begins))


def _probabilities(q_NTD: Tensor, k_NTD: Tensor, bias: Tensor | None, begin: int, end: int) -> Tensor:
    """P of a tile [N, I, end] for scaled queries; the next call overwrites it."""
    queries = q_NTD[:, begin:end]
    scores = _scratch("p", (len(queries), end - begin, end), queries.dtype)
    torch.bmm(queries, k_NTD[:, :end].transpose(1, 2), out=scores)
    if bias is None:
        scores[:, :, begin:] += _lowest_where_not(scores.new_ones(end - begin, end - begin).tril_())
    else:
        by_row = scores.view(len(bias), -1, *scores.shape[1:])
        by_row += bias[:, :, begin:end, :end]
    return torch.softmax(scores, -1, out=scores)


def _bias(visible: Tensor | None, rows: slice, dtype: torch.dtype) -> Tensor | None:
    return None if visible is None else _lowest_where_not(visible[rows].to(dtype))


def _lowest_where_not(visible: Tensor) -> Tensor:
    """0 where `visible` is 1, and the lowest number where it is 0; overwrites it."""
    return visible.sub_(1).mul_(torch.finfo(visible.dtype).max)


def _collect(total_NTD: Tensor, part: Tensor) -> None:
    """Add what a tile has for its first keys; the first tile has something for all of them."""
    keys = part.shape[1]
    if keys == total_NTD.shape[1]:
        total_NTD.copy_(part)
    else:
        total_NTD[:, :keys].add_(part)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.held: dict[tuple[str, torch.dtype], Tensor] = {}


_buffers = _Buffers()


def _scratch(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory that this thread keeps from call to call: fresh pages cost more than what is done with them."""
    held, size = _buffers.held.get((name, dtype)), math.prod(shape)
    if held is None or held.numel() < size:
        held = _buffers.held[name, dtype] = torch.empty(size, dtype=dtype)
    return held[:size].view(shape)
