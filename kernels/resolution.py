"""
Which implementation of a kernel runs, decided once at its first use, with the reason.

    resolution = resolve_kernel("velvet_update", "auto", "cuda", self_check)
    resolution.implementation, resolution.reason      # "triton", "agrees with torch on this device"

"auto" is Triton on CUDA when it imports, compiles and agrees with the torch form there, else torch; a CPU
always runs torch. Asking for "triton" where it cannot run ends the stage. Under TRITON_INTERPRET=1 Triton's
interpreter runs on the CPU, for tests.

A kernel is settled once for every dtype that the device computes in, and is wrong if it is wrong in one of
them: the manifest has one line for it, and nothing may change when a later pass runs in another dtype.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from utils.pipeline.errors import StageError

Asked = Literal["auto", "torch", "triton"]
FORWARD_TOLERANCE, GRADIENT_TOLERANCE = 1e-6, 1e-5  # of the largest entry: what fp32 arithmetic leaves
FIRST_BF16_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Resolution:
    """What was asked for, what runs, and why; `fell_back` when "auto" wanted Triton and could not have it."""

    kernel: str
    asked: Asked
    implementation: Literal["torch", "triton"]
    reason: str
    fell_back: bool = False

    def record(self) -> dict[str, str]:
        """What the manifest says."""
        return {"asked": self.asked, "resolved": self.implementation, "reason": self.reason}


@cache
def resolve_kernel(
    kernel: str, asked: Asked, device_type: str, self_check: Callable[[str], None]
) -> Resolution:
    """
    Settle `kernel` for this process; `self_check(device_type)` raises when the Triton form is wrong there.

    StageError when "triton" is asked for and impossible.
    """
    if asked == "torch":
        return Resolution(kernel, asked, "torch", "asked for")
    if device_type != "cuda" and asked == "auto":
        return Resolution(kernel, asked, "torch", device_type)
    problem = _problem(device_type, self_check)
    if not problem:
        return Resolution(kernel, asked, "triton", f"agrees with torch on {device_type}")
    if asked == "triton":
        raise StageError(f'kernel {kernel}: "triton" cannot run: {problem}', fix='set "kernels": "auto"')
    return Resolution(kernel, asked, "torch", problem, fell_back=True)


def checked_dtypes(device_type: str) -> tuple[torch.dtype, ...]:
    """What a self-check covers: fp32 and every 16-bit dtype that the device computes in."""
    capable = device_type != "cuda" or torch.cuda.get_device_capability() >= FIRST_BF16_CAPABILITY
    return torch.float32, torch.float16, *([torch.bfloat16] if capable else [])


def check_agreement(
    kernel: str, found: Sequence[Tensor], exact: Sequence[Tensor], tolerance: float = FORWARD_TOLERANCE
) -> None:
    """
    ArithmeticError unless each entry found is the exact one of fp64 to a unit in the last place of its dtype
    and `tolerance` x the largest.
    """
    for mine, theirs in zip(found, exact, strict=True):
        difference, largest = (mine.double() - theirs).abs(), theirs.abs().max()
        allowed = torch.finfo(mine.dtype).eps * theirs.abs() + tolerance * largest
        if not (difference <= allowed).all():
            worst, dtype = float(difference.max() / largest), str(mine.dtype).removeprefix("torch.")
            raise ArithmeticError(f"{kernel} differs from torch by {worst:.2g} in {dtype}")


def interpreted() -> bool:
    """Whether Triton's interpreter stands in for a GPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _problem(device_type: str, self_check: Callable[[str], None]) -> str:
    if device_type != "cuda" and not interpreted():
        return f"Triton compiles for CUDA, this is {device_type}"
    try:  # whatever region the first use is in
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device_type, enabled=False):
            self_check(device_type)
    except Exception as error:  # a compiler may raise anything, and the reason is recorded
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""
