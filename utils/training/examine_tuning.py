"""
How a fine-tuning run is judged along the way: held-out loss, greedy answers, pairs won.

    examiner = AnswerExaminer(trainer, batches, questions, answer)           # stage 70
    examiner = PreferenceExaminer(trainer, batches, reference, measure)      # stage 90
    examiner.evaluate()          # observes val_loss and what else is measured
    examiner.figures()           # for the manifest: before training, and of the published weights
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from utils.training.attention import any_precision
from utils.training.loop import Trainer
from utils.training.loss import Batch
from utils.training.pairs import PairBatch, held_out_logps


@dataclass(frozen=True)
class HeldOutQuestion:
    """What is asked, as text for the record, and the answer that was kept from training."""

    prompt: str
    expected: str


class AnswerExaminer:
    """`answer(model)` writes one text per question."""

    def __init__(
        self,
        trainer: Trainer,
        batches: Sequence[Batch],
        questions: Sequence[HeldOutQuestion],
        answer: Callable[[nn.Module], list[str]],
    ) -> None:
        self._trainer, self._batches = trainer, batches
        self._questions, self._answer = questions, answer

    def evaluate(self) -> None:
        """
        Validation loss and answers of the weights as they are; those before the first step are no
        candidate.
        """
        trainer = self._trainer
        numbers = {"val_loss": trainer.validate(self._batches)}
        if self._questions:
            numbers["exact_match"] = self._ask()
        if trainer.step:
            trainer.observe(**numbers)
        else:
            trainer.record("history", numbers)
            trainer.stage.log(
                "eval", ", ".join(f"{name} {value:.4f}" for name, value in numbers.items()), step=0
            )

    def _ask(self) -> float:
        """Share of answers that are word for word the expected one."""
        model = self._trainer.model
        was_training = model.training
        model.eval()
        with self._trainer.whole_model(), any_precision(model):
            answers = list(zip(self._answer(model), self._questions, strict=True))
        model.train(was_training)
        for text, asked in answers:
            self._trainer.record(
                "samples", {"prompt": asked.prompt, "expected": asked.expected, "answer": text}
            )
        return sum(text.split() == asked.expected.split() for text, asked in answers) / len(answers)

    def figures(self) -> dict:
        """Held-out figures before training and of the published weights."""
        first, chosen = published_rows(self._trainer)
        names = [name for name in ("val_loss", "exact_match") if name in chosen]
        return {f"initial_{name}": first[name] for name in names} | {name: chosen[name] for name in names}


class PreferenceExaminer:
    """Measures fixed held-out pairs; `measure(lp, reference)` gives the numbers, `val_loss` among them."""

    def __init__(
        self,
        trainer: Trainer,
        batches: Sequence[PairBatch],
        reference: Callable[[nn.Module, PairBatch], Tensor],
        measure: Callable[[np.ndarray, np.ndarray], dict[str, float]],
    ) -> None:
        self._trainer, self._batches, self._reference, self._measure = trainer, batches, reference, measure
        self._warned = False

    def evaluate(self) -> dict[str, float]:
        """Measure the weights as they are; those before the first step are no candidate."""
        trainer = self._trainer
        with trainer.whole_model(), trainer.machine.precision.autocast():
            numbers = self._measure(*held_out_logps(trainer.model, self._batches, self._reference))
        if trainer.step:
            trainer.observe(**numbers)
        else:
            trainer.record("history", numbers)
            trainer.stage.log(
                "eval", ", ".join(f"{name} {numbers[name]:.4f}" for name in ("val_loss", "preference"))
            )
        self._warn(numbers)
        return numbers

    def _warn(self, numbers: dict[str, float]) -> None:
        """Say it once when the margin is bought with the likelihood of chosen answers (Q21)."""
        limit, drop = self._trainer.config.max_chosen_drop_nats, numbers["chosen_drop_nats"]
        if drop > limit and not self._warned:
            self._warned = True
            self._trainer.stage.log(
                "warning", f"chosen answers lost {drop:.1f} nats against the reference (limit {limit:g}), "
                f"margin {numbers['margin']:.2f}: lower the learning rate or raise beta"
            )  # fmt: skip

    def figures(self) -> dict:
        """Held-out figures before training and of the published weights."""
        first, chosen = published_rows(self._trainer)
        names = [name for name in chosen if name != "step"]
        return {"initial_preference": first["preference"], "initial_val_loss": first["val_loss"]} | {
            name: chosen[name] for name in names
        }


def published_rows(trainer: Trainer) -> tuple[dict, dict]:
    """The evaluation before training and that of the weights which become the artifact."""
    rows = [row for row in trainer.records["history"] if "val_loss" in row]
    last = trainer.config.publish == "last"
    return rows[0], rows[-1] if last else next(row for row in rows if row["step"] == trainer.best["step"])
