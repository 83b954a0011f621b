"""
Steps that were not taken because something in them was not finite: counted, written down, and too many in a
row end the run.

    skips = Skips(stage, most_in_a_row=5, writes=True, last_good=store.newest_name)
    skips.cut_after(step)                        # of a resumed run: what it did beyond is not its past
    skips.count(row, history, cursor, rows.row_ids)

The data go on, the weights and the optimizer do not. log/skipped.jsonl says which rows (their ids, and the
cursor before the step) and what the losses before were. In fp16 an overflow of the scaled gradient is how the
scale is found: it is counted apart and ends no run.
"""

import json
from collections.abc import Callable

from utils.pipeline.errors import StageError
from utils.pipeline.stage import Stage
from utils.training.trackers import cut_after

RECENT_LOSSES = 20


class Skips:
    """Counters of a run; one process `writes`, and `last_good` names the newest checkpoint."""

    def __init__(self, stage: Stage, most_in_a_row: int, writes: bool, last_good: Callable[[], str]) -> None:
        self.total = self.in_a_row = self.overflows = 0
        self._stage, self._most, self._writes, self._last_good = stage, most_in_a_row, writes, last_good
        self._file = stage.partial / "log" / "skipped.jsonl"

    def cut_after(self, step: int) -> None:
        """Drop what an earlier process wrote down of later steps, which will be taken again."""
        if self._writes:
            cut_after(self._file, step)

    def count(
        self, row: dict, history: list[dict], cursor: dict, row_ids: Callable[[dict], list[list[int]]]
    ) -> None:
        """
        After each step, with its row of `history` and the place in the data before it. StageError when too
        many in a row were skipped.
        """
        if row.get("overflow"):
            self.overflows += 1
            return
        self.total += row["skipped"]
        self.in_a_row = self.in_a_row + 1 if row["skipped"] else 0
        step = history[-1]["step"]
        if row["skipped"]:
            self._stage.log("skipped", f"step {step}: gradient not finite, weights unchanged", step=step)
            losses = [each["loss"] for each in history[:-1] if "loss" in each][-RECENT_LOSSES:]
            self._write({"step": step, "rows": row_ids(cursor), "cursor": cursor, "losses": losses})
        if self.in_a_row >= self._most:
            raise StageError(
                f"{self.in_a_row} steps in a row had a gradient that is not finite, "
                f"the last one step {step}; {self._newest(step - self.in_a_row)}",
                fix='lower "learning_rate", raise "warmup_steps", or set "precision": "bf16" or "fp32", '
                "and start again with --resume never",
            )

    def _newest(self, taken: int) -> str:
        """The newest checkpoint in words; those saved after the step last `taken` have its weights."""
        name = self._last_good()
        among = taken > 0 and name.startswith("step_") and name > f"step_{taken:08d}"
        return f"the last good checkpoint is {name}" + (
            f", if step {taken} was good: it has the weights after that step" if among else ""
        )

    def state(self) -> dict[str, int]:
        """For the checkpoint."""
        return {
            "skipped": self.total,
            "skipped_in_a_row": self.in_a_row,
            "overflows": self.overflows,
        }

    def restore(self, state: dict) -> None:
        self.total, self.in_a_row = state["skipped"], state["skipped_in_a_row"]
        self.overflows = state["overflows"]

    def figures(self) -> dict[str, int]:
        """For the manifest."""
        overflows = {"overflowed_steps": self.overflows} if self.overflows else {}
        return {"skipped_steps": self.total} | overflows

    def _write(self, row: dict) -> None:
        if not self._writes:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with open(self._file, "a", encoding="ascii") as file:
            file.write(json.dumps(row) + "\n")
