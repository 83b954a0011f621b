"""
The lines of a file that a user gives, plain or packed (.gz, .zst), each with its number and place.

    with LinesFile(Path("prompts.jsonl.gz"), "prompt") as file:
        for line in file:                  # Line(number=1, offset=0, record={"prompt": "What is a cow?"})
            ...
        file.from_place(offset, number)    # the same from a line on that was seen before

A packed file is unpacked once into a temporary file without a name, so that any line can be found again.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

from utils.pipeline.errors import ConfigError

PACKED = (".gz", ".zst")


class Line(NamedTuple):
    """A line that is not empty: its number from 1, where it begins, what it holds."""

    number: int
    offset: int
    record: dict[str, str]


class LinesFile:
    """
    `key` is what a line of JSON must hold and what a line of text is. ConfigError names a line that is unfit.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self._key = path, key
        names = path.name.lower().split(".")
        packed = f".{names[-1]}" in PACKED
        self._is_json = names[-2 if packed else -1] == "jsonl"
        self._file = _unpacked(path) if packed else open(path, "rb")  # noqa: SIM115 - closed by close()

    def __iter__(self) -> Iterator[Line]:
        return self.from_place(0, 1)

    def from_place(self, offset: int, number: int) -> Iterator[Line]:
        """Lines from the one on that begins at `offset` and has this number."""
        self._file.seek(offset)
        for number, line in enumerate(self._file, start=number):  # noqa: B020 - goes on counting
            here, offset = offset, offset + len(line)
            try:
                text = line.decode("utf-8-sig" if here == 0 else "utf-8").strip()
                if text:
                    yield Line(number, here, _record(text, self._key) if self._is_json else {self._key: text})
            except ValueError as error:
                raise ConfigError(f"{self.path}, line {number:,} is unfit: {error}") from None

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _unpacked(path: Path) -> BinaryIO:
    from zstandard import ZstdError  # loaded only for packed files

    from utils.pipeline.zstd_stream import ZstdStream

    file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the caller
    try:
        with open(path, "rb") as raw:
            packed = gzip.GzipFile(fileobj=raw) if path.suffix.lower() == ".gz" else ZstdStream(raw)
            shutil.copyfileobj(io.BufferedReader(packed), file)
    except (EOFError, zlib.error, gzip.BadGzipFile, ZstdError) as error:
        file.seek(0)
        whole = sum(line.endswith(b"\n") for line in file)
        file.close()
        raise ConfigError(
            f"{path} is damaged after line {whole:,}: {error}", fix="pack it again, or give it unpacked"
        ) from None
    return file


def _record(line: str, key: str) -> dict[str, str]:
    record = json.loads(line)
    text = record.get(key) if isinstance(record, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f'it has no text in "{key}"')
    subtopic = record.get("subtopic", "")
    if not isinstance(subtopic, str):
        raise ValueError('"subtopic" is no text')
    return {"subtopic": subtopic.strip()} | {key: text.strip()}
