"""
Weights and optimizer state by name, whatever the groups or the number of processes.

    trainable_parameters(model)            # {"model.norm.weight": Parameter, ...}; a tied tensor once
    optimizer_tensors(optimizer, model)    # {"exp_avg/model.norm.weight": ..., "step/model.norm.weight": ...}
    frozen_digest(model)                   # "" when everything trains
"""

import hashlib

import torch
from torch import Tensor, nn

from utils.training.checkpoint import MODEL, OPTIMIZER, copy_into
from utils.training.dtensor import placed_like, undivided


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that train, in name order."""
    return dict(sorted((name, each) for name, each in model.named_parameters() if each.requires_grad))


def moving_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: its parameters, and buffers that a module names in `trained_buffers`."""
    tensors: dict[str, Tensor] = dict(trainable_parameters(model))
    for path, module in model.named_modules():
        for name in getattr(module, "trained_buffers", ()):
            tensors[f"{path}.{name}"] = module.get_buffer(name)
    return tensors


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The weights that a checkpoint stores: copies on the CPU of what training changes."""
    return {name: _copied(each) for name, each in moving_tensors(model).items()}


def _copied(tensor: Tensor) -> Tensor:
    return undivided(tensor.detach()).to("cpu", copy=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as <kind>/<parameter>; empty before the first step."""
    if getattr(optimizer, "state_by_name", False):
        return {name: each.to("cpu", copy=True) for name, each in optimizer.state_dict().items()}
    tensors = {}
    for name, parameter in trainable_parameters(model).items():
        for kind, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{kind}/{name}"] = _copied(value)
    return tensors


@torch.no_grad()
def load_model_tensors(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put stored weights into the model. ValueError names the tensor that does not fit."""
    copy_into(tensors, {name: each.data for name, each in moving_tensors(model).items()}, MODEL)


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]
) -> None:
    """
    Put stored state into the optimizer, dtypes as saved (torch's own loading would cast moments to the
    parameter's).

    ValueError names a tensor that belongs to no parameter or has another shape.
    """
    if getattr(optimizer, "state_by_name", False):
        return _load_by_name(optimizer, tensors)
    parameters = trainable_parameters(model)
    kinds = {name.split("/", 1)[0] for name in tensors}
    expected = {f"{kind}/{name}" for kind in kinds for name in parameters}
    if expected != tensors.keys():
        odd = min(expected ^ tensors.keys())
        raise ValueError(
            f"{OPTIMIZER}: tensor {odd} {'is missing' if odd in expected else 'belongs to no parameter'}"
        )
    for full, tensor in tensors.items():
        kind, name = full.split("/", 1)
        parameter = parameters[name]
        if tensor.ndim and tensor.shape != parameter.shape:
            raise ValueError(
                f"{OPTIMIZER}: tensor {full} is {tuple(tensor.shape)}, not {tuple(parameter.shape)}"
            )
        place = parameter.device if tensor.ndim or optimizer.defaults.get("fused") else "cpu"
        optimizer.state[parameter][kind] = placed_like(tensor.to(place), parameter if tensor.ndim else tensor)


def _load_by_name(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """For an optimizer whose own state goes by name: only the file is added to its complaint."""
    try:
        optimizer.load_state_dict(tensors)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{OPTIMIZER}: {error}") from None


def frozen_digest(model: nn.Module) -> str:
    """SHA-256 over names, dtypes and bytes of the parameters that do not train; "" if there are none."""
    frozen = sorted((name, each) for name, each in model.named_parameters() if not each.requires_grad)
    hasher = hashlib.sha256()
    for name, parameter in frozen:
        data = undivided(parameter.detach()).cpu().contiguous()
        hasher.update(f"{name} {data.dtype} {tuple(data.shape)}\n".encode())
        hasher.update(data.view(-1).view(torch.uint8).numpy())
    return hasher.hexdigest() if frozen else ""
