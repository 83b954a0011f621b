"""
What stage 50 reads, packed or raw, opened for training: datasets with their sizes, and the order of rows.

    data = open_data(config, stage, tokenizer, row_tokens=256)
    data.sizes                                   # [(rows, tokens per row)] of each dataset
    order = data.order(seed=0, batch_rows=32)    # next_step, cursor, restore; data.read makes batches of it

and what stages 70 and 90 read, whole items planned into rows:

    train = open_rows(stage, "train", row_tokens=256, packed=PackedConversations)
    mixed = MixedInputs(train, stage.inputs("data"), config.inputs.data, seed=0, batch_rows=8)
    mixed.epochs(steps=100)                      # {"sft": 2.4}
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from utils.config.pretrain import PackedInput, PretrainConfig, RawInput
from utils.packing.dataset import Batch, PackedDataset
from utils.packing.index import SpecialIds
from utils.packing.mixture import (
    Counted,
    Mixture,
    drawn_shares,
    integer_weights,
    mix_inputs,
    read_draws,
    share_phrases,
)
from utils.packing.plan import plan_best_fit
from utils.packing.raw import raw_file
from utils.packing.rows import RowsDataset
from utils.packing.shards import Encode, Encoder, RawText
from utils.packing.stream import TextStream
from utils.pipeline.errors import ConfigError
from utils.pipeline.inputs import Input, Source
from utils.pipeline.stage import Stage

COUNTED_TOKENS = 2_000_000
Packed = TypeVar("Packed", bound=Counted)


class Tokenizer(Protocol):
    """What raw text is encoded with, and packed text was."""

    block: dict
    fingerprint: str
    vocab_size: int
    encode_text: Encode


class PackedData:
    """Datasets of stage 40."""

    def __init__(self, inputs: Sequence[Input], entries: Sequence[PackedInput], fingerprint: str) -> None:
        self._inputs, self._entries = inputs, entries
        self.weights = [entry.weight for entry in entries]
        self.names = short_names([entry.path for entry in entries])
        self.train = [PackedDataset(given.path, "train", fingerprint) for given in inputs]
        self.val = [PackedDataset(given.path, "val", fingerprint) for given in inputs]
        self.sizes = [(each.num_rows, each.sequence_length) for each in self.train]
        self.read = partial(read_draws, self.train)

    def order(self, seed: int, batch_rows: int) -> Mixture:
        """The order of the training rows."""
        return mix_inputs(self.train, self._inputs, self._entries, seed, batch_rows)

    def describe(self, epochs: Mapping[str, float]) -> str:
        """One line to print before training: how often each dataset will be read, and in what share."""
        columns = zip(self.names, self.sizes, share_phrases(self.weights), strict=True)
        return ", ".join(
            f"{name} {epochs[name]:.2f} epochs of {rows:,} rows{share}" for name, (rows, _), share in columns
        )


class RawData:
    """
    Raw text. Its `train` and `val` are samples in memory, for counting and for validation; its size is
    estimated from the first of them.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        entries: Sequence[RawInput],
        tokenizer: Tokenizer,
        row_tokens: int,
        val_tokens: int,
    ) -> None:
        special = SpecialIds(*(tokenizer.block["special_ids"][name] for name in ("bos", "eos", "pad")))
        encoder = Encoder(tokenizer.encode_text, special, tokenizer.vocab_size)
        self.names = short_names([entry.path for entry in entries])
        self._texts = [
            _open(name, source, entry, encoder)
            for name, source, entry in zip(self.names, sources, entries, strict=True)
        ]
        self.weights, self._row_tokens = [entry.weight for entry in entries], row_tokens
        sampled = [text.sample("train", COUNTED_TOKENS, row_tokens) for text in self._texts]
        self.train = [block for block, _ in sampled]
        self.val = [text.sample("val", val_tokens, row_tokens)[0] for text in self._texts]
        tokens = [density * text.size for text, (_, density) in zip(self._texts, sampled, strict=True)]
        self.sizes = [(max(1, round(each / row_tokens)), row_tokens) for each in tokens]

    def order(self, seed: int, batch_rows: int) -> TextStream:
        """The order of the training rows."""
        return TextStream(self._texts, self.weights, seed, batch_rows, self._row_tokens)

    def describe(self, epochs: Mapping[str, float]) -> str:
        """One line to print before training: how large a sample says each text is, and what that makes."""
        columns = zip(self.names, self.sizes, share_phrases(self.weights), strict=True)
        return ", ".join(
            f"{name} about {epochs[name]:.2f} epochs of about {rows * tokens / 1e6:,.2f} M tokens{share}"
            for name, (rows, tokens), share in columns
        )

    @staticmethod
    def read(rows: Batch) -> Batch:
        """The rows as they were drawn: a stream has read them by then."""
        return rows


def open_rows(
    stage: Stage,
    split: str,
    row_tokens: int,
    packed: Callable[..., Packed],
    item_lengths: Callable[[np.ndarray], np.ndarray] = lambda lengths: lengths,
) -> list[Packed]:
    """
    One split of every dataset in the role "data", each as `packed(dataset, plan, row_tokens, pad=id)`.

    `item_lengths` makes ids per item, which stays whole in a row, from ids per document. ConfigError when an
    item is longer than a row.
    """
    opened = []
    for given in stage.inputs("data"):
        given.file(f"{split}.bin")
        dataset = RowsDataset(given.path, split, given.manifest.tokenizer["fingerprint"])
        lengths = item_lengths(dataset.lengths)
        check_row_tokens(lengths, row_tokens, f"{given.path.name} ({split})")
        order = stage.generator(f"{given.role}.{split}").permutation(len(lengths))
        plan = plan_best_fit(lengths, row_tokens, order)
        opened.append(packed(dataset, plan, row_tokens, pad=dataset.special.padding))
    return opened


def check_row_tokens(lengths: np.ndarray, row_tokens: int, where: str) -> None:
    """ConfigError when an item is longer than a row: nothing is ever cut."""
    longest = int(np.max(lengths))
    if longest > row_tokens + 1:
        raise ConfigError(
            f'"row_tokens": {row_tokens:,} is below the longest item of {where}, which has {longest:,} ids',
            fix=f'set "row_tokens" to at least {longest - 1:,}, or prepare the data with a lower limit',
        )


class Entry(Protocol):
    """A config's entry for one dataset."""

    path: str
    weight: float


class MixedInputs:
    """Opened splits of several artifacts by name, and the order of their rows."""

    def __init__(
        self,
        opened: Sequence[Counted],
        inputs: Sequence[Input],
        entries: Sequence[Entry],
        seed: int,
        batch_rows: int,
    ) -> None:
        self.mixture = mix_inputs(opened, inputs, entries, seed, batch_rows)
        self.names, self.weights = short_names([each.path for each in entries]), [e.weight for e in entries]

    def epochs(self, steps: int) -> dict[str, float]:
        """How often a run of so many steps reads each dataset."""
        return dict(zip(self.names, self.mixture.epochs(steps), strict=True))

    def describe(self, steps: int) -> str:
        """One line to print before training: how often each dataset will be read, and in what share."""
        return self.mixture.epochs_line(self.names, steps)

    def drawn(self, cursor: dict) -> dict[str, dict]:
        """What the manifest says of each dataset at the end of a run."""
        return drawn_shares(self.names, self.weights, cursor["counts"])


def open_data(
    config: PretrainConfig, stage: Stage, tokenizer: Tokenizer, row_tokens: int
) -> PackedData | RawData:
    """The packed datasets of the config, or its raw text in rows of `row_tokens` + 1 ids."""
    if config.inputs.data:
        return PackedData(stage.inputs("data"), config.inputs.data, tokenizer.fingerprint)
    sources = [stage.source(f"raw.{i}") for i in range(len(config.inputs.raw))]
    return RawData(sources, config.inputs.raw, tokenizer, row_tokens, config.eval_max_tokens)


def _open(name: str, source: Source, entry: RawInput, encoder: Encoder) -> RawText:
    chunk_bytes = entry.chunk_mebibytes << 20
    files = [raw_file(path, entry.field, entry.split_on, chunk_bytes) for path in source.files]
    return RawText(name, source.record["digest"], files, encoder)


def epochs_of(data: PackedData | RawData, num_rows: int) -> dict[str, float]:
    """How often each dataset is read in `num_rows` rows drawn by weight; for raw text about that often."""
    shares, total = integer_weights(data.weights), 1 << 32
    triples = zip(data.names, shares, data.sizes, strict=True)
    return {name: num_rows * share / total / rows for name, share, (rows, _) in triples}


def short_names(paths: Sequence[str]) -> list[str]:
    """Each path by as many of its last parts as tell all of them apart."""
    parts = [Path(path).parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({i})" for i, name in enumerate(names)]
