"""Rows: what they say, or the one reason why they say nothing."""

import json

import pytest

from utils.corpus.fields import Mapping
from utils.corpus.readers import SURPLUS
from utils.corpus.rows import Rejected, Row, read_row

TEXT = Mapping()


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"{broken", "bad_json"),
        (b"[1]", "bad_json"),
        (b'"text"', "bad_json"),
        (b"[" * 100_000, "bad_json"),
        (SURPLUS + b'["a", "b"]', "bad_csv"),
        (b'{"text": "\xff"}', "bad_utf8"),
        (b'{"text": "a \\ud800 b"}', "bad_utf8"),
        (b'{"body": "x"}', "missing_text"),
        (b'{"text": null}', "missing_text"),
        (b'{"text": 7}', "text_not_string"),
        (b'{"text": ["a"]}', "text_not_string"),
    ],
)
def test_reasons(raw: bytes, reason: str):
    with pytest.raises(Rejected) as error:
        read_row(TEXT, "json", raw)
    assert error.value.reason == reason
    error.value.text.encode()  # it can be written


def test_lone_surrogates_beside_the_text_are_noticed_too():
    for mapping in (Mapping(group="g"), Mapping(meta=(("g", "g"),)), Mapping(meta=(("deep", "deep"),))):
        with pytest.raises(Rejected, match="bad_utf8"):
            read_row(mapping, "json", b'{"text": "a", "g": "\\ud800", "deep": [{"a": "\\udfff"}]}')


def test_what_a_row_says():
    meta = (("id", "key"), ("language", "lang"), ("score", "score"), ("tags", "tags"), ("none", "none"))
    mapping = Mapping(("head", "body.text", "gone"), "book", meta)
    row = {
        "head": "Title",
        "body": {"text": " x "},
        "book": 12,
        "key": 7,
        "score": 0.5,
        "tags": ["a"],
        "none": None,
    }
    found = read_row(mapping, "json", json.dumps(row).encode())
    assert found == Row("Title\n\n x ", "12", {"id": "7", "score": 0.5, "tags": ["a"]})


def test_without_a_group_there_is_none():
    row = b'{"text": "a", "": "odd", "g": null}'
    assert read_row(TEXT, "json", row).group == read_row(Mapping(group="g"), "json", row).group == ""


def test_numbers_that_json_lacks_are_null():
    assert read_row(Mapping(meta=(("n", "n"),)), "json", b'{"text": "a", "n": NaN}') == Row("a")


def test_text_rows_ignore_the_mapping():
    assert read_row(Mapping(("body",), "g"), "text", b'{"text": "a"}') == Row("a")


def test_python_rows_are_docstrings():
    long = "A sentence of a docstring." * 10
    assert read_row(TEXT, "python", f'"""{long}"""'.encode()) == Row(long)
    for raw, reason in (
        (b'"short"', "too_short_docstrings"), (b"def (", "bad_python"),
        (b'"""' + b"\\ud800" * 250 + b'"""', "bad_utf8"),
    ):  # fmt: skip
        with pytest.raises(Rejected, match=reason):
            read_row(TEXT, "python", raw)
