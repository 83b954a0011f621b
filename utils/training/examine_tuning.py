"""
How a fine-tuning run is judged along the way: held-out loss, greedy answers, pairs won.

    examiner = AnswerExaminer(trainer, val, questions, answer)           # stage 70
    examiner = PreferenceExaminer(trainer, val, reference, measure)      # stage 90
    examiner.evaluate()          # observes val_loss and what else is measured; leaves when asked to stop
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
from utils.training.validation import RowReader, spread_batches


@dataclass(frozen=True)
class HeldOutQuestion:
    """What is asked, as text for the record, and the answer that was kept from training."""

    prompt: str
    expected: str


Stopping = Callable[[], bool]


class AnswerExaminer:
    """`answer(model, stopping)` writes one text per question, cut short once `stopping`."""

    def __init__(
        self,
        trainer: Trainer,
        val: Sequence[RowReader],
        questions: Sequence[HeldOutQuestion],
        answer: Callable[[nn.Module, Stopping], list[str]],
    ) -> None:
        self._trainer, self._batches = trainer, _held_out(trainer, val)
        self._questions, self._answer = questions, answer

    def evaluate(self) -> None:
        """
        Validation loss and answers of the weights as they are; those before the first step are no
        candidate.
        """
        trainer = self._trainer
        numbers = {"val_loss": trainer.validate(self._batches)}
        answers = self._ask() if self._questions else []
        trainer.leave_if_asked()
        for text, asked in answers:
            trainer.record("samples", {"prompt": asked.prompt, "expected": asked.expected, "answer": text})
        if answers:
            numbers["exact_match"] = _share_met(answers)
        if trainer.step:
            trainer.observe(**numbers)
        else:
            trainer.record("history", numbers)
            trainer.stage.log(
                "eval", ", ".join(f"{name} {value:.4f}" for name, value in numbers.items()), step=0
            )

    def _ask(self) -> list[tuple[str, HeldOutQuestion]]:
        """An answer to each question, cut short when asked to stop."""
        trainer, model = self._trainer, self._trainer.model
        was_training = model.training
        model.eval()
        with trainer.whole_model(), any_precision(model):
            texts = self._answer(model, lambda: trainer.stage.stopping)
        model.train(was_training)
        return list(zip(texts, self._questions, strict=True))

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
        val: Sequence[RowReader],
        reference: Callable[[nn.Module, PairBatch], Tensor],
        measure: Callable[[np.ndarray, np.ndarray], dict[str, float]],
    ) -> None:
        self._trainer, self._batches = trainer, _held_out(trainer, val)
        self._reference, self._measure = reference, measure
        self._warned = False

    def evaluate(self) -> dict[str, float]:
        """Measure the weights as they are; those before the first step are no candidate."""
        trainer = self._trainer
        with trainer.whole_model(), trainer.machine.precision.autocast():
            parts = [
                held_out_logps(trainer.model, [batch], self._reference)
                for batch in trainer.until_asked(self._batches)
            ]
        trainer.leave_if_asked()
        numbers = self._measure(*map(np.concatenate, zip(*parts, strict=True)))
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


def _held_out(trainer: Trainer, val: Sequence[RowReader]) -> list[Batch]:
    """The fixed rows of each validation split that every evaluation reads."""
    return [batch for each in val for batch in spread_batches(each, trainer.config.eval_max_tokens)]


def _share_met(answers: Sequence[tuple[str, HeldOutQuestion]]) -> float:
    """Share of answers that are word for word the expected one."""
    return sum(text.split() == asked.expected.split() for text, asked in answers) / len(answers)


def published_rows(trainer: Trainer) -> tuple[dict, dict]:
    """The evaluation before training and that of the weights which become the artifact."""
    rows = [row for row in trainer.records["history"] if "val_loss" in row]
    last = trainer.config.publish == "last"
    return rows[0], rows[-1] if last else next(row for row in rows if row["step"] == trainer.best["step"])
