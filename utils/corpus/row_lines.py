"""
The rows of a source as JSON lines, for the stages that find out themselves what their fields mean (60, 80).

    for name, lines in row_lines(stage, source):     # data/raw/sft/a.jsonl.gz, b'{"question": ...}', ...

Files are read as stage 20 reads them. A dataset of the Hub is streamed at the commit that the stage pinned,
and no further than its lines are asked for.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import BinaryIO

from utils.config.chat_data import ChatSource
from utils.corpus.hub import pinned_blocks
from utils.corpus.sources import Cursor, RawBlock, ReadSettings, SourceFile, read_blocks
from utils.pipeline.stage import Stage

OpenFile = Callable[[], AbstractContextManager[BinaryIO]]


def row_lines(stage: Stage, source: ChatSource) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Each file of a source by its name, with its rows; a dataset of the Hub counts as one file."""
    if source.kind == "hub":
        yield f"{source.id} {source.split}", _lines(pinned_blocks(stage, source, [], Cursor()))
        return
    for name, open_file in _files(stage, source):
        blocks = read_blocks(source.name, [SourceFile(name, open_file)], ReadSettings(), Cursor())
        yield name, _lines(blocks)


def _lines(blocks: Iterable[RawBlock]) -> Iterator[bytes]:
    for block in blocks:
        yield from block.rows


def _files(stage: Stage, source: ChatSource) -> list[tuple[str, OpenFile]]:
    if source.kind == "generated":
        name = f"{source.dataset}/dataset.jsonl"
        return [(name, partial(stage.input("generated").open, name))]
    external = stage.source(source.name)
    return [(stage.workspace.relative(path), partial(external.open, path)) for path in external.files]
