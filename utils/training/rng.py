"""
Random state of python, numpy and torch: seeded once, kept in checkpoints as tensors.

    seed_everything(config.seed)
    state = capture_rng()          # dict of tensors, ready for safetensors
    restore_rng(state)
"""

import hashlib
import random

import numpy as np
import torch
from torch import Tensor


def seed_everything(seed: int) -> None:
    """Seed the global generators; what must not depend on their order of use has generators of its own."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def derived_seed(seed: int, rank: int, step: int) -> int:
    """For a rank that the checkpoint of this step knows nothing of; the same at every such resume."""
    return int.from_bytes(hashlib.sha256(f"{seed} {rank} {step}".encode()).digest()[:4], "big")


def capture_rng() -> dict[str, Tensor]:
    """The state of all generators that dropout or a library may draw from."""
    _, python, python_gauss = random.getstate()
    _, keys, position, has_gauss, gauss = np.random.get_state()
    state = {
        "python": torch.tensor(python, dtype=torch.int64),
        "python_gauss": torch.tensor([] if python_gauss is None else [python_gauss], dtype=torch.float64),
        "numpy": torch.from_numpy(keys.astype(np.int64)),
        "numpy_position": torch.tensor([position, has_gauss], dtype=torch.int64),
        "numpy_gauss": torch.tensor([gauss], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state |= {f"cuda.{i}": torch.cuda.get_rng_state(i) for i in range(torch.cuda.device_count())}
    return state


def restore_rng(state: dict[str, Tensor]) -> None:
    """Undo everything drawn since `capture_rng`."""
    gauss = state["python_gauss"].tolist()
    random.setstate((3, tuple(state["python"].tolist()), gauss[0] if gauss else None))
    position, has_gauss = state["numpy_position"].tolist()
    keys = state["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, state["numpy_gauss"].item()))
    torch.set_rng_state(state["torch"])
    for name in (name for name in state if name.startswith("cuda.")):
        torch.cuda.set_rng_state(state[name], int(name.removeprefix("cuda.")))
