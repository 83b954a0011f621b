"""Readers: every format and codec gives the same rows from any row on; damage is named once."""

import csv
import gzip
import io
import json
import random
import tracemalloc
from functools import partial
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from utils.corpus import readers
from utils.corpus.readers import SUPPORTED, SURPLUS, SourceFile, as_json, format_of, rows_of
from utils.pipeline.errors import ConfigError, DataError
from utils.pipeline.hashing import open_verified, sha256_hex

ROWS = [{"text": f'Row {i}, "quoted"\r\nand caf\u00e9', "title": f"t{i // 2}"} for i in range(7)]


def as_csv(rows: list[dict] = ROWS) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ["text", "title"])
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def as_parquet(rows: list[dict] = ROWS) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out, row_group_size=3)
    return out.getvalue()


CONTENT = {
    "jsonl": "".join(json.dumps(row) + "\n\n" for row in ROWS).encode(),
    "json": json.dumps(ROWS).encode(),
    "csv": as_csv(),
    "parquet": as_parquet(),
}
CODECS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


def source_file(path: Path) -> SourceFile:
    return SourceFile(path.name, partial(open, path, "rb"), path)


def read(path: Path, **options: object) -> list:
    return [json.loads(row) for row, _ in rows_of(source_file(path), **options)]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("form", CONTENT)
def test_every_format_and_codec_gives_the_same_rows_from_any_row_on(tmp_path: Path, form: str, codec: str):
    path = tmp_path / f"a.{form}{codec}"
    path.write_bytes(CODECS[codec](CONTENT[form]))
    found = list(rows_of(source_file(path)))
    assert [json.loads(row) for row, _ in found] == ROWS
    for number, (_, place) in enumerate(found, 1):
        assert read(path, row=number, place=place) == ROWS[number:]


@pytest.mark.parametrize("codec", CODECS)
def test_places_spare_what_comes_before(tmp_path: Path, codec: str):
    """A byte offset in plain jsonl, row group and row in parquet, nothing where rows must be counted."""
    for form in ("jsonl", "parquet", "csv", "json"):
        (tmp_path / f"a.{form}{codec}").write_bytes(CODECS[codec](CONTENT[form]))
    places = {
        form: [place for _, place in rows_of(source_file(tmp_path / f"a.{form}{codec}"))]
        for form in ("jsonl", "parquet", "csv", "json")
    }
    assert places["csv"] == places["json"] == [None] * 7
    assert places["parquet"] == [[i // 3, i % 3 + 1] for i in range(7)]
    line = len(json.dumps(ROWS[0])) + 1
    assert places["jsonl"] == ([None] * 7 if codec else [line + i * (line + 1) for i in range(7)])


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("form", ["txt", "md"])
def test_text_files_are_one_document_or_cut(tmp_path: Path, form: str, codec: str):
    path = tmp_path / f"a.{form}{codec}"
    path.write_bytes(CODECS[codec](b"\xef\xbb\xbfone\n<|endoftext|>two"))
    assert read(path) == [{"text": "one\n<|endoftext|>two"}]
    assert read(path, split_on="<|endoftext|>") == [{"text": "one\n"}, {"text": "two"}]
    assert read(path, split_on="<|endoftext|>", row=1) == [{"text": "two"}]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("form", ["jsonl", "json", "csv"])
def test_byte_order_marks_and_data_objects(tmp_path: Path, form: str, codec: str):
    content = json.dumps({"data": ROWS}).encode() if form == "json" else CONTENT[form]
    path = tmp_path / f"a.{form}{codec}"
    path.write_bytes(CODECS[codec](b"\xef\xbb\xbf" + content))
    found = list(rows_of(source_file(path)))
    assert [json.loads(row) for row, _ in found] == ROWS
    assert read(path, row=1, place=found[0][1]) == ROWS[1:]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("form", ["jsonl", "json", "csv"])
def test_empty_files_have_no_rows(tmp_path: Path, form: str, codec: str):
    (tmp_path / f"a.{form}{codec}").write_bytes(CODECS[codec](b""))
    (tmp_path / f"b.{form}").write_bytes(b"")
    assert read(tmp_path / f"a.{form}{codec}") == read(tmp_path / f"b.{form}") == []


@pytest.mark.parametrize("codec", [".gz", ".zst"])
def test_an_archive_without_a_byte_is_damaged(tmp_path: Path, codec: str):
    (tmp_path / f"a.jsonl{codec}").write_bytes(b"")
    with pytest.raises(DataError, match=f"a.jsonl{codec} is damaged: it has no bytes"):
        read(tmp_path / f"a.jsonl{codec}")


def test_several_members_and_frames_are_one_file(tmp_path: Path):
    half = len(CONTENT["jsonl"]) // 2
    parts = (CONTENT["jsonl"][:half], CONTENT["jsonl"][half:])
    for codec in (".gz", ".zst"):
        path = tmp_path / f"a.jsonl{codec}"
        path.write_bytes(b"".join(map(CODECS[codec], parts)))
        assert read(path) == ROWS


def test_a_line_and_a_field_of_fifty_megabytes(tmp_path: Path):
    text = b"word " * 10_000_000
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "' + text + b'"}\n{"text": "next"}')
    (tmp_path / "a.csv").write_bytes(b'text,title\n"' + text + b'",x\nnext,y\n')
    for name in ("a.jsonl", "a.csv"):
        assert [len(row["text"]) for row in read(tmp_path / name)] == [50_000_000, 4]


def test_csv_by_the_standard(tmp_path: Path):
    lines = ["text,title", '"a ""quoted"" word, and", b', "short", "one,two,three", "", '"line', 'break",x']
    (tmp_path / "a.csv").write_bytes("\r\n".join(lines).encode())
    rows = [row for row, _ in rows_of(source_file(tmp_path / "a.csv"))]
    assert [json.loads(row) for row in rows if not row.startswith(SURPLUS)] == [
        {"text": 'a "quoted" word, and', "title": " b"},
        {"text": "short", "title": None},
        {"text": "line\r\nbreak", "title": "x"},
    ]
    assert [row for row in rows if row.startswith(SURPLUS)] == [SURPLUS + b'["one", "two", "three"]']


def test_parquet_reads_mapped_columns_only(tmp_path: Path):
    (tmp_path / "a.parquet").write_bytes(CONTENT["parquet"])
    assert read(tmp_path / "a.parquet", columns=["title"]) == [{"title": row["title"]} for row in ROWS]
    assert read(tmp_path / "a.parquet", columns=["nothing"]) == [{}] * 7


def test_parquet_is_read_one_row_group_at_a_time(tmp_path: Path):
    letters = random.Random(0)
    rows = [{"text": "".join(letters.choices("abcdefgh", k=100_000))} for _ in range(60)]
    (tmp_path / "a.parquet").write_bytes(as_parquet(rows))
    before = pyarrow.total_allocated_bytes()
    most = 0
    tracemalloc.start()
    for _ in rows_of(source_file(tmp_path / "a.parquet")):
        most = max(most, pyarrow.total_allocated_bytes() - before)
    in_python = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2_000_000 and in_python < 2_000_000  # of 6 MB


def test_types_that_json_lacks_become_text_or_null(tmp_path: Path):
    import datetime

    rows = [
        {"text": "a", "day": datetime.date(2024, 5, 17), "score": float("nan"), "list": [1.5, float("inf")]}
    ]
    (tmp_path / "a.parquet").write_bytes(as_parquet(rows))
    assert read(tmp_path / "a.parquet") == [
        {"text": "a", "day": "2024-05-17", "score": None, "list": [1.5, None]}
    ]
    assert as_json({"a": {"b": float("nan")}}) == b'{"a": {"b": null}}'


def flipped(data: bytes) -> bytes:
    """The same bytes with one in the middle changed."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x55]) + data[middle + 1 :]


LONG = b"".join(b'{"text": "row %d %d"}\n' % (i, i * i * 7919) for i in range(3_000))
DAMAGED = {
    "cut gzip": ("a.jsonl.gz", gzip.compress(CONTENT["jsonl"])[:-12], "a.jsonl.gz is damaged: "),
    "changed gzip": ("a.jsonl.gz", flipped(gzip.compress(LONG)), "a.jsonl.gz is damaged: "),
    "not gzip": ("a.jsonl.gz", b"plain text", "a.jsonl.gz is damaged: Not a gzipped file"),
    "bytes behind gzip": ("a.jsonl.gz", gzip.compress(LONG) + b"more", "a.jsonl.gz is damaged: Not a gzip"),
    "not zstd": ("a.jsonl.zst", b"plain text", "a.jsonl.zst is damaged: "),
    "cut zstd": (
        "a.jsonl.zst", CODECS[".zst"](CONTENT["jsonl"])[:-3],
        "a.jsonl.zst is damaged: the file ends in the middle",
    ),
    "changed zstd": (
        "a.jsonl.zst", flipped(zstandard.ZstdCompressor(write_checksum=True).compress(LONG)),
        "a.jsonl.zst is damaged: ",
    ),
    "second frame cut": (
        "a.jsonl.zst", CODECS[".zst"](LONG) + CODECS[".zst"](LONG)[:-9], "a.jsonl.zst is damaged",
    ),
    "not json": ("a.json", b"[1,", "a.json: Expecting value"),
    "json number": ("a.json", b"3", "a.json: a .json file must hold a list of rows"),
    "json too deep": ("a.json", b"[" * 200_000, "a.json: maximum recursion depth"),
    "json of other bytes": ("a.json", b'["\xff"]', "a.json: 'utf-8' codec can't decode"),
    "not parquet": ("a.parquet", b"nonsense", "a.parquet: not a readable parquet file"),
    "half a parquet": ("a.parquet", CONTENT["parquet"][:-20], "a.parquet: not a readable parquet file"),
    "start of a parquet": ("a.parquet", CONTENT["parquet"][:200], "a.parquet: not a readable parquet file"),
    "half a packed parquet": (
        "a.parquet.gz", gzip.compress(CONTENT["parquet"][:-20]), "a.parquet.gz: not a readable parquet file",
    ),
    "open quote": ("a.csv", b'text\n"open', "a.csv: unexpected end of data"),
    "broken quote": ("a.csv", b'text\n"a"b\n', "a.csv: ',' expected after '\"'"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_one_error_that_names_the_file(tmp_path: Path, case: str):
    name, content, message = DAMAGED[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        list(rows_of(source_file(tmp_path / name)))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert error.value.fix.endswith("then rerun to continue")


def test_a_json_value_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(readers, "MAX_JSON_BYTES", 1 << 20)
    (tmp_path / "a.json").write_bytes(b'["' + b"x" * (1 << 20) + b'"]')
    with pytest.raises(DataError, match="a.json: more than 1 MiB in one JSON value: convert it to jsonl"):
        read(tmp_path / "a.json")


@pytest.mark.parametrize("form", CONTENT)
def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path, form: str):
    path = tmp_path / f"a.{form}"
    path.write_bytes(CONTENT[form])
    expected = sha256_hex(CONTENT[form][:-1] + b"?")
    file = SourceFile(path.name, partial(open_verified, path, expected), path)
    with pytest.raises(Exception, match=f"tampered .a.{form}: bytes read do not match"):
        list(rows_of(file))


def test_unknown_suffix_names_the_supported_ones():
    assert format_of("data/raw.d/a.b.JSONL.GZ") == ("jsonl", "gz")
    for name in ("a.docx", "noext", "a.gz", "a.jsonl.bz2"):
        with pytest.raises(ConfigError, match=f"{name}: unknown kind of file") as error:
            format_of(name)
        assert SUPPORTED in error.value.fix
