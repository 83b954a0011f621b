"""
Parameters that are split over processes (FSDP2's DTensor), and those that are not, by one set of names.

    local(parameter)                    # this process's part, in the same memory
    sum_over_shards(parameters, gradients, squares)      # each element counted once
    full_tensor(moment), shard_like(tensor, parameter)   # to and from a checkpoint

Elementwise work needs no more than `local`.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part of a DTensor, sharing its memory; any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole tensor; every process of a DTensor's mesh must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, example: Tensor) -> Tensor:
    """A whole tensor, placed as `example` is."""
    if isinstance(example, DTensor):
        return distribute_tensor(tensor, example.device_mesh, example.placements)
    return tensor.to(example.device)


def sum_over_shards(
    parameters: list[Tensor], local_gradients: list[Tensor], measure: Callable[[list[Tensor]], Tensor]
) -> Tensor:
    """
    `measure` over all gradients, where those that are split over processes are measured part by part and
    added up.
    """
    split = [isinstance(each, DTensor) and any(p.is_shard() for p in each.placements) for each in parameters]
    whole = [each for each, is_split in zip(local_gradients, split, strict=True) if not is_split]
    parts = [each for each, is_split in zip(local_gradients, split, strict=True) if is_split]
    if not parts:
        return measure(whole)
    example = next(each for each, is_split in zip(parameters, split, strict=True) if is_split)
    total = measure(parts)
    for dimension, placement in enumerate(example.placements):
        if placement.is_shard():
            torch.distributed.all_reduce(total, group=example.device_mesh.get_group(dimension))
    return total + measure(whole) if whole else total
