"""One block: every row is kept or removed with one reason, whatever is in it."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.corpus.blocks import BlockSettings, Mapping, document_id, process_block
from utils.corpus.docstrings import docstrings_of, installed_files
from utils.corpus.quality import resolve_rules
from utils.corpus.sources import Cursor, RawBlock
from utils.pipeline.hashing import unit_hash

SETTINGS = BlockSettings(Mapping(), resolve_rules("short", {}), 0, "group", 5, None)
GOOD = "A small boat went out on the quiet sea."


def process(*rows: bytes, kind: str = "json", mapping: Mapping = SETTINGS.mapping, split_by: str = "group"):
    block_settings = BlockSettings(mapping, SETTINGS.rules, 0, split_by, 5, None)
    return process_block(block_settings, RawBlock("web", kind, Cursor(0, 10), list(rows)))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"{broken", "bad_json"),
        (b"[1]", "bad_json"),
        (b'{"text": "\xff"}', "bad_utf8"),
        (b'{"text": "a \\ud800 b"}', "bad_utf8"),
        (b'{"body": "x"}', "missing_text"),
        (b'{"text": null}', "missing_text"),
        (b'{"text": 7}', "text_not_string"),
        (b'{"text": " \\n \\u200b"}', "empty"),
        (b'{"text": "two words"}', "too_few_words"),
    ],
)
def test_reasons(row: bytes, reason: str):
    result = process(row)
    assert [removed.reason for removed in result.removed] == [reason]
    assert result.removed[0].fields["source"] == "web"
    assert not result.kept


def test_removed_by_a_rule_carries_its_numbers():
    fields = process(b'{"text": "two words"}').removed[0].fields
    assert (fields["measured"], fields["threshold"]) == (2, 5)


def test_line_of_a_kept_document():
    mapping = Mapping(("head", "body.text"), "book", "key")
    row = {"head": "Title", "body": {"text": GOOD + "  "}, "book": 12, "key": "k1"}
    kept = process(json.dumps(row).encode(), mapping=mapping).kept[0]
    text = f"Title\n\n{GOOD}"
    line = {"group": "12", "id": document_id(text), "meta": {"id": "k1"}, "source": "web", "text": text}
    assert kept.line == json.dumps(line, sort_keys=True, ensure_ascii=False).encode() + b"\n"
    assert kept.split_hash == unit_hash("split", 0, "12")
    assert kept.order_hash == unit_hash("order", 0, kept.id)


def test_without_group_or_by_document_the_id_is_the_group():
    row = json.dumps({"text": GOOD, "book": "b"}).encode()
    grouped = Mapping(group="book")
    for result in (process(row), process(row, mapping=grouped, split_by="document")):
        assert json.loads(result.kept[0].line)["group"] == document_id(GOOD)
    assert json.loads(process(row, mapping=grouped).kept[0].line)["group"] == "b"


def test_text_rows_ignore_the_mapping():
    row = json.dumps({"text": GOOD}).encode()
    assert process(row, kind="text", mapping=Mapping(("body",))).kept
    assert process(row, mapping=Mapping(("body",))).removed[0].reason == "missing_text"


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.binary(max_size=40) | st.text(max_size=40).map(lambda t: json.dumps({"text": t}).encode()),
        max_size=8,
    )
)
def test_nothing_is_lost_whatever_comes(rows: list[bytes]):
    result = process(*rows)
    assert len(result.kept) + len(result.removed) == len(rows) == result.rows_read
    assert result.next == Cursor(0, 10 + len(rows))


MODULE = b'''"""Module."""
class A:
    """Class A
    goes on."""
    def f(self):
        "f"
def g():
    """g"""
'''


def test_docstrings_in_source_order_without_indentation():
    assert docstrings_of(MODULE) == "Module.\n\nClass A\ngoes on.\n\nf\n\ng"
    with pytest.raises(ValueError, match="invalid syntax"):
        docstrings_of(b"def (")


def test_python_rows():
    long = b'"""' + GOOD.encode() * 6 + b'"""'
    result = process(long, MODULE, b"def (", kind="python")
    assert json.loads(result.kept[0].line)["text"] == GOOD * 6
    assert [removed.reason for removed in result.removed] == ["too_short_docstrings", "bad_python"]


def test_installed_files_are_ordered_and_limited_to_packages():
    names = [file.name for file in installed_files(["json", "email"])]
    assert names == sorted(names)
    assert {name.split("/")[0] for name in names} == {"json", "email"}
    assert "json/decoder.py" in names
    assert any(
        name.startswith("zstandard/") for name in (file.name for file in installed_files(["zstandard"]))
    )
