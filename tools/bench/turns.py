"""
Timing contestants against each other in one process: they take turns, so that a busy moment hits all alike.

    seconds = take_turns({"ours": ours, "theirs": theirs}, rounds=9, device=device)      # medians
    print(versions(device))

On a CPU the clock is the processor time of this process, which other programs disturb far less than wall
time; on a GPU it is wall time around a synchronised device. What needs a GPU prints NOT_MEASURED without.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from importlib import metadata

import torch

from utils.pipeline.environment import host_class

NOT_MEASURED = "not measured here"
FEWEST_ROUNDS = 5
PACKAGES = ("transformers", "accelerate", "triton", "liger-kernel")


def clock(device: torch.device) -> float:
    """Seconds, comparable within one process."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def take_turns(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    patience: float = math.inf,
) -> dict[str, float]:
    """
    Median seconds of each contestant over `rounds` (at least 5), after one round that does not count. Who
    takes more than `patience` times as long as the fastest in the first is timed once.
    """
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(max(rounds, FEWEST_ROUNDS) + 1):
        for name, run in contestants.items():
            if number > 1 and taken[name][1] > patience * min(values[1] for values in taken.values()):
                continue
            started = clock(device)
            run()
            taken[name].append(clock(device) - started)
    return {name: statistics.median(values[1:]) for name, values in taken.items()}


def judge(label: str, value: float, *, least: float = -math.inf, most: float = math.inf) -> bool:
    """Print a ratio beside its target; whether it is reached."""
    target = f">= {least:g}" if math.isfinite(least) else f"<= {most:g}"
    held = least <= value <= most
    print(f"{label} {value:.3g} (target {target}){'' if held else '  MISSED'}", flush=True)
    return held


def this_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def versions(device: torch.device) -> str:
    """What the figures above were measured with."""
    found = [f"torch {torch.__version__}", *filter(None, map(_version, PACKAGES))]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return f"{', '.join(found)}; {name}, {torch.get_num_threads()} threads; {host_class()}"


def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} absent"
