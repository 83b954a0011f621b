"""
How a base model is examined: proofs before the first step, validation and samples along the way, baselines to
beat.

    examiner = Examiner(trainer, config, tokenizer, train, val)
    examiner.prove(expected_initial_loss)        # StageError when the run would not optimise what it says
    examiner.evaluate()                     # validation loss, bits per byte, samples; records the best step
    examiner.figures()                           # for the manifest: losses beside uniform, unigram and bigram
"""

import math
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Protocol

import numpy as np

from utils.config.pretrain import PretrainConfig
from utils.training.baselines import count_baselines
from utils.training.loop import Trainer
from utils.training.loss import Batch
from utils.training.samples import greedy_samples
from utils.training.selftest import check_alignment, check_causality, check_initial_loss, check_isolation
from utils.training.validation import RowReader, bits_per_byte, spread_batches

COUNTED_TOKENS = 20_000_000
SELF_TEST_ROWS = 4


class Tokenizer(Protocol):
    """What samples and bytes need of the frozen tokenizer."""

    block: dict
    vocab_size: int

    def encode_text(self, texts: list[str]) -> list[np.ndarray]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def token_bytes(self, index: int) -> bytes: ...


class Examiner:
    """Examines the model of `trainer` on fixed rows of the validation splits."""

    def __init__(
        self,
        trainer: Trainer,
        config: PretrainConfig,
        tokenizer: Tokenizer,
        train: Sequence[RowReader],
        val: Sequence[RowReader],
    ) -> None:
        self._trainer, self._config, self._tokenizer = trainer, config, tokenizer
        self._batches = list(
            chain.from_iterable(spread_batches(split, config.eval_max_tokens) for split in val)
        )
        specials = tokenizer.block["special_ids"]
        self._bytes = np.array([len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)], np.int64)
        self._start = [specials["bos"]] if specials["bos"] >= 0 else []
        self._end = specials["eos"]
        self._baselines = count_baselines(_all_rows(train), self._batches, tokenizer.vocab_size)

    def prove(self, expected_loss: float) -> None:
        """The self-tests of an untrained model."""
        trainer, rows = self._trainer, _first_rows(self._batches[0], SELF_TEST_ROWS)
        loss = check_alignment(trainer.model, rows, trainer.machine.precision)
        check_causality(trainer.model, rows)
        isolated = any(check_isolation(trainer.model, batch) for batch in islice(self._batches, 8))
        check_initial_loss(loss, expected_loss)
        held = "alignment, causality and isolation hold" if isolated else "alignment and causality hold"
        trainer.stage.log("self-test", f"loss {loss:.3f} at step 0 (expected {expected_loss:.3f}), {held}")

    def evaluate(self) -> None:
        """Validation loss and samples of the weights as they are."""
        trainer = self._trainer
        loss = trainer.validate(self._batches)
        trainer.observe(loss, bits_per_byte=bits_per_byte(loss, self._batches, self._bytes))
        if trainer.machine.rank == 0:
            self._sample()

    def _sample(self) -> None:
        prompts = self._config.prompts
        starts = [[*self._start, *map(int, ids)] for ids in self._tokenizer.encode_text(prompts)]
        produced = greedy_samples(self._trainer.model, starts, self._config.sample_tokens, [self._end])
        for prompt, ids in zip(prompts, produced, strict=True):
            finish = "length" if len(ids) == self._config.sample_tokens else "stop"
            self._trainer.record(
                "samples", {"prompt": prompt, "text": self._tokenizer.decode(ids), "finish": finish}
            )

    def last_samples(self) -> list[dict]:
        """Samples of the last evaluation."""
        return (
            self._trainer.records.get("samples", [])[-len(self._config.prompts) :]
            if self._config.prompts
            else []
        )

    def figures(self) -> dict:
        """Losses of the published weights, and of models that only count."""
        evaluations = [row for row in self._trainer.records["history"] if "val_loss" in row]
        best = self._trainer.best["step"]
        published = evaluations[-1] if self._config.publish == "last" else _at(evaluations, best)
        found = self._baselines
        return {
            "val_loss": published["val_loss"],
            "val_bits_per_byte": published["bits_per_byte"],
            "best_val_loss": self._trainer.best["val_loss"],
            "best_step": best,
            "initial_val_loss": evaluations[0]["val_loss"],
            "uniform_loss": math.log(self._tokenizer.vocab_size),
            "unigram_loss": found.unigram_loss,
            "bigram_loss": found.bigram_loss,
            "unigram_bits_per_byte": bits_per_byte(found.unigram_loss, self._batches, self._bytes),
            "bigram_bits_per_byte": bits_per_byte(found.bigram_loss, self._batches, self._bytes),
        }


def _at(evaluations: list[dict], step: int) -> dict:
    return next(row for row in evaluations if row["step"] == step)


def _first_rows(batch: Batch, count: int) -> Batch:
    return type(batch)(*(column[:count] for column in batch))


def _all_rows(splits: Sequence[RowReader]) -> Iterator[Batch]:
    """The training rows that the baselines are counted on."""
    for split in splits:
        yield from spread_batches(split, COUNTED_TOKENS, rows_per_batch=256)
