"""
Signs that a run learns its data by heart, told while it runs and kept in the manifest; they stop nothing.

    watch = OverfittingWatch(stage, config)
    watch.count({"books": 6.2})           # before training: how often each dataset will be read
    watch.look(history, best)             # after each evaluation, and of those that a resumed run had
    watch.is_over                         # only ever true with "early_stopping_patience_evals"

Up to 4 epochs repeated data is worth about as much as new data, after that less and less (Muennighoff 2023).
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from utils.config.training import TrainingConfig
from utils.pipeline.stage import Stage

MOST_EPOCHS = 4
RISES = 3


def rising_evaluations(history: Sequence[Mapping]) -> Mapping | None:
    """
    The first evaluation that is the third in a row with a higher validation loss than the one before, while
    the training loss between them fell; None when there is none.
    """
    evaluations, losses, since = [], [], []
    for row in history:
        if "val_loss" in row:
            evaluations.append(row)
            losses.append(sum(since) / len(since) if since else float("inf"))
            since = []
        elif row.get("loss") is not None:
            since.append(row["loss"])
        last = [each["val_loss"] for each in evaluations[-RISES - 1 :]]
        risen = len(last) > RISES and all(later > earlier for earlier, later in pairwise(last))
        if risen and losses[-1] < losses[-RISES]:
            return evaluations[-1]
    return None


class OverfittingWatch:
    """What the evaluations so far say, from the history alone, so that a resumed run says the same."""

    def __init__(self, stage: Stage, config: TrainingConfig) -> None:
        self._stage, self._config = stage, config
        self._repeats: list[str] = []
        self._rise = ""
        self.is_over = False

    def count(self, epochs: Mapping[str, float]) -> None:
        """Say which datasets will be read more than 4 times, to the tenth that is printed."""
        self._repeats = [
            f"{name} is read {times:.1f} times; beyond {MOST_EPOCHS} repeated text adds little: "
            "give more data or a smaller budget"
            for name, times in epochs.items()
            if round(times, 1) > MOST_EPOCHS  # whole steps make 4.003 of 4 epochs
        ]
        for text in self._repeats:
            self._stage.log("overfitting", text)

    def look(self, history: Sequence[Mapping], best: Mapping) -> None:
        """Take note of the newest evaluation."""
        if not self._rise and (row := rising_evaluations(history)):
            self._rise = self._notice(row, history)
            self._stage.log("overfitting", self._rise, step=row["step"])
        patience = self._config.early_stopping_patience_evals
        since = sum("val_loss" in row and row["step"] > best.get("step", 0) for row in history)
        if patience and since >= patience and not self.is_over:
            self.is_over = True
            self._stage.log("early stop", f"{since} evaluations without a new best", step=history[-1]["step"])

    def figures(self) -> dict:
        """The notices, for the manifest; {} without any."""
        notices = [*self._repeats, *([self._rise] if self._rise else [])]
        return {"overfitting": notices} if notices else {}

    def _notice(self, row: Mapping, history: Sequence[Mapping]) -> str:
        before = [each for each in history if "val_loss" in each and 0 < each["step"] <= row["step"]]
        best = min(before, key=lambda each: each["val_loss"])
        publish = "" if self._config.publish == "best" else '; "publish": "best" makes it the artifact'
        return (
            f"at step {row['step']:,} the validation loss has risen {RISES} times in a row while the "
            f"training loss fell; it was lowest ({best['val_loss']:.4f}) at step {best['step']:,}{publish}"
        )
