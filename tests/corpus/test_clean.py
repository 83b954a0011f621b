"""Cleaning: idempotent, faithful to layout, and equal to ftfy on whole texts."""

import unicodedata

import ftfy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.corpus.clean import _FTFY, clean

TEXT = st.text(st.characters(codec="utf-8"), max_size=80)
MOJIBAKE = st.lists(
    st.sampled_from(
        ["cafÃ©", "â€™", "▁", "á", "\u200b", "\r\n", "\t", "", "\n", "\x85", "\xad", "\x9f", "z"]
    ),
    max_size=12,
)


@settings(max_examples=1500, deadline=None)
@given(TEXT | MOJIBAKE.map("".join))
def test_cleaning_twice_changes_nothing(text: str):
    assert clean(clean(text)) == clean(text)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a\r\nb\rc\x85d\u2028e\u2029f\vg\fh", "a\nb\nc\nd\ne\nf\ng\nh"),
        ("caf\u00c3\u00a9 and it\u00e2\u20ac\u2122s", "caf\u00e9 and it\u2019s"),
        ("e\u0301", "\u00e9"),
        ("a\x00b\x1bc\u00add\u200be\u2060f\ufeffg\x7fh", "abcdefgh"),
        ("\u2581mark", "_mark"),
        ("a  \t\n\n\n\nb \n", "a\n\nb"),
        ("\n\n    indented\n\ttab  inner\n\n", "    indented\n\ttab  inner"),
        ("&amp; \u201ccurly\u201d \uff21 \ufb01", "&amp; \u201ccurly\u201d \uff21 fi"),
        ("\U0001f468\u200d\U0001f469", "\U0001f468\u200d\U0001f469"),
        ("", ""),
    ],
)
def test_each_step(before: str, after: str):
    assert clean(before) == after


def test_newlines_tabs_and_indents_survive():
    code = "def f(x):\n    if x:\n\treturn 1\n\n    return  2"
    assert clean(code) == code


@settings(max_examples=500, deadline=None)
@given(st.lists(TEXT, max_size=4).map("\n".join))
def test_skipping_ascii_lines_equals_ftfy_on_the_whole_text(text: str):
    text = text.replace("\r", "").replace("\x85", "").replace("\u2028", "").replace("\u2029", "")
    lines = [line if line.isascii() else ftfy.fix_text(line, _FTFY) for line in text.split("\n")]
    fixed = ftfy.fix_text(text, _FTFY)
    assert unicodedata.normalize("NFC", "\n".join(lines)) == unicodedata.normalize("NFC", fixed)
