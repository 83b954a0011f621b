"""
Which implementation of a kernel runs, decided once at its first use, with the reason.

    resolution = resolve_kernel("velvet_update", "auto", "cuda", self_check)
    resolution.implementation, resolution.reason      # "triton", "agrees with torch on this device"

"auto" is Triton on CUDA when it imports, compiles and agrees with the torch form there, else torch; a CPU
always runs torch. Asking for "triton" where it cannot run ends the stage. Under TRITON_INTERPRET=1 Triton's
interpreter runs on the CPU, for tests.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

from utils.pipeline.errors import StageError

Asked = Literal["auto", "torch", "triton"]


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


def interpreted() -> bool:
    """Whether Triton's interpreter stands in for a GPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _problem(device_type: str, self_check: Callable[[str], None]) -> str:
    if device_type != "cuda" and not interpreted():
        return f"Triton compiles for CUDA, this is {device_type}"
    try:
        self_check(device_type)
    except Exception as error:  # a compiler may raise anything, and the reason is recorded
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""
