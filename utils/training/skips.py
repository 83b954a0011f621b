"""
Steps that were not taken because something in them was not finite: counted, written down, and too many in a
row end the run.

    skips = Skips(stage, most_in_a_row=5, writes=True, last_good=store.newest_name)
    skips.count(step, skipped, cursor, history)

The data go on, the weights and the optimizer do not. log/skipped.jsonl says which rows (the cursor before
the step) and what the losses before were.
"""

import json
from collections.abc import Callable

from utils.pipeline.errors import StageError
from utils.pipeline.stage import Stage

RECENT_LOSSES = 20


class Skips:
    """Counters of a run; one process `writes`, and `last_good` names the newest checkpoint."""

    def __init__(self, stage: Stage, most_in_a_row: int, writes: bool, last_good: Callable[[], str]) -> None:
        self.total = self.in_a_row = 0
        self._stage, self._most, self._writes, self._last_good = stage, most_in_a_row, writes, last_good

    def count(self, step: int, skipped: bool, cursor: dict, history: list[dict]) -> None:
        """After each step. StageError when too many in a row were skipped."""
        self.total += skipped
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        if skipped:
            self._stage.log("skipped", f"step {step}: gradient not finite, weights unchanged", step=step)
            losses = [row["loss"] for row in history[:-1] if "loss" in row][-RECENT_LOSSES:]
            self._write({"step": step, "cursor": cursor, "losses": losses})
        if self.in_a_row >= self._most:
            raise StageError(
                f"{self.in_a_row} steps in a row had a gradient that is not finite, "
                f"the last one step {step}; the last good checkpoint is {self._last_good()}",
                fix='lower "learning_rate", raise "warmup_steps", or set "precision": "fp32"',
            )

    def state(self) -> dict[str, int]:
        """For the checkpoint."""
        return {"skipped": self.total, "skipped_in_a_row": self.in_a_row}

    def restore(self, state: dict) -> None:
        self.total, self.in_a_row = state["skipped"], state["skipped_in_a_row"]

    def _write(self, row: dict) -> None:
        if not self._writes:
            return
        folder = self._stage.partial / "log"
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "skipped.jsonl", "a", encoding="ascii") as file:
            file.write(json.dumps(row) + "\n")
