"""Field mapping: dotted paths, what is required, and the refusal of a field that is nowhere."""

import json

import pytest

from utils.config.corpus_sources import FieldMapping
from utils.corpus.fields import (
    Mapping,
    check_fields,
    checked,
    field_of,
    has_field,
    mapping_of,
    required_fields,
)
from utils.corpus.sources import Cursor, RawBlock
from utils.pipeline.errors import ConfigError


def test_dotted_paths():
    assert field_of({"a": {"b": [1]}}, "a.b") == [1]
    assert field_of({"a.b": 2, "a": {"b": 1}}, "a.b") == 2
    assert field_of({"a": 1}, "a.b") is None
    assert has_field({"a": {"b": None}}, "a.b") and not has_field({"a": {"b": None}}, "a.b.c")


def test_mapping_of_a_config():
    fields = FieldMapping(
        text=["q", "a.text"], group="book", id="n", url="link", keep=["score"], optional=["url"]
    )
    meta = (("id", "n"), ("url", "link"), ("score", "score"))
    assert mapping_of(fields) == Mapping(("q", "a.text"), "book", meta)
    assert mapping_of(fields).names == ["q", "a.text", "book", "n", "link", "score"]
    required = {"text": ["q", "a.text"], "keep": ["score"], "group": ["book"], "id": ["n"]}
    assert required_fields(fields) == required
    assert mapping_of(FieldMapping()) == Mapping(("text",), "", ())


def block(rows: list[bytes], kind: str = "json", first: int = 0) -> RawBlock:
    return RawBlock("web", kind, Cursor(0, first), Cursor(0, first + len(rows)), rows)


def rows_with(count: int, field: str) -> list[bytes]:
    return [json.dumps({"other": i} | ({field: i} if i == count - 1 else {})).encode() for i in range(count)]


def test_a_field_that_occurs_nowhere_is_refused_with_those_that_do():
    lines = [b'{"content": "x", "meta": {"title": 1}}', b"not json", b"[1]"]
    check_fields("web", lines, {"text": ["content"], "group": ["meta.title"]})
    message = 'source "web": fields.keep names "score", which occurs in none of the first 1 rows; '
    with pytest.raises(ConfigError, match=message + "they have content, meta") as error:
        check_fields("web", lines, {"text": ["content"], "keep": ["score"]})
    assert error.value.fix == "set fields.keep in the config"


def test_the_first_thousand_rows_decide_however_they_are_blocked():
    blocks = [block(rows_with(600, "none")), block(rows_with(400, "title"), first=600)]
    assert list(checked(iter(blocks), {"text": ["title"]})) == blocks
    late = [block(rows_with(600, "none")), block(rows_with(401, "title"), first=600), block([b"{}"])]
    with pytest.raises(ConfigError, match="none of the first 1,000 rows; they have none, other"):
        list(checked(iter(late), {"text": ["title"]}))


def test_no_more_is_read_than_is_looked_at():
    def endless():
        while True:
            yield block(rows_with(500, "text"))

    assert len(next(checked(endless(), {"text": ["text"]})).rows) == 500


def test_rows_without_fields_are_not_asked_for_them():
    blocks = [block([b'{"text": "x"}'], kind="text")]
    assert list(checked(iter(blocks), {"text": ["body"]})) == blocks
    assert list(checked(iter([]), {"text": ["body"]})) == []
