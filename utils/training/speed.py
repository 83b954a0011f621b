"""
How much of the machine a run uses: model FLOPs per second over what the device can do.

    mfu             over the dense bf16 peak that the maker of a known GPU states
    gemm_fraction   over what one square product in the run's own dtype reaches here, measured at the start

    speed = speed_of(machine, flops_per_token=2.99e7)
    speed.shares(tokens_per_second=25_000)       # {"gemm_fraction": 0.41}

Only scored tokens count, so padding lowers both. Clocks live in log/ and in the manifest's `run`. Stage 50
alone reports them: a token of a tuned model has no one cost, since frozen weights need no gradient, and stage
90 counts pairs and asks a reference as well.
"""

import time
from dataclasses import dataclass

import torch

from utils.training.machine import Machine

PEAK_BF16_FLOPS = {
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "L4": 121e12,
}
GEMM_SECONDS = 0.3
GEMM_SIZES = {"cpu": 1024, "cuda": 8192}


@dataclass(frozen=True)
class Speed:
    """Model FLOPs of a token, and FLOPs per second of the device: measured, and stated where it is known."""

    flops_per_token: float
    gemm: float
    peak: float | None

    def shares(self, tokens_per_second: float) -> dict[str, float]:
        """gemm_fraction, and mfu on a known GPU."""
        rate = tokens_per_second * self.flops_per_token
        known = {"mfu": rate / self.peak} if self.peak else {}
        return {"gemm_fraction": rate / self.gemm} | known


def speed_of(machine: Machine, flops_per_token: float) -> Speed:
    """The speed of a run whose processes all have a device like this one."""
    device, ranks = machine.device, machine.num_ranks
    peak = stated_peak(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    gemm = measure_gemm(device, machine.precision.dtype)
    return Speed(flops_per_token, gemm * ranks, peak * ranks if peak else None)


def stated_peak(device_name: str) -> float | None:
    """Dense bf16 FLOPs per second of a GPU by its name, None for one that is not in the table."""
    words = device_name.replace("-", " ").split()
    for name, peak in PEAK_BF16_FLOPS.items():
        if all(word in words for word in name.split()):
            return peak
    return None


@torch.no_grad()
def measure_gemm(device: torch.device, dtype: torch.dtype, seconds: float = GEMM_SECONDS) -> float:
    """
    FLOPs per second of the best square product within `seconds`, of normal numbers: a GPU draws less power
    and clocks higher on constant ones.
    """
    size = GEMM_SIZES.get(device.type, GEMM_SIZES["cpu"])
    own = torch.Generator(device).manual_seed(0)  # the run's random state stays as it is
    left, right = (torch.randn(size, size, generator=own, device=device).to(dtype) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + seconds
    _timed_product(left, right)
    while time.perf_counter() < end:
        best = min(best, _timed_product(left, right))
    return 2 * size**3 / min(best, _timed_product(left, right))


def _timed_product(left: torch.Tensor, right: torch.Tensor) -> float:
    started = time.perf_counter()
    left @ right
    if left.is_cuda:
        torch.cuda.synchronize(left.device)
    return time.perf_counter() - started
