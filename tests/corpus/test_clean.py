"""Cleaning: idempotent, faithful to layout, and equal to ftfy on whole texts."""

import itertools
import re
import unicodedata

import ftfy
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.corpus.real import book_texts
from utils.corpus.clean import _FTFY, ACCENTED_LINE, PUNCTUATION_LINE, clean, mend_lines, tidy_blank_lines

TEXT = st.text(st.characters(codec="utf-8"), max_size=80)
PIECES = [
    "caf\u00c3\u00a9", "\u00e2\u20ac\u2122", "\u00e2\u20ac\u0153", "\u2581", "\u00c3\u00a1", "a\u0301",
    "\u200b",
    "\r\n", "\r", "\t", "\v", "\x85", "\xad", "\x9f", "\x00", "\n", "\n\n\n", "  ", "z", "Z ", "\u2019",
    "\u201c", "\u2014", "\u00e9", "\ufb01", "\ufeff", "\u00c2\u00a0", "\u0153", "\u20ac",
]  # fmt: skip
MIXED = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)


@settings(max_examples=5000)
@given(TEXT | MIXED)
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
        ("\U0001f468\u200d\U0001f469 \u0646\u200c\u0645", "\U0001f468\u200d\U0001f469 \u0646\u200c\u0645"),
        ("\u00c3\u00a9\x00  \n \n\u00c3\u00a8", "\u00e9\n\n\u00e8"),
        (" \t\n\x00\n", ""),
        ("", ""),
    ],
)
def test_each_step(before: str, after: str):
    assert clean(before) == after


code_line = st.tuples(
    st.sampled_from(["", "    ", "\t", "\t\t", "  "]),
    st.sampled_from(["x", "if x:", "return  2", "a\tb", "}"]),
)


@settings(max_examples=500)
@given(st.lists(code_line.map("".join), min_size=1, max_size=12), st.booleans())
def test_newlines_tabs_and_indents_survive(lines: list[str], accented: bool):
    code = "\n".join(lines) + ("\n# caf\u00e9 \u00fc\u2581" if accented else "")
    cleaned = clean(code)
    assert [cleaned.count(mark) for mark in "\n\t "] == [code.count(mark) for mark in "\n\t "]
    assert re.findall(r"(?m)^[ \t]*", cleaned) == re.findall(r"(?m)^[ \t]*", code)


LINES = st.lists(TEXT | MIXED, max_size=5).map("\n".join)
# the newlines that step 1 has unified by then, but for the bytes that only ftfy makes of them
ONE_NEWLINE = re.compile("[\r\x85\u2028\u2029\v\f]")


@settings(max_examples=5000)
@example("\u00c3\u00a1\u00e2\u20ac\u2122\u0152\n")  # mended otherwise without its newline
@given(LINES)
def test_leaving_out_lines_equals_ftfy_on_the_whole_text(text: str):
    text = ONE_NEWLINE.sub("", text)
    assert unicodedata.normalize("NFC", mend_lines(text)) == unicodedata.normalize(
        "NFC", ftfy.fix_text(text, _FTFY)
    )


@pytest.mark.parametrize("pattern", [PUNCTUATION_LINE, ACCENTED_LINE])
def test_no_line_that_is_spared_holds_what_ftfy_would_mend(pattern: re.Pattern):
    every = [chr(code) for code in range(9, 0x3000) if pattern.fullmatch(chr(code))]
    special = [character for character in every if not character.isascii()]
    assert len(special) > 6
    spoken = [*special, *"azAZ 0.,!?-'\t"]
    pairs = itertools.product(every, repeat=2)
    triples = itertools.product(spoken, spoken, spoken)
    texts = ["".join(parts) for parts in (*pairs, *triples)]
    # one call for all: a text of its own is a line of its own
    joined = "\n".join(text for text in texts if "\n" not in text and "\r" not in text)
    assert ftfy.fix_text(joined, _FTFY) == joined


def test_tidy_blank_lines():
    assert tidy_blank_lines("\n a \t\n\n\n\nb ") == " a\n\nb"


def test_books_need_one_pass_and_keep_their_paragraphs():
    for text in book_texts(every=15):
        cleaned = clean(text)
        assert clean(cleaned) == cleaned
        plain = text.replace("\ufeff", "").replace("\u200b", "")
        assert cleaned.count("\n\n") == len(re.findall(r"\n\s*\n", plain.strip("\n"))) or "\n\n\n" in plain
