"""
The machine under a training run: device, processes, threads and precision, settled once.

    machine = Machine.of(config)
    model.to(machine.device)
    total = machine.sum([loss_sum, weight])          # over all processes, in fp64

Processes come from `accelerate launch`; without it there is one.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from torch import nn

from utils.config.training import TrainingConfig
from utils.pipeline.ranks import join_processes
from utils.training.precision import Precision, resolve_precision, resolve_threads


@dataclass(frozen=True)
class Machine:
    """What this process computes on, and what it does together with the others."""

    accelerator: Accelerator
    precision: Precision
    threads: int

    @classmethod
    def of(cls, config: TrainingConfig) -> "Machine":
        """Join the processes of this launch and set the number of threads."""
        wrapper = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
        on_cpu = join_processes().device.type == "cpu"
        accelerator = Accelerator(cpu=on_cpu, mixed_precision="no", kwargs_handlers=[wrapper])
        threads = resolve_threads(
            config.cpu_threads, int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
        )
        torch.set_num_threads(threads)
        return cls(accelerator, resolve_precision(config.precision, accelerator.device), threads)

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def num_ranks(self) -> int:
        return self.accelerator.num_processes

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over processes; itself when there is one."""
        return self.accelerator.prepare_model(module) if self.num_ranks > 1 else module

    def without_sync(self, module: nn.Module) -> AbstractContextManager:
        """The region of all micro-batches but the last: gradients stay local."""
        return module.no_sync() if self.num_ranks > 1 else nullcontext()

    def sum(self, values: list[float]) -> list[float]:
        """Each value summed over the processes, in fp64."""
        if self.num_ranks == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        return self.accelerator.reduce(tensor, "sum").tolist()

    def gather(self, value: object) -> list:
        """The value of every process, in order of rank."""
        return gather_object([value]) if self.num_ranks > 1 else [value]

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.accelerator.wait_for_everyone()

    def describe(self) -> str:
        """One phrase for the log."""
        processes = f", {self.num_ranks} processes" if self.num_ranks > 1 else ""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.device.type}{processes}, {threads}, {self.precision} ({self.precision.reason})"
