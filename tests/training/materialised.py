"""
One of two processes that build sharded models from the meta device, started by test_materialised.py.

    python tests/training/materialised.py FOLDER         # FOLDER/toy.json: {name: changes to the toy shape}

Each model must equal the one that a single process makes, and take the same steps as one that was whole
before it was split.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels.linear_cross_entropy import Signals
from tests.training.toy_stage import ARCHITECTURE, CountingRows
from utils.config.architecture import Architecture
from utils.config.training import OptimizerConfig
from utils.models.load import build_initialised
from utils.optim.groups import build_optimizer
from utils.training.dtensor import undivided
from utils.training.loss import LossModel, next_token_loss
from utils.training.precision import FP32
from utils.training.sharding import shard
from utils.training.state import frozen_digest

VOCAB = 33  # odd, so that parts differ in size
SLACK = 64  # bytes, of a mesh
SPECIAL = {"bos": 1, "eos": 2, "pad": 3}
OPTIMIZERS = {"adamw": OptimizerConfig(), "velvet": OptimizerConfig(kind="velvet")}


class LivingBytes(TorchDispatchMode):
    """The most bytes of real tensors, among those made in it, that live at one time."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            self._note(each)
        self._seen = {key: seen for key, seen in self._seen.items() if not seen[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._seen.values()))
        return result

    def _note(self, value: object) -> None:
        tensor = value._local_tensor if isinstance(value, DTensor) else value
        if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
            storage = tensor.untyped_storage()
            self._seen[storage._cdata] = StorageWeakRef(storage), storage.nbytes()


def split(shape: Architecture, optimizer: str, on_meta: bool) -> tuple[LossModel, torch.optim.Optimizer]:
    model = build_initialised(shape, VOCAB, SPECIAL, seed=7, on_meta=on_meta)
    made = build_optimizer(model, OPTIMIZERS[optimizer], 1e-2)
    return shard(LossModel(model, next_token_loss, FP32), made, FP32, "cpu"), made


def check_building(shape: Architecture) -> None:
    """Parameters have no memory before they are split, and at no time more than the parts and one of them."""
    with LivingBytes() as living:
        model = build_initialised(shape, VOCAB, SPECIAL, seed=7, on_meta=True)
        assert all(each.is_meta for each in model.parameters())
        assert not any(each.is_meta for each in model.buffers())
        sizes, buffers = (
            [each.nbytes for each in model.parameters()],
            sum(each.nbytes for each in model.buffers()),
        )
        made = build_optimizer(model, OPTIMIZERS["adamw"], 1e-2)
        shard(LossModel(model, next_token_loss, FP32), made, FP32, "cpu")
    assert all(isinstance(each, DTensor) and not each.is_meta for each in model.parameters())
    parts = sum(each._local_tensor.untyped_storage().nbytes() for each in model.parameters())
    room = parts + max(sizes) + buffers + SLACK
    assert living.peak <= room < sum(sizes), (living.peak, room, sum(sizes))


def check_weights(shape: Architecture) -> None:
    """To the bit what a single process draws, frozen weights, ties and buffers included."""
    alone = build_initialised(shape, VOCAB, SPECIAL, seed=7)
    root, optimizer = split(shape, "adamw", on_meta=True)
    ours, theirs = (dict(each.named_parameters()) for each in (root.model, alone))
    assert list(ours) == list(theirs)
    for name, parameter in theirs.items():
        assert torch.equal(ours[name].full_tensor(), parameter), name
        assert ours[name].requires_grad == parameter.requires_grad, name
    assert (root.model.lm_head.weight is root.model.model.embed_tokens.weight) is shape.tie_embeddings
    assert frozen_digest(root.model) == frozen_digest(alone)
    buffers = [sorted(each.named_buffers()) for each in (root.model, alone)]
    assert "model.rotary_emb.inv_freq" in dict(buffers[0])
    for (name, found), (same, expected) in zip(*buffers, strict=True):
        assert name == same and found.dtype == expected.dtype and torch.equal(found, expected), name
    members = [each for group in optimizer.param_groups for each in group["params"]]
    named = [name for group in optimizer.param_groups for name in group["names"]]
    assert all(each is ours[name] for each, name in zip(members, named, strict=True))
    assert optimizer.defaults["fused"] is True


def check_training(shape: Architecture, optimizer: str) -> None:
    """Steps from the meta device are those from whole weights, to the bit."""
    trained = [train(*split(shape, optimizer, on_meta)) for on_meta in (True, False)]
    for name, expected in trained[1].items():
        assert torch.equal(trained[0][name], expected), (optimizer, name)


def train(root: LossModel, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The weights after two steps on rows that differ between the processes."""
    rows, rank = CountingRows(), torch.distributed.get_rank()
    torch.manual_seed(rank)
    for _ in range(2):
        for batch in rows.next_step(rank, 2, 2):
            root(batch).loss_sum.backward()
        if hasattr(optimizer, "state_by_name"):
            optimizer.step(Signals(300.0, 200.0, 100.0))
        else:
            optimizer.step()
        optimizer.zero_grad()
    return whole_weights(root.model)


def whole_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: undivided(each.detach()) for name, each in model.named_parameters()}


@contextmanager
def named(name: str) -> Iterator[None]:
    """Say which shape a failure is about."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in shape {name}")
        raise


def main(shapes: dict[str, dict]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    toy = {name: value for name, value in ARCHITECTURE.model_dump().items() if value is not None}
    for name, changes in shapes.items():
        shape = Architecture.model_validate(toy | changes)
        with named(name):
            check_building(shape)
            check_weights(shape)
            for optimizer in OPTIMIZERS:
                check_training(shape, optimizer)
        print(f"the same: {name}", flush=True)
    torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo sometimes aborts in the interpreter's own exit


if __name__ == "__main__":
    main(json.loads((Path(sys.argv[1]) / "toy.json").read_text()))
