"""Blocks: consecutive rows of a source, cut by the data alone, read on from any cursor."""

import json
from functools import partial
from pathlib import Path

import pytest

from utils.corpus import sources
from utils.corpus.readers import SourceFile
from utils.corpus.sources import Cursor, RawBlock, ReadSettings, read_blocks


def source_file(path: Path) -> SourceFile:
    return SourceFile(path.name, partial(open, path, "rb"), path)


def write(folder: Path, **files: bytes) -> list[SourceFile]:
    """Files `a__jsonl` and so on, as sources."""
    paths = [folder / name.replace("__", ".") for name in files]
    for path, content in zip(paths, files.values(), strict=True):
        path.write_bytes(content)
    return [source_file(path) for path in paths]


def lines(count: int, prefix: str = "") -> bytes:
    return b"".join(b'{"text": "%s%d"}\n' % (prefix.encode(), i) for i in range(count))


def blocks_of(files: list[SourceFile], start: Cursor = Cursor()) -> list[RawBlock]:  # noqa: B008
    return list(read_blocks("web", files, ReadSettings(), start))


def test_blocks_end_after_2000_rows_and_span_files(tmp_path: Path):
    files = write(tmp_path, a__jsonl=lines(2_500, "a"), b__jsonl=lines(2_500, "b"), c__jsonl=b"")
    blocks = blocks_of(files)
    assert [len(block.rows) for block in blocks] == [2_000, 2_000, 1_000]
    assert [str(block) for block in blocks] == [
        "web rows 0-1,999",
        "web rows 2,000-3,999",
        "web rows 4,000-4,999",
    ]
    assert blocks[1].rows[499:501] == [b'{"text": "a2499"}', b'{"text": "b0"}']
    assert (blocks[1].next.file, blocks[1].next.row) == (1, 1_500)


def test_blocks_end_with_the_row_that_reaches_8_mebibytes(tmp_path: Path):
    row = json.dumps({"text": "x" * (3 << 20)}).encode() + b"\n"
    large = json.dumps({"text": "x" * (9 << 20)}).encode() + b"\n"
    blocks = blocks_of(write(tmp_path, a__jsonl=row * 4 + large + row))
    assert [len(block.rows) for block in blocks] == [3, 2, 1]


def test_rows_of_different_kinds_are_never_in_one_block(tmp_path: Path):
    files = write(tmp_path, a__jsonl=lines(3), b__txt=b"b", c__md=b"c", d__jsonl=lines(1), e__py=b"'e'")
    found = [(block.kind, len(block.rows)) for block in blocks_of(files)]
    assert found == [("json", 3), ("text", 2), ("json", 1), ("python", 1)]


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_reading_goes_on_from_every_cursor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int):
    monkeypatch.setattr(sources, "BLOCK_ROWS", rows)
    texts = b"one<|>two<|>three"
    files = write(tmp_path, a__jsonl=lines(5), b__json=b'["x", "y"]', c__csv=b"text\nq\nr\n", d__txt=texts)
    read = partial(read_blocks, "web", files, ReadSettings(split_on="<|>"))
    blocks = list(read(Cursor()))
    assert sum(len(block.rows) for block in blocks) == 12
    for number, block in enumerate(blocks):
        cursor = Cursor.from_json(json.loads(json.dumps(block.next.to_json())))
        assert cursor == block.next
        assert list(read(cursor)) == blocks[number + 1 :]
    assert blocks[-1].next.total == 12


def test_only_asked_columns_are_read(tmp_path: Path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist([{"text": "a", "long": "b"}])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    blocks = read_blocks("web", [source_file(tmp_path / "a.parquet")], ReadSettings(["text"]), Cursor())
    assert next(blocks).rows == [b'{"text": "a"}']
