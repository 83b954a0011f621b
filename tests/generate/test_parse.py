"""Lists are found in whatever models write, and nothing makes the parser raise."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.generate.parse import parse_list, strip_reasoning

TWO = ["cats", "dogs"]


@pytest.mark.parametrize(
    ("text", "entries"),
    {
        "bare": ('["cats", "dogs"]', TWO),
        "fenced": ('Here:\n```json\n["cats", "dogs"]\n```\nEnjoy!', TWO),
        "fence never closed": ('```json\n["cats", "dogs"]', TWO),
        "bracket before it": ('A list [sic] of animals: ["cats", "dogs"]', TWO),
        "single quotes": ("['cats', 'dogs']", TWO),
        "trailing comma": ('["cats", "dogs",]', TWO),
        "raw newline in a string": ('["a\nb", "dogs"]', ["a b", "dogs"]),
        "comments": ('[\n  "cats", // the first\n  "dogs"\n]', TWO),
        "smart quotes": ("[\u201ccats\u201d, \u201cdogs\u201d]", TWO),
        "truncated": ('["cats", "dogs', TWO),
        "think block first": ('<think>maybe ["x"]</think>["cats", "dogs"]', TWO),
        "think block without its opening": ('maybe ["x"]</think>\n["cats", "dogs"]', TWO),
        "objects with one text": ('[{"topic": "cats"}, {"topic": "dogs"}]', TWO),
        "wrapped": ('{"topics": ["cats", "dogs"]}', TWO),
        "two arrays": ('["cats", "dogs"]\nand ["birds"]', TWO),
        "nested arrays": ('[["cats"], ["dogs"]]', TWO),
        "numbered lines": ("1. cats\n2) dogs", TWO),
        "dashes": ("Sure!\n- cats\n* dogs", TWO),
        "blanks inside": ('["  cats ", "", "dogs"]', TWO),
        "nothing": ("I cannot do that.", []),
        "empty": ("", []),
        "numbers only": ("[1, 2]", []),
    }.values(),
)
def test_lists_in_every_state_of_repair(text, entries):
    assert parse_list(text) == entries


@given(st.text(alphabet="[]{}\"',:\\ \nab1-", max_size=60) | st.text(max_size=60))
def test_the_parser_never_raises(text):
    assert all(isinstance(entry, str) and entry for entry in parse_list(text))


def test_deep_nesting_is_no_trap():
    assert parse_list("[" * 5000) == []


def test_reasoning_is_never_left_in_an_answer():
    assert strip_reasoning("<think>hm</think>\nmoo") == "moo"
    assert strip_reasoning("hm\n</thinking> moo") == "moo"
    assert strip_reasoning("1 < 2 and 3 > 2") == "1 < 2 and 3 > 2"
