"""
Weights, gradients and moments split over the processes of a launch: FSDP2 (Zhao 2023, arXiv 2304.11277), by
torch's `fully_shard`.

    wrapped = shard(LossModel(model, loss, precision), optimizer, precision, "cuda")
    with whole(wrapped): ...                 # every process has all weights and may run the model alone
    make_whole(model, keep=rank == 0)        # at the end: plain tensors again, to be written

Each decoder layer is a unit; the root, which holds embedding, last norm and head, is the module that returns
the loss, so that the head's fused loss sees its whole weight. The same code runs on gloo and on NCCL.

A model whose parameters are on the meta device gets its weights here, one parameter at a time: every process
draws it whole on the CPU and keeps its part. So none ever holds more than its parts and one parameter.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from kernels.linear_cross_entropy import LossSums
from utils.training.dtensor import undivided
from utils.training.layers import decoder_layers
from utils.training.loss import LossModel
from utils.training.precision import Precision


def shard(
    root: LossModel, optimizer: torch.optim.Optimizer, precision: Precision, device_type: str
) -> LossModel:
    """
    Split the parameters of `root` in place, and give `optimizer`, which must not have stepped yet, the parts
    in place of the parameters. Those of a model that is not on the device yet move there layer by layer.
    """
    _tell_torch_of_loss_sums()
    names = {parameter: name for name, parameter in root.named_parameters()}
    mesh = init_device_mesh(device_type, (torch.distributed.get_world_size(),))
    for layer in decoder_layers(root.model):
        fully_shard(layer, mesh=mesh, mp_policy=layer_policy(precision))
    fully_shard(root, mesh=mesh, mp_policy=ROOT_POLICY)
    if any(parameter.is_meta for parameter in names):
        materialise(root, device_type)
    parts = dict(root.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [parts[names[parameter]] for parameter in group["params"]]
    return root


@torch.no_grad()
def materialise(root: LossModel, device_type: str) -> None:
    """
    Give the parts of a model that was sharded on the meta device memory on this process's device, and the
    values that `root.model.initial_weights()` has for them (utils/models/load.py).
    """
    root._apply(lambda each: torch.empty_like(each, device=device_type) if _is_part(each) else each)
    parts = dict(root.model.named_parameters())
    for name, tensor in root.model.initial_weights():
        part = parts.pop(name)
        part.to_local().copy_(_own_chunk(tensor, part))
        del tensor  # before the next one is drawn
    assert not parts, f"{min(parts)} has no initial weights"
    del root.model.initial_weights


def _own_chunk(tensor: Tensor, part: DTensor) -> Tensor:
    """The rows that this process keeps: none where there are fewer than processes."""
    rank, chunks = part.device_mesh.get_local_rank(), tensor.chunk(part.device_mesh.size())
    return chunks[rank] if rank < len(chunks) else tensor[:0]


def _is_part(tensor: Tensor) -> bool:
    return tensor.is_meta and isinstance(tensor, DTensor)


ROOT_POLICY = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
"""The stream of hidden states starts in fp32; the root's own products are autocast like all others."""


def layer_policy(precision: Precision) -> MixedPrecisionPolicy:
    """Layers are gathered in the dtype they compute in; gradients are summed and outputs left in fp32."""
    compute = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision.name]
    return MixedPrecisionPolicy(
        param_dtype=compute,
        reduce_dtype=torch.float32,
        output_dtype=torch.float32,
        cast_forward_inputs=False,
    )


@contextmanager
def without_sync(root: LossModel) -> Iterator[None]:
    """The region in which gradients stay with the process that made them."""
    root.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        root.set_requires_gradient_sync(True)


@contextmanager
def whole(root: LossModel) -> Iterator[None]:
    """
    The region in which no forward pass needs the other processes: all weights are gathered at its start, in
    the dtype they are computed in. Not for training.
    """
    units = [module for module in root.modules() if isinstance(module, FSDPModule)]
    root._get_fsdp_state()._lazy_init()  # else the first module that runs would take itself for the root
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()
            unit.set_reshard_after_forward(unit is not root, recurse=False)


def make_whole(model: nn.Module, keep: bool) -> None:
    """
    Put plain tensors on the CPU in place of the parts, for good, where `keep`; all processes must call it.
    """
    found: dict[nn.Parameter, nn.Parameter] = {}
    for module in list(model.modules()):
        for name, part in list(module.named_parameters(recurse=False)):
            if part not in found:
                tensor = undivided(part.detach()).cpu()
                found[part] = nn.Parameter(tensor, requires_grad=part.requires_grad) if keep else part
            setattr(module, name, found[part])


def _tell_torch_of_loss_sums() -> None:
    """FSDP2 looks for tensors in what a module returns, and knows no dataclass by itself."""
    from torch.utils import _pytree

    if LossSums not in _pytree.SUPPORTED_NODES:
        torch.export.register_dataclass(LossSums, serialized_type_name="LossSums")
