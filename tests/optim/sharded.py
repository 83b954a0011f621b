"""
One of two processes that train a sharded model with Velvet, started by test_shards.py.

    python tests/optim/sharded.py RANK FOLDER
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from kernels.linear_cross_entropy import Signals
from utils.config.training import OptimizerConfig
from utils.optim.groups import parameter_groups
from utils.optim.shards import full_tensor
from utils.optim.velvet import Velvet

STEPS, HALF, VOCAB = 6, 3, 50


def small_model() -> nn.Module:
    """Layers with odd sizes, so that shards differ."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 13), nn.LayerNorm(13), nn.Tanh(), nn.Linear(13, 5))


def optimizer_of(model: nn.Module) -> Velvet:
    config = OptimizerConfig(kind="velvet", max_gradient_norm=0.05)
    return Velvet(parameter_groups(model, 0.1, False), config, 1e-2, VOCAB)


def train(model: nn.Module, optimizer: Velvet, first: int, last: int) -> list[float]:
    """Steps on fixed inputs; returns the norms before clipping."""
    norms = []
    for step in range(first, last):
        inputs = torch.randn(8, 7, generator=torch.Generator().manual_seed(step))
        model(inputs).square().sum().backward()
        optimizer.step(Signals(300.0 - 20 * step, 200.0, 100.0))
        optimizer.zero_grad()
        norms.append(optimizer.report()["grad_norm"])
    return norms


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder / 'rendezvous'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    model = small_model()
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(model, mesh=mesh)
    optimizer = optimizer_of(model)
    norms = train(model, optimizer, 0, HALF)
    halfway = optimizer.state_dict() | {
        f"p/{n}": full_tensor(p).detach() for n, p in model.named_parameters()
    }
    again = small_model()
    fully_shard(again, mesh=mesh)
    again.load_state_dict(model.state_dict())
    resumed = optimizer_of(again)
    resumed.load_state_dict({name: each for name, each in halfway.items() if not name.startswith("p/")})
    train(again, resumed, HALF, STEPS)
    norms += train(model, optimizer, HALF, STEPS)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(full_tensor(one), full_tensor(other))
    ended = {f"p/{name}": full_tensor(each).detach() for name, each in model.named_parameters()}
    if rank == 0:
        save_file({name: each.contiguous() for name, each in halfway.items()}, folder / "half.safetensors")
        save_file({name: each.contiguous() for name, each in ended.items()}, folder / "end.safetensors")
        save_file({"norms": torch.tensor(norms, dtype=torch.float64)}, folder / "norms.safetensors")
    torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo sometimes aborts in the interpreter's own exit


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
