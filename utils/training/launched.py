"""
An optimizer step between its launch and the moment its numbers are known.

    launched = LaunchedStep.of(step, learning_rate, cursor, clock, weight, totals, update)
    launched.loss                       # a tensor on the device
    launched.report(tokens_before)      # StepReport: the row of history.jsonl, and how long it took
"""

import math
from dataclasses import dataclass

from torch import Tensor

from utils.training.gradients import LOSS_SCALE, Totals, Update
from utils.training.late import LateNumbers, StepClock
from utils.training.progress import StepReport


@dataclass(frozen=True)
class LaunchedStep:
    """`cursor` is the place in the data before the step, `names` what update and objective have to say."""

    step: int
    learning_rate: float
    cursor: dict
    clock: StepClock
    loss: Tensor
    names: tuple[str, ...]
    numbers: LateNumbers

    @classmethod
    def of(
        cls,
        step: int,
        learning_rate: float,
        cursor: dict,
        clock: StepClock,
        weight: Tensor,
        totals: Totals,
        update: Update,
    ) -> "LaunchedStep":
        """Send the numbers of a step on their way."""
        said = update.numbers | totals.extras
        fixed = {"loss": totals.loss, ".weight": weight, ".norm": update.norm, ".skipped": update.skipped}
        wishes = {f".wish{i}": wish for i, wish in enumerate(totals.wishes)}
        late = LateNumbers(said | fixed | wishes)
        return cls(step, learning_rate, cursor, clock, totals.loss, tuple(said), late)

    def report(self, tokens_before: float) -> StepReport:
        """
        What came of it; numbers that are not finite are None in the row. In fp16 a skipped step whose loss is
        finite is an overflow of the scaled gradient, which a smaller scale mends.
        """
        found = self.numbers.read()
        skipped = bool(found[".skipped"])
        row = {"loss": found["loss"], "lr": self.learning_rate}
        row |= {"grad_norm": math.nan if skipped else found[".norm"]}
        row |= {"tokens": int(tokens_before + found[".weight"]), "skipped": skipped}
        row |= {name: found[name] for name in self.names}
        if LOSS_SCALE in self.names:
            row["overflow"] = skipped and math.isfinite(found["loss"]) and found[LOSS_SCALE] > 1
        row = {name: value if math.isfinite(value) else None for name, value in row.items()}
        return StepReport(self.step, found["loss"], row, found[".weight"], self.clock.seconds())

    def wishes(self) -> list[float]:
        """How many processes had each of the wishes; the same numbers on all of them."""
        return [value for name, value in self.numbers.read().items() if name.startswith(".wish")]
