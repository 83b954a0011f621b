"""
The Triton form of kernels/velvet_update.py: one launch over a table of tensors per combination of dtypes.

    launch_update(slots, scalars)              # in place
    launch_square_sums(flat_gradients)         # one fp32 sum of squares per block of 4,096

Imported at first use only: Triton need not be installed, and whether its interpreter stands in for a GPU is
settled when kernels are defined.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.rounding_triton import store_rounded

BLOCK = 4096
DTYPES = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


@triton.jit
def _update_kernel(
    table_ptr,
    blocks_ptr,
    scalars_ptr,
    P: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    HAS_MASTER: tl.constexpr,
    HAS_MASK: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # this program's tensor, and the number of its first element
    block = blocks_ptr + 2 * tl.program_id(0).to(tl.int64)
    entry = table_ptr + 8 * tl.load(block)
    first = tl.load(block + 1)
    p_ptr = tl.load(entry).to(tl.pointer_type(P))
    g_ptr = tl.load(entry + 1).to(tl.pointer_type(G))
    m_ptr = tl.load(entry + 2).to(tl.pointer_type(S))
    v_ptr = tl.load(entry + 3).to(tl.pointer_type(S))
    if ALIGNED:  # lets the compiler move 16 bytes at a time
        p_ptr, g_ptr = tl.multiple_of(p_ptr, 16), tl.multiple_of(g_ptr, 16)
        m_ptr, v_ptr = tl.multiple_of(m_ptr, 16), tl.multiple_of(v_ptr, 16)
    elements, decays = tl.load(entry + 6), tl.load(entry + 7)

    # fp64 until after 1 - beta, then the dtype of the moments
    eta, beta1 = tl.load(scalars_ptr), tl.load(scalars_ptr + 1)
    beta2, epsilon = tl.load(scalars_ptr + 2), tl.load(scalars_ptr + 3).to(S)
    shrink = (1.0 - eta * tl.load(scalars_ptr + 4) * decays.to(tl.float64)).to(S)
    k1, k2 = tl.load(scalars_ptr + 5).to(S), tl.load(scalars_ptr + 6).to(S)
    clip, skip = tl.load(scalars_ptr + 7).to(S), tl.load(scalars_ptr + 8)
    new1, new2, beta1, beta2 = (1.0 - beta1).to(S), (1.0 - beta2).to(S), beta1.to(S), beta2.to(S)

    offsets = first + tl.arange(0, BLOCK).to(tl.int64)
    keep = offsets < tl.where(skip == 0.0, elements, 0)  # a skipped step has no elements
    if HAS_MASK:
        mask_ptr = tl.load(entry + 5).to(tl.pointer_type(tl.int8))
        keep = keep & (tl.load(mask_ptr + offsets, mask=keep, other=0) != 0)
    g = tl.load(g_ptr + offsets, mask=keep, other=0.0).to(S) * clip
    m = tl.load(m_ptr + offsets, mask=keep, other=0.0) * beta1 + g * new1
    v = tl.load(v_ptr + offsets, mask=keep, other=0.0) * beta2 + g * g * new2
    if HAS_MASTER:  # noqa: SIM108 -- both sides differ in type, which the compiler allows in branches only
        weight_ptr = tl.load(entry + 4).to(tl.pointer_type(S))
    else:
        weight_ptr = p_ptr
    weight = tl.load(weight_ptr + offsets, mask=keep, other=0.0).to(S)
    weight = weight * shrink - eta.to(S) * (m * k1) / (tl.sqrt(v) * k2 + epsilon)
    tl.store(m_ptr + offsets, m, mask=keep)
    tl.store(v_ptr + offsets, v, mask=keep)
    if HAS_MASTER:
        tl.store(weight_ptr + offsets, weight, mask=keep)
    store_rounded(p_ptr + offsets, weight, keep)


@triton.jit
def _square_sum_kernel(
    table_ptr, blocks_ptr, sums_ptr, G: tl.constexpr, S: tl.constexpr, BLOCK: tl.constexpr
):
    program = tl.program_id(0).to(tl.int64)
    entry = table_ptr + 8 * tl.load(blocks_ptr + 2 * program)
    g_ptr = tl.load(entry + 1).to(tl.pointer_type(G))
    offsets = tl.load(blocks_ptr + 2 * program + 1) + tl.arange(0, BLOCK).to(tl.int64)
    g = tl.load(g_ptr + offsets, mask=offsets < tl.load(entry + 6), other=0.0).to(S)
    tl.store(sums_ptr + program, tl.sum(g * g))


def launch_update(slots: Sequence[tuple], scalars: Tensor) -> None:
    """Update Slots (kernels/velvet_update.py), all contiguous and not empty."""
    by_signature: dict[tuple, list[tuple]] = {}
    for slot in slots:
        by_signature.setdefault(_signature(slot), []).append(slot)
    for (p, g, s, has_master, has_mask, aligned), members in by_signature.items():
        rows = [
            [*(0 if each is None else each.data_ptr() for each in slot[:6]), slot[0].numel(), int(slot[6])]
            for slot in members
        ]
        table, blocks = _tables(rows, scalars.device)
        kinds = {"P": DTYPES[p], "G": DTYPES[g], "S": DTYPES[s], "ALIGNED": aligned}
        flags = {"HAS_MASTER": has_master, "HAS_MASK": has_mask, "BLOCK": BLOCK}
        _update_kernel[(len(blocks),)](table, blocks, scalars, **kinds, **flags)


def launch_square_sums(gradients: Sequence[Tensor]) -> Tensor:
    """Sums of squares of blocks of 4,096 elements, in the order of the gradients, dtype by dtype."""
    found = []
    for dtype in dict.fromkeys(each.dtype for each in gradients):
        members = [each for each in gradients if each.dtype == dtype]
        sums_dtype = torch.promote_types(dtype, torch.float32)
        rows = [[0, each.data_ptr(), 0, 0, 0, 0, each.numel(), 0] for each in members]
        table, blocks = _tables(rows, members[0].device)
        sums = torch.empty(len(blocks), dtype=sums_dtype, device=members[0].device)
        _square_sum_kernel[(len(blocks),)](
            table, blocks, sums, G=DTYPES[dtype], S=DTYPES[sums_dtype], BLOCK=BLOCK
        )
        found.append(sums)
    return torch.cat(found)


def _signature(slot: tuple) -> tuple:
    parameter, gradient, first, _, master, mask, _ = slot
    aligned = all(each.data_ptr() % 16 == 0 for each in slot[:4])
    return parameter.dtype, gradient.dtype, first.dtype, master is not None, mask is not None, aligned


def _tables(rows: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """
    int64 [tensors, 8] (addresses of p, g, m, v, master, mask; elements; decays), copied without waiting for
    the device, and the blocks of these sizes.
    """
    table = torch.tensor(rows, dtype=torch.int64)
    if device.type == "cuda":
        table = table.pin_memory().to(device, non_blocking=True)
    return table, _blocks(tuple(values[6] for values in rows), device)


@lru_cache(maxsize=16)
def _blocks(elements: tuple[int, ...], device: torch.device) -> Tensor:
    """int64 [blocks, 2]: tensor, first element; the same every step, so it stays on the device."""
    counts = torch.tensor([-(-each // BLOCK) for each in elements])
    tensor = torch.repeat_interleave(torch.arange(len(elements)), counts)
    first = (torch.arange(len(tensor)) - (counts.cumsum(0) - counts)[tensor]) * BLOCK
    return torch.stack([tensor, first], dim=1).to(device)
