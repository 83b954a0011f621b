"""
The machine under a training run: device, processes, threads, precision and kernels, settled once.

    machine = Machine.of(config)
    machine.place(model)
    total = machine.sum([loss_sum, weight])          # over all processes, in fp64

Processes come from `accelerate launch`; without it there is one.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from torch import Tensor, nn

from kernels import linear_cross_entropy, velvet_update
from kernels.resolution import Asked, Resolution
from utils.config.training import TrainingConfig
from utils.pipeline.errors import ConfigError, StageError
from utils.pipeline.ranks import join_processes
from utils.training.determinism import make_deterministic
from utils.training.loss import LossModel
from utils.training.memory import keep_freed_memory
from utils.training.precision import Precision, resolve_precision, resolve_threads, store_in_bf16

T = TypeVar("T")


@dataclass(frozen=True)
class Machine:
    """What this process computes on, and what it does together with the others."""

    accelerator: Accelerator
    precision: Precision
    threads: int
    kernels: tuple[Resolution, ...]

    @classmethod
    def of(cls, config: TrainingConfig) -> "Machine":
        """
        Join the processes of this launch and set the number of threads. ConfigError for the older kind of
        sharding.
        """
        if os.environ.get("ACCELERATE_USE_FSDP") == "true" and os.environ.get("FSDP_VERSION", "1") != "2":
            raise ConfigError("only FSDP2 is supported", fix='set "fsdp_version: 2" in the launch config')
        make_deterministic(config)
        wrapper = DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)
        on_cpu = join_processes().device.type == "cpu"
        accelerator = Accelerator(cpu=on_cpu, mixed_precision="no", kwargs_handlers=[wrapper])
        threads = resolve_threads(
            config.cpu_threads, int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
        )
        torch.set_num_threads(threads)
        if on_cpu:
            keep_freed_memory()
        used = [linear_cross_entropy, *([velvet_update] if config.optimizer.kind == "velvet" else [])]
        kernels = tuple(each.resolution(config.kernels, accelerator.device.type) for each in used)
        return cls(accelerator, resolve_precision(config.precision, accelerator.device), threads, kernels)

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def num_ranks(self) -> int:
        return self.accelerator.num_processes

    @property
    def sharded(self) -> bool:
        """Whether the processes share the weights out among them (FSDP2) or each has a copy (DDP)."""
        return self.num_ranks > 1 and os.environ.get("ACCELERATE_USE_FSDP") == "true"

    @property
    def num_shares(self) -> int:
        """Into how many parts the weights are split; 1 where each process has a copy."""
        return self.num_ranks if self.sharded else 1

    def place(self, model: nn.Module) -> None:
        """Put the model on the device; one that will be sharded stays where it is, `wrap` moves its parts."""
        if not self.sharded:
            model.to(self.device)

    def wrap(self, module: LossModel, optimizer: torch.optim.Optimizer) -> nn.Module:
        """
        The module with gradients averaged over processes; itself when there is one. Sharded, module and
        optimizer get their parts here, together.
        """
        if self.num_ranks == 1:
            return module
        if not self.sharded:
            return self.accelerator.prepare_model(module)
        from utils.training.sharding import shard

        return shard(module, optimizer, self.precision, self.device.type)

    def without_sync(self, module: nn.Module) -> AbstractContextManager:
        """The region of all micro-batches but the last: gradients stay local."""
        if self.num_ranks == 1:
            return nullcontext()
        if not self.sharded:
            return module.no_sync()
        from utils.training.sharding import without_sync

        return without_sync(module)

    def whole(self, module: LossModel) -> AbstractContextManager:
        """The region in which this process can run the model alone, without gradients."""
        if not self.sharded:
            return nullcontext()
        from utils.training.sharding import whole

        return whole(module)

    def make_whole(self, model: nn.Module) -> None:
        """After the last step: rank 0 has the whole model, to write it."""
        if self.sharded:
            from utils.training.sharding import make_whole

            make_whole(model, keep=self.rank == 0)

    def sum(self, values: list[float]) -> list[float]:
        """Each value summed over the processes, in fp64."""
        if self.num_ranks == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        return self.accelerator.reduce(tensor, "sum").tolist()

    def total(self, values: Tensor) -> Tensor:
        """The tensor summed over the processes, without waiting for the device."""
        return values if self.num_ranks == 1 else self.accelerator.reduce(values, "sum")

    def number(self, value: Tensor | float) -> Tensor:
        """fp64, 0-dimensional, on the device; a float is written there by a kernel, without a wait."""
        if isinstance(value, Tensor):
            return value.detach().to(self.device, torch.float64)
        return torch.full((), value, dtype=torch.float64, device=self.device)

    def gather(self, value: object) -> list:
        """The value of every process, in order of rank."""
        return gather_object([value]) if self.num_ranks > 1 else [value]

    def together(self, work: Callable[[], T]) -> T:
        """
        What `work` gives here, once all processes are through with it. When it fails in one of them they all
        fail: that one with its error, the others with a StageError.
        """
        result, failure = None, None
        try:
            result = work()
        except Exception as error:  # raised again as soon as the others know
            failure = error
        failures = self.gather(None if failure is None else f"{type(failure).__name__}: {failure}")
        if failure is not None:
            raise failure
        if elsewhere := next(filter(None, failures), ""):
            raise StageError(f"another process failed ({elsewhere})")
        return result

    def scaler(self) -> torch.amp.GradScaler:
        """
        What scales the loss in fp16, and does nothing in other precisions. ConfigError for sharded weights,
        whose processes would each find a scale of their own.
        """
        if self.sharded and self.precision.name == "fp16":
            raise ConfigError('"precision": fp16 is not for sharded weights', fix='"precision": "bf16"')
        return self.precision.scaler()

    def describe(self) -> str:
        """One phrase for the log."""
        kind = "sharded " if self.sharded else ""
        processes = f", {self.num_ranks} {kind}processes" if self.num_ranks > 1 else ""
        threads = torch.get_num_threads()
        threads = f"{threads} thread{'s' if threads > 1 else ''}"
        kernels = ", ".join(f"{each.kernel} {each.implementation}" for each in self.kernels)
        precision = f"{self.precision} ({self.precision.reason})"
        return f"{self.device.type}{processes}, {threads}, {precision}, kernels {kernels}"


def after_step(model: nn.Module, skipped: Tensor) -> None:
    """Let a model that moves by more than gradients do so, once per optimizer step that was not `skipped`."""
    inner = _inside(model)
    if hasattr(inner, "after_step"):
        inner.after_step(skipped)


def kernels_of(model: nn.Module, asked: Asked) -> tuple[Resolution, ...]:
    """Hand the choice of kernels to a model that has some of its own; what was resolved."""
    inner = _inside(model)
    return inner.choose_kernels(asked) if hasattr(inner, "choose_kernels") else ()


def _inside(model: nn.Module) -> nn.Module:
    """The model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def store_parameters(model: nn.Module, dtype: Literal["fp32", "bf16"], machine: Machine) -> None:
    """
    Store the model's parameters in `dtype`. ConfigError where bf16 is not what this machine computes in, or
    several processes would exchange gradients in it.
    """
    if dtype == "fp32":
        return
    if machine.precision.name != "bf16" or machine.num_ranks > 1:
        raise ConfigError(
            '"parameter_dtype": bf16 needs a precision of bf16 and a single process, '
            f"here are {machine.precision.name} and {machine.num_ranks}",
            fix='set "parameter_dtype": "fp32"',
        )
    store_in_bf16(model)
