"""Readers: every format and codec gives the same documents, damage is named, reading goes on in mid-file."""

import csv
import gzip
import io
import json
from functools import partial
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from utils.corpus.sources import (
    SUPPORTED,
    Cursor,
    RawBlock,
    ReadSettings,
    SourceFile,
    check_fields,
    field_of,
    format_of,
    read_blocks,
)  # fmt: skip
from utils.pipeline.errors import ConfigError, DataError

ROWS = [{"text": f'Row {i}, "quoted"\nand caf\u00e9', "title": f"t{i // 2}"} for i in range(7)]


def as_csv() -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ["text", "title"])
    writer.writeheader()
    writer.writerows(ROWS)
    return out.getvalue().encode()


def as_parquet() -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), out, row_group_size=3)
    return out.getvalue()


CONTENT = {
    "jsonl": "".join(json.dumps(row) + "\n\n" for row in ROWS).encode(),
    "json": json.dumps(ROWS).encode(),
    "csv": as_csv(),
    "parquet": as_parquet(),
}
CODECS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


def source_file(path: Path) -> SourceFile:
    return SourceFile(path.name, partial(open, path, "rb"))


def read(path: Path, start: Cursor = Cursor(), **settings: object) -> list[dict]:  # noqa: B008
    blocks = read_blocks("source", [source_file(path)], ReadSettings(**settings), start)
    return [json.loads(row) for block in blocks for row in block.rows]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("form", CONTENT)
def test_every_format_and_codec_gives_the_same_rows(tmp_path: Path, form: str, codec: str):
    path = tmp_path / f"a.{form}{codec}"
    path.write_bytes(CODECS[codec](CONTENT[form]))
    assert read(path) == ROWS
    assert read(path, start=Cursor(0, 4)) == ROWS[4:]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("form", ["txt", "md"])
def test_text_files_are_one_document_or_cut(tmp_path: Path, form: str, codec: str):
    path = tmp_path / f"a.{form}{codec}"
    path.write_bytes(CODECS[codec](b"\xef\xbb\xbfone\n<|endoftext|>two"))
    assert read(path) == [{"text": "one\n<|endoftext|>two"}]
    assert read(path, split_on="<|endoftext|>") == [{"text": "one\n"}, {"text": "two"}]


def test_json_object_with_data_and_byte_order_marks(tmp_path: Path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"data": ROWS}).encode())
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + CONTENT["jsonl"])
    assert read(tmp_path / "a.json") == read(tmp_path / "b.jsonl") == ROWS


def test_parquet_reads_mapped_columns_only(tmp_path: Path):
    (tmp_path / "a.parquet").write_bytes(CONTENT["parquet"])
    assert read(tmp_path / "a.parquet", columns=["title"]) == [{"title": row["title"]} for row in ROWS]


def test_empty_files_have_no_rows(tmp_path: Path):
    for name in ("a.jsonl", "a.csv"):
        (tmp_path / name).write_bytes(b"")
        assert read(tmp_path / name) == []


def test_blocks_end_at_2000_rows_and_at_files(tmp_path: Path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(b"".join(b'{"text": "%d"}\n' % i for i in range(2_500)))
    files = [source_file(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    blocks = list(read_blocks("web", files, ReadSettings(), Cursor()))
    assert [len(block.rows) for block in blocks] == [2_000, 500, 2_000, 500]
    assert str(blocks[1]) == "web file 0, rows 2,000-2,499"
    assert list(read_blocks("web", files, ReadSettings(), blocks[0].next)) == blocks[1:]
    assert list(read_blocks("web", files, ReadSettings(), blocks[2].next)) == blocks[3:]


DAMAGED = {
    "cut gzip": ("a.jsonl.gz", gzip.compress(CONTENT["jsonl"])[:-12], "a.jsonl.gz is damaged: "),
    "not gzip": ("a.jsonl.gz", b"plain text", "a.jsonl.gz is damaged: Not a gzipped file"),
    "not zstd": ("a.jsonl.zst", b"plain text", "a.jsonl.zst is damaged: "),
    "not json": ("a.json", b"[1,", "a.json: Expecting value"),
    "json number": ("a.json", b"3", "a.json: a .json file must hold a list of rows"),
    "not parquet": ("a.parquet", b"nonsense", "a.parquet: not a readable parquet file"),
    "open quote": ("a.csv", b'text\n"open', "a.csv: unexpected end of data"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_one_error_that_names_the_file(tmp_path: Path, case: str):
    name, content, message = DAMAGED[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        read(tmp_path / name)
    assert str(error.value).startswith(message)


def test_unknown_suffix_names_the_supported_ones():
    assert format_of("data/raw.d/a.b.JSONL.GZ") == ("jsonl", "gz")
    for name in ("a.docx", "noext", "a.gz", "a.jsonl.bz2"):
        with pytest.raises(ConfigError, match=f"{name}: unknown kind of file") as error:
            format_of(name)
        assert SUPPORTED in error.value.fix


def test_a_mapped_field_that_never_occurs_is_refused():
    block = RawBlock("web", "json", Cursor(), [b'{"content": "x", "meta": {"title": 1}}', b"not json"])
    check_fields(block, {"text": ["content"], "group": ["meta.title"]})
    with pytest.raises(
        ConfigError, match='fields.text names "text", which occurs in none of the first 1 rows'
    ):
        check_fields(block, {"text": ["text"]})
    with pytest.raises(ConfigError, match="they have content, meta"):
        check_fields(block, {"text": ["text"]})


def test_dotted_paths():
    assert field_of({"a": {"b": [1]}}, "a.b") == [1]
    assert field_of({"a.b": 2, "a": {"b": 1}}, "a.b") == 2
    assert field_of({"a": 1}, "a.b") is None
