"""
Held-out rows: what stages 60 and 80 kept from training, and the documents that stage 20 kept from the corpus.

    rows = read_rows(stage.input("sft_data"), "test", limit=200)
    questions = [question_of(row) for row in rows]
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO, Protocol

import zstandard


class RowsFolder(Protocol):
    """A verified input: opens the files that its manifest lists."""

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A reader that proves what it handed out."""


@dataclass(frozen=True)
class Question:
    """A conversation up to its last answer, and that answer."""

    id: str
    messages: list[dict]
    reference: str

    @property
    def first_user_turn(self) -> str:
        return first_user_turn(self.messages)


def read_rows(folder: RowsFolder, split: str, limit: int = 0) -> list[dict]:
    """The first `limit` rows (0 = all) of `<split>.rows.jsonl.zst`."""
    with folder.open(f"{split}.rows.jsonl.zst") as file:
        return list(islice(_lines(file), limit or None))


def question_of(row: dict) -> Question:
    """The last assistant turn becomes the reference; what stands before it is asked."""
    return Question(row["id"], row["messages"][:-1], row["messages"][-1]["content"])


def first_user_turn(messages: list[dict]) -> str:
    """The turn by which prompts are split and told apart."""
    return next(message["content"] for message in messages if message["role"] == "user")


def _lines(file: BinaryIO) -> Iterator[dict]:
    with zstandard.ZstdDecompressor().stream_reader(file, closefd=False) as stream:
        for line in io.TextIOWrapper(stream, encoding="utf-8"):
            yield json.loads(line)
