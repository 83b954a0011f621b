"""
The inside of an optimizer step: gradients of a global batch in pieces, clipped, applied or refused as a
whole.

    gradients = GradientStep(wrapped, optimizer, parameters, machine, 1.0, lambda: stage.stopping)
    parts = gradients.accumulate(batches, weight)        # None: asked to stop, nothing was applied
    norm = gradients.update(loss, learning_rate)         # not finite: nothing was applied
"""

import math
from collections.abc import Callable

import torch
from torch import nn

from kernels.linear_cross_entropy import LossSums
from utils.pipeline.errors import StageError
from utils.training.loss import Batch
from utils.training.machine import Machine

SMALLEST_WEIGHT = 1e-9  # a batch without targets has loss 0, not 0 / 0


class GradientStep:
    """
    Backward over micro-batches and one update.

    `wrapped` is the LossModel that averages gradients over the processes; `parameters` are those that train.
    """

    def __init__(
        self,
        wrapped: nn.Module,
        optimizer: torch.optim.Optimizer,
        parameters: dict[str, nn.Parameter],
        machine: Machine,
        max_norm: float,
        stopping: Callable[[], bool],
    ) -> None:
        self.optimizer, self.parameters = optimizer, parameters
        self._wrapped, self._machine, self._max_norm, self._stopping = wrapped, machine, max_norm, stopping
        self._checked = False

    def accumulate(self, batches: list[Batch], weight: float) -> list[LossSums] | None:
        """
        Backward through every micro-batch; gradients are exchanged in the last one only.

        None when a single process was asked to stop between two of them: what was accumulated is discarded.
        """
        parts, scale = [], self._machine.num_ranks / max(weight, SMALLEST_WEIGHT)
        for batch in batches[:-1]:
            with self._machine.without_sync(self._wrapped):
                parts.append(self.backward(batch, scale))
            if self._machine.num_ranks == 1 and self._stopping():
                self.optimizer.zero_grad()
                return None
        return [*parts, self.backward(batches[-1], scale)]

    def backward(self, batch: Batch, scale: float) -> LossSums:
        """
        Add the gradient of one micro-batch. The factor in `scale` undoes the wrapper's mean over processes.
        """
        sums = self._wrapped(batch)
        (sums.loss_sum * scale).backward()
        return sums

    def update(self, loss: float, learning_rate: float) -> float:
        """
        Clip and step; a gradient or loss that is not finite changes nothing. Returns the norm before
        clipping.
        """
        self._check()
        norm = torch.nn.utils.get_total_norm([each.grad for each in self.parameters.values()])
        value = float(norm) if math.isfinite(loss) else math.nan
        if math.isfinite(value):
            torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), self._max_norm, norm)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
        self.optimizer.zero_grad()
        return value

    def _check(self) -> None:
        """Before the first update: a parameter without a gradient is a branch cut off from the loss."""
        if self._checked:
            return
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                raise StageError(f"{name} gets no gradient: it is cut off from the loss")
        self._checked = True
