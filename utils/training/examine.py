"""
How a base model is examined: proofs before the first step, validation and samples along the way, baselines to
beat.

    examiner = Examiner(trainer, config, tokenizer, data)
    examiner.prove(expected_initial_loss)     # StageError when the run would not optimise what it says
    examiner.evaluate()                       # validation loss, bits per byte, samples; records the best step
    examiner.figures()                        # for the manifest: losses beside uniform, unigram and bigram
"""

import math
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Protocol

import numpy as np

from utils.config.pretrain import PretrainConfig
from utils.training.attention import any_precision
from utils.training.baselines import count_baselines
from utils.training.loop import Trainer
from utils.training.loss import Batch
from utils.training.samples import continuations
from utils.training.selftest import (
    check_alignment,
    check_causality,
    check_ids,
    check_initial_loss,
    check_isolation,
    check_offset,
)
from utils.training.validation import RowReader, bits_per_byte, count_targets, spread_batches

COUNTED_TOKENS = 20_000_000
SELF_TEST_ROWS = 4


class Tokenizer(Protocol):
    """What samples and bytes need of the frozen tokenizer."""

    block: dict
    vocab_size: int

    def encode_text(self, texts: list[str]) -> list[np.ndarray]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def token_bytes(self, index: int) -> bytes: ...


class Datasets(Protocol):
    """What the run reads: a name, rows to count on and rows to be judged by, of each dataset."""

    names: Sequence[str]
    train: Sequence[RowReader]
    val: Sequence[RowReader]


class Examiner:
    """Examines the model of `trainer` on fixed rows of the validation splits."""

    def __init__(
        self, trainer: Trainer, config: PretrainConfig, tokenizer: Tokenizer, data: Datasets
    ) -> None:
        self._trainer, self._config, self._tokenizer = trainer, config, tokenizer
        self._sets = {
            name: list(spread_batches(split, config.eval_max_tokens))
            for name, split in zip(data.names, data.val, strict=True)
        }
        self._batches = list(chain.from_iterable(self._sets.values()))
        self._counts = {name: count_targets(batches) for name, batches in self._sets.items()}
        self._probed = False
        self._specials = specials = tokenizer.block["special_ids"]
        self._bytes = np.array([len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)], np.int64)
        self._start = [specials["bos"]] if specials["bos"] >= 0 else []
        self._end = specials["eos"]
        self._baselines = count_baselines(_all_rows(data.train), self._batches, tokenizer.vocab_size)

    def prove(self, expected_loss: float | None) -> None:
        """The self-tests before the first step; an untrained model has an `expected_loss`, others None."""
        trainer, rows = self._trainer, _first_rows(self._batches[0], SELF_TEST_ROWS)
        check_ids(trainer.model, self._batches, self._specials)
        with trainer.whole_model():
            loss = check_alignment(trainer.model, trainer.loss, rows, trainer.machine.precision)
            with any_precision(trainer.model):
                check_causality(trainer.model, rows)
                isolated = any(check_isolation(trainer.model, batch) for batch in islice(self._batches, 8))
        expected = ""
        if expected_loss is not None:
            check_initial_loss(loss, expected_loss)
            expected = f" (expected {expected_loss:.3f})"
        held = "alignment, causality and isolation hold" if isolated else "alignment and causality hold"
        trainer.stage.log("self-test", f"loss {loss:.3f} at step 0{expected}, {held}")

    def evaluate(self) -> None:
        """Validation loss and samples of the weights as they are."""
        trainer = self._trainer
        losses = {name: trainer.validate(batches) for name, batches in self._sets.items()}
        loss = _weighted_mean(losses, self._counts)
        if trainer.step and not self._probed and loss < self._evaluations()[0]["val_loss"]:
            self._probe_offset()  # what has learnt nothing, or diverged, predicts no token at all
        each = {f"val_loss_{name}": value for name, value in losses.items()} if len(losses) > 1 else {}
        with trainer.whole_model(), any_precision(trainer.model):
            samples = list(self._samples()) if trainer.machine.rank == 0 else []
        trainer.leave_if_asked()
        trainer.observe(loss, bits_per_byte=bits_per_byte(loss, self._batches, self._bytes), **each)
        for row in samples:
            trainer.record("samples", row)

    def _probe_offset(self) -> None:
        """Once in a process, as soon as something is learnt: which token does the model predict?"""
        trainer, self._probed = self._trainer, True
        with trainer.whole_model(), any_precision(trainer.model):
            following, later = check_offset(trainer.model, self._batches[0])
        trainer.stage.log("offset probe", f"next token {following:.2f} nats, the one after it {later:.2f}")

    def _samples(self) -> Iterator[dict]:
        """
        A greedy continuation of each prompt and, where a temperature is given, a drawn one; cut short when
        asked to stop.
        """
        config, given = self._config, self._tokenizer.encode_text(self._config.prompts)
        starts = [[*self._start, *map(int, ids)] for ids in given]
        for temperature in self._temperatures:
            options = {"temperature": temperature, "seed": config.seed}
            options["stopping"] = lambda: self._trainer.stage.stopping
            produced = continuations(
                self._trainer.model, starts, config.sample_tokens, [self._end], **options
            )
            for prompt, ids in zip(config.prompts, produced, strict=True):
                finish = "length" if len(ids) == config.sample_tokens else "stop"
                row = {"prompt": prompt, "text": self._tokenizer.decode(ids), "finish": finish}
                drawn = {"temperature": temperature} if temperature else {}
                yield row | drawn

    @property
    def _temperatures(self) -> list[float]:
        return [0.0, *([self._config.sample_temperature] if self._config.sample_temperature else [])]

    def _evaluations(self) -> list[dict]:
        return [row for row in self._trainer.records["history"] if "val_loss" in row]

    def last_samples(self) -> list[dict]:
        """Samples of the last evaluation."""
        count = len(self._config.prompts) * len(self._temperatures)
        return self._trainer.records.get("samples", [])[-count:] if count else []

    def figures(self) -> dict:
        """Losses of the published weights, and of models that only count."""
        evaluations = self._evaluations()
        best = _at(evaluations, self._trainer.best.get("step", self._trainer.step))
        published = evaluations[-1] if self._config.publish == "last" else best
        found = self._baselines
        return {
            "val_loss": published["val_loss"],
            "val_bits_per_byte": published["bits_per_byte"],
            **{name: value for name, value in published.items() if name.startswith("val_loss_")},
            "best_val_loss": best["val_loss"],
            "best_step": best["step"],
            "initial_val_loss": evaluations[0]["val_loss"],
            "uniform_loss": math.log(self._tokenizer.vocab_size),
            "unigram_loss": found.unigram_loss,
            "bigram_loss": found.bigram_loss,
            "unigram_bits_per_byte": bits_per_byte(found.unigram_loss, self._batches, self._bytes),
            "bigram_bits_per_byte": bits_per_byte(found.bigram_loss, self._batches, self._bytes),
            **self._notices(published["val_loss"], evaluations[0]["val_loss"]),
        }

    def _notices(self, loss: float, initial_loss: float) -> dict[str, list[str]]:
        """Say at the end, and in manifest and card, that what is published is worse than no training."""
        if loss <= initial_loss:
            return {}
        notice = (
            f"the published weights are worse than those before step 1: validation loss {loss:.4f}, "
            f'before {initial_loss:.4f}; the run diverged, lower "learning_rate"'
        )
        self._trainer.stage.log("warning", notice)
        return {"notices": [notice]}


def _weighted_mean(losses: dict[str, float], counts: dict[str, int]) -> float:
    """Mean over all targets; of a single dataset its very number."""
    if len(losses) == 1:
        return next(iter(losses.values()))
    return sum(loss * counts[name] for name, loss in losses.items()) / max(1, sum(counts.values()))


def _at(evaluations: list[dict], step: int) -> dict:
    return next(row for row in evaluations if row["step"] == step)


def _first_rows(batch: Batch, count: int) -> Batch:
    return type(batch)(*(column[:count] for column in batch))


def _all_rows(splits: Sequence[RowReader]) -> Iterator[Batch]:
    """The training rows that the baselines are counted on."""
    for split in splits:
        yield from spread_batches(split, COUNTED_TOKENS, rows_per_batch=256)
