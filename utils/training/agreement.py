"""
Who wants to stop or to save, and what all processes do about it at the same step.

    agreement = Agreement(stage, machine, save_every_minutes=15)
    agreement.ask()                            # before the first step, and while the model is examined
    wishes = agreement.wishes()                # travel with the sums of the step
    agreement.hear(launched)                   # a step later, at the same place of the loop in every process
    agreement.stopping, agreement.exit_code, agreement.save_now

A single process answers to its own signals at once, between two micro-batches.
"""

import time

from utils.pipeline.signals import INTERRUPTED, PREEMPTED
from utils.pipeline.stage import Stage
from utils.training.launched import LaunchedStep
from utils.training.machine import Machine


class Agreement:
    """What was asked for, here or elsewhere; `save_now` may also be set by who finds a reason."""

    def __init__(self, stage: Stage, machine: Machine, save_every_minutes: float) -> None:
        self._request, self._machine, self._seconds = stage.stop_request, machine, 60 * save_every_minutes
        self._code, self._saved_step, self._saved_at = 0, -1, time.monotonic()
        self.save_now = False

    @property
    def exit_code(self) -> int:
        """0 while nobody wants to stop."""
        return self._request.exit_code if self._machine.num_ranks == 1 else self._code

    @property
    def stopping(self) -> bool:
        return self.exit_code != 0

    def wishes(self) -> list[float]:
        """What this process wants all to do: leave with 75, leave with 130, save."""
        overdue = self._machine.rank == 0 and time.monotonic() - self._saved_at > self._seconds
        asked = (float(self._request.exit_code == code) for code in (PREEMPTED, INTERRUPTED))
        return [*asked, float(overdue)]

    def ask(self) -> None:
        """What all want now, where there are no sums of a step to travel with; all must ask."""
        self._heard(*self._machine.sum(self.wishes()))

    def hear(self, launched: LaunchedStep | None) -> None:
        """What all wanted when they launched a step; who wanted to save before it was saved wants no more."""
        if launched is not None:
            terminated, interrupted, overdue = launched.wishes()
            self._heard(terminated, interrupted, overdue if launched.step > self._saved_step else 0.0)

    def _heard(self, terminated: float, interrupted: float, overdue: float) -> None:
        self._code = INTERRUPTED if interrupted else PREEMPTED if terminated else 0
        self.save_now = self.save_now or overdue > 0

    def saved(self, step: int) -> None:
        """All of them have saved this step."""
        self._saved_step, self._saved_at, self.save_now = step, time.monotonic(), False

    def seconds_left(self, deadline_seconds: float) -> float | None:
        """Until a preempted process must be gone, counted from the signal; None where there is no hurry."""
        if self.exit_code != PREEMPTED:
            return None
        asked_at = self._request.asked_at or time.monotonic()
        return max(0.0, asked_at + deadline_seconds - time.monotonic())
