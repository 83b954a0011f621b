"""
Arithmetic and threads, resolved once: what "auto" means on this machine, and why.

    precision = resolve_precision("auto", torch.device("cpu"))      # Precision("bf16", "cpu", "AVX512-BF16")
    with precision.autocast(): ...
"""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from utils.pipeline.errors import ConfigError

FIRST_BF16_CAPABILITY = (8, 0)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """
    Dtype of the forward pass, and the reason it was chosen. Parameters, gradients and losses are fp32 either
    way.
    """

    name: Literal["fp32", "bf16", "fp16"]
    device_type: str
    reason: str = "asked for"

    def autocast(self) -> AbstractContextManager:
        """The region in which matrix products run in this precision."""
        return nullcontext() if self.name == "fp32" else torch.autocast(self.device_type, self.dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Keeps fp16 gradients away from zero by a factor on the loss; does nothing in other precisions."""
        return torch.amp.GradScaler(self.device_type, enabled=self.name == "fp16")

    @property
    def dtype(self) -> torch.dtype:
        """Of the matrix products."""
        return DTYPES[self.name]

    def __str__(self) -> str:
        return self.name if self.name == "fp32" else f"{self.name} autocast"


FP32 = Precision("fp32", "cpu")


def resolve_precision(asked: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device) -> Precision:
    """
    bf16 where the device computes in it, else fp16 on CUDA and fp32 elsewhere. ConfigError when `accelerate
    launch` asks for another.
    """
    capable, reason = _bf16_capable(device)
    other = "fp16" if device.type == "cuda" else "fp32"
    name = ("bf16" if capable else other) if asked == "auto" else asked
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", name):
        raise ConfigError(
            f'"precision" is {name}, but accelerate was launched with mixed precision {launched}',
            fix="launch without --mixed_precision; the config decides",
        )
    return Precision(name, device.type, reason if asked == "auto" else "asked for")


def store_in_bf16(model: nn.Module) -> None:
    """
    Round the parameters to bf16, buffers apart; their gradients still accumulate in fp32, micro-batch by
    micro-batch.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
        parameter.grad_dtype = torch.float32


def resolve_threads(asked: int | Literal["auto"], local_processes: int) -> int:
    """Threads of this process: the usable cores of the machine, shared among its processes."""
    return asked if asked != "auto" else max(1, usable_cores() // local_processes)


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _bf16_capable(device: torch.device) -> tuple[bool, str]:
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        return capability >= FIRST_BF16_CAPABILITY, "CUDA capability {}.{}".format(*capability)
    if torch.cpu._is_avx512_bf16_supported():  # the public query came after the oldest torch we run on
        return True, "AVX512-BF16"
    return (True, "AMX") if torch.cpu._is_amx_tile_supported() else (False, "no bf16 instructions")
