"""
Tensors that the processes of a launch may have shared out among them (DTensors), to and from whole ones.

    undivided(parameter)                   # all processes put it together; any other tensor is itself
    placed_like(tensor, parameter)         # and take it apart again

A DTensor is known by what it can do, because importing its class costs seconds that other runs can spare.
"""

from torch import Tensor


def undivided(tensor: Tensor) -> Tensor:
    """The whole tensor; where it is in parts, every process must ask for it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def placed_like(tensor: Tensor, example: Tensor) -> Tensor:
    """A whole tensor in parts, where `example` is; as it is otherwise."""
    if not hasattr(example, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, example.device_mesh, example.placements)
