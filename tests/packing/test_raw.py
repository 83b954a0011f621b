"""Raw files as records: the same ones wherever the file is cut and however it is read."""

import json
from itertools import pairwise
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.packing.raw import RawFile, raw_file
from utils.pipeline.errors import ConfigError, DataError, UpstreamError

WIDE = "\u00e9\u20ac\U0001f600"  # two, three and four bytes


def open_file(path: Path, split_on: str = "\n\n", chunk_bytes: int = 1 << 10) -> RawFile:
    return raw_file(path, "text", split_on, chunk_bytes)


def texts_of(file: RawFile, num_parts: int) -> list[str]:
    """The texts of all parts between boundaries, after a look at the places."""
    cuts = [file.boundary(file.size * k // num_parts) for k in range(num_parts)] + [file.size]
    records = [record for begin, end in pairwise(cuts) for record in file.records(begin, end)]
    assert all(earlier.end <= later.start for earlier, later in pairwise(records))
    assert all(next(file.records(each.start, each.end)) == each for each in records[::50])
    return [record.text for record in records]


@pytest.mark.parametrize("chunk_bytes", [1 << 10, 1 << 13, 1 << 16, 1 << 20])
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_the_records_are_the_file_with_wide_characters_on_every_boundary(tmp_path, chunk_bytes, kind):
    """A piece ends within or beside each kind of character: the first record is 0, 1, ... bytes longer."""
    documents = [WIDE * (1 + i % 90) + f" {i}" for i in range(max(60, chunk_bytes // 250))]
    for shift in range(9):
        documents[0] = "x" * shift + WIDE
        path = tmp_path / f"{shift}.{kind}"
        lines = [json.dumps({"text": each}, ensure_ascii=False) for each in documents]
        path.write_text("\n\n".join(documents) if kind == "txt" else "\n".join(lines) + "\n", "utf-8")
        inside = path.read_bytes()[chunk_bytes : chunk_bytes + 1]
        assert inside
        for num_parts in (1, 7):
            assert texts_of(open_file(path, chunk_bytes=chunk_bytes), num_parts) == documents


@given(st.text("ab\n\u00e9", max_size=60), st.integers(1, 9), st.sampled_from(["\n\n", "\n", "aba", "<>"]))
def test_parts_hold_the_records_of_the_whole(tmp_path_factory, text, num_parts, split_on):
    path = tmp_path_factory.mktemp("raw") / "a.txt"
    path.write_bytes(text.encode())
    expected = [each for each in text.split(split_on) if each.strip()]
    found = texts_of(open_file(path, split_on, chunk_bytes=5), num_parts)
    assert found == expected


def test_a_byte_order_mark_and_blank_records_are_no_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbffirst\n\n \n\nsecond\n\n")
    assert texts_of(open_file(path), 1) == ["first", "second"]


def test_parquet_rows_are_read_across_row_groups(tmp_path):
    documents = [f"{i} {WIDE}" for i in range(1000)]
    table = pyarrow.table({"id": list(range(1000)), "text": documents})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=300)
    file = open_file(tmp_path / "a.parquet")
    assert file.size == 1000
    assert texts_of(file, 7) == documents
    assert [record.text for record in file.records(299, 302)] == documents[299:302]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"fine\n\n\xff broken", "record at byte 6: 'utf-8' codec"),
        ("a.jsonl", b'{"text": "fine"}\n{"txt": "x"}\n', 'record at byte 17: has no text in "text"'),
        ("a.jsonl", b"{", "record at byte 0: Expecting"),
        ("a.parquet", b"PAR1", "not a readable parquet file"),
    ],
)
def test_damage_names_the_file_and_the_place(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        texts_of(open_file(tmp_path / name), 1)


def test_other_kinds_and_columns_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"a\.txt\.gz: raw input is \.txt, \.jsonl, \.parquet"):
        open_file(tmp_path / "a.txt.gz")
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x", None]}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match='has no field "text"; it has body'):
        open_file(tmp_path / "a.parquet")
    with pytest.raises(DataError, match='row 1 has no text in "body"'):
        texts_of(raw_file(tmp_path / "a.parquet", "body", "", 1), 1)


@pytest.mark.parametrize("kind", ["txt", "parquet"])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, kind):
    path, other = tmp_path / f"a.{kind}", tmp_path / f"b.{kind}"
    for where, number in ((path, 2000), (other, 2001)):
        if kind == "txt":
            where.write_text("a document\n\n" * number)
        else:
            pyarrow.parquet.write_table(pyarrow.table({"text": ["a document"] * number}), where)
    file = open_file(path)
    records = file.records(0, file.size)
    assert next(records).text == "a document"
    path.write_bytes(other.read_bytes())
    with pytest.raises(UpstreamError, match="changed while it was being read"):
        list(records)
