"""Lists and objects are found in whatever models write, and nothing makes the parser raise or hang."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.generate.loose_json import json_values
from utils.generate.parse import parse_list, parse_object

TWO = ["cats", "dogs"]


@pytest.mark.parametrize(
    ("text", "entries"),
    {
        "bare": ('["cats", "dogs"]', TWO),
        "fenced": ('Here:\n```json\n["cats", "dogs"]\n```\nEnjoy!', TWO),
        "fence never closed": ('```json\n["cats", "dogs"]', TWO),
        "fence closed before the list is": ('```json\n["cats", "dogs"\n```\nEnjoy!', TWO),
        "a list before the fence": ('Not ["x"] but\n```\n["cats", "dogs"]\n```', TWO),
        "a fence inside an entry": (
            '```json\n["cats", "say ```dogs``` twice"]\n```',
            ["cats", "say ```dogs``` twice"],
        ),
        "bracket before it": ('A list [sic] of animals: ["cats", "dogs"]', TWO),
        "numbers in brackets before it": ('Animals [1] are nice [2, 3]: ["cats", "dogs"]', TWO),
        "single quotes": ("['cats', 'dogs']", TWO),
        "apostrophe in single quotes": ("['the cat's toys', 'dogs']", ["the cat's toys", "dogs"]),
        "trailing comma": ('["cats", "dogs",]', TWO),
        "doubled comma": ('["cats",, "dogs"]', TWO),
        "missing comma": ('["cats" "dogs"]', TWO),
        "missing comma between lines": ('["cats"\n"dogs"]', TWO),
        "semicolon": ('["cats"; "dogs"]', TWO),
        "ellipsis": ('["cats", "dogs", ...]', TWO),
        "raw newline in a string": ('["a\nb", "dogs"]', ["a b", "dogs"]),
        "raw newline and other damage": ('["a\nb", "dogs",]', ["a b", "dogs"]),
        "quotation marks not escaped": ('["say "hi, you" now", "dogs"]', ['say "hi, you" now', "dogs"]),
        "escapes": (
            '["\\u00e4 \\"b\\" c\\\\d", \'x\\ty\', "\\ud83d\\ude00",]',
            ['\u00e4 "b" c\\d', "x y", "\U0001f600"],
        ),
        "half a surrogate pair": ('["\\ud83d"]', ["\ufffd"]),
        "line comments": ('[\n  "cats", // the first\n  "dogs" # the "last"\n]', TWO),
        "block comments": ('["cats", /* not "birds" */ "dogs"]', TWO),
        "smart quotes": ("[\u201ccats\u201d, \u201cdogs\u201d]", TWO),
        "single smart quotes": ("[\u2018cats\u2019, \u2018dogs\u2019]", TWO),
        "smart quotes inside": ('["\u201ccats\u201d", "dogs"]', ["\u201ccats\u201d", "dogs"]),
        "truncated in a string": ('["cats", "dogs", "bir', TWO),
        "truncated after a string": ('["cats", "dogs"', TWO),
        "truncated after a comma": ('["cats", "dogs",', TWO),
        "truncated in an object": ('[{"topic": "cats"}, {"topic": "dogs"}, {"topic": "bi', TWO),
        "truncated after a value": ('[{"topic": "cats"}, {"topic": "dogs"}, {"topic": "birds"', TWO),
        "truncated in the wrapping": ('{"topics": ["cats", "dogs", "bi', TWO),
        "truncated in the first": ('["ca', []),
        "think block first": ('<think>maybe ["x"]</think>["cats", "dogs"]', TWO),
        "think block without its opening": ('maybe ["x"]</think>\n["cats", "dogs"]', TWO),
        "think block that never ends": ('<think>maybe ["x"]', []),
        "objects with one text": ('[{"topic": "cats"}, {"topic": "dogs"}]', TWO),
        "objects with one text and a number": (
            '[{"id": 1, "topic": "cats"}, {"id": 2, "topic": "dogs"}]',
            TWO,
        ),
        "objects with two texts": ('[{"topic": "cats", "why": "fur", "tags": ["x"]}]', []),
        "wrapped": ('{"topics": ["cats", "dogs"]}', TWO),
        "wrapped twice": ('{"data": {"topics": ["cats", "dogs"]}}', TWO),
        "wrapped beside other things": ('{"title": "t", "notes": [], "topics": ["cats", "dogs"]}', TWO),
        "wrapped with bare keys": ('{topics: ["cats", "dogs"]}', TWO),
        "two arrays": ('["cats", "dogs"]\nand ["birds"]', TWO),
        "two arrays, the first without texts": ('[1, 2]\nand ["cats", "dogs"]', TWO),
        "two arrays, the first damaged": ('["cats", "dogs",]\nand ["birds"]', TWO),
        "nested arrays": ('[["cats"], ["dogs"]]', TWO),
        "without quotation marks": ("[cats, dogs]", TWO),
        "without quotation marks, fenced": ("```\n[cats, dogs]\n```", TWO),
        "numbered lines": ("1. cats\n2) dogs", TWO),
        "numbered lines with parts": ("Sure!\n1. cats\n   - furry\n2. dogs\n   - loyal", TWO),
        "numbered lines with bold names": ("1. **cats**\n2. **dogs**", TWO),
        "numbered lines with one bold word": ("1. **cats** purr\n2. dogs", ["**cats** purr", "dogs"]),
        "numbered lines in quotation marks": ('1. "cats",\n2. "dogs"', TWO),
        "dashes": ("Sure!\n- cats\n* dogs", TWO),
        "bullets": ("\u2022 cats\n\u2022 dogs", TWO),
        "a rule is no dash": ("---\n- cats\n- dogs\n---", TWO),
        "lines with brackets": ("1. cats [sic]\n2. dogs {x}", ["cats [sic]", "dogs {x}"]),
        "blanks inside": ('["  cats ", "", "dogs"]', TWO),
        "nothing": ("I cannot do that.", []),
        "a note in brackets": ("[Note: cats, and dogs] are animals.", []),
        "empty": ("", []),
        "numbers only": ("[1, 2]", []),
    }.values(),
)
def test_lists_in_every_state_of_repair(text, entries):
    assert parse_list(text) == entries


def test_the_last_line_of_a_reply_that_hit_its_limit_is_left_out():
    assert parse_list("1. cats\n2. dogs\n3. bi", is_cut=True) == TWO
    assert parse_list('["cats", "dogs"]', is_cut=True) == TWO


@pytest.mark.parametrize(
    ("text", "found"),
    {
        "bare": ('{"better": "A"}', {"better": "A"}),
        "fenced": ('Well:\n```json\n{"better": "A"}\n```', {"better": "A"}),
        "after a list": ('[1] {"better": "A"}', {"better": "A"}),
        "after braces in prose": ('A set {x} and {} and {"better": "A"}', {"better": "A"}),
        "single quotes and trailing comma": ("{'better': 'A',}", {"better": "A"}),
        "bare keys": ('{better: "A", sure: true}', {"better": "A", "sure": True}),
        "equals signs": ('{better = "A"}', {"better": "A"}),
        "Python's words": (
            "{'a': None, 'b': True, 'c': False, 'd': -1.5e2}",
            {"a": None, "b": True, "c": False, "d": -150},
        ),
        "prose after a value": ('{"a": 4 because of b, "c": 5}', {"a": 4, "c": 5}),
        "truncated in a value": ('{"a": 4, "b": "x', {"a": 4}),
        "truncated number": ('{"a": 4, "b": 3', {"a": 4}),
        "truncated in a key": ('{"a": 4, "b', {"a": 4}),
        "truncated before a value": ('{"a": 4, "b":', {"a": 4}),
        "nested": ('{"scores": {"a": 4,},}', {"scores": {"a": 4}}),
        "a list only": ('["a"]', None),
        "nothing": ("No.", None),
    }.values(),
)
def test_objects_in_every_state_of_repair(text, found):
    assert parse_object(text) == found


WHATEVER = st.text(alphabet="[]{}\"',:\\ \n\tab1-.#/*`=\u201c\u2018e", max_size=80) | st.text(max_size=60)


@given(WHATEVER)
@settings(max_examples=500)
def test_the_parser_never_raises(text):
    assert all(isinstance(entry, str) and entry for entry in parse_list(text))
    assert isinstance(parse_object(text), dict | None)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(
    VALUES.filter(lambda value: isinstance(value, (list, dict)) and value),
    st.sampled_from(["", "So: ", "```\n"]),
)
@settings(max_examples=200)
def test_json_comes_back_as_it_is(value, before):
    assert next(json_values(before + json.dumps(value) + "\n```")) == value


@given(
    st.lists(st.text(alphabet="ab \"'\\\n\u00e4", min_size=1, max_size=9), min_size=1, max_size=6), st.data()
)
@settings(max_examples=300)
def test_a_list_cut_anywhere_keeps_entries_that_were_complete(entries, data):
    written = json.dumps(entries)
    end = data.draw(st.integers(1, len(written)))
    kept = next(json_values(written[:end]), [])
    assert kept == entries[: len(kept)]
    assert len(kept) >= sum(len(json.dumps(entries[: n + 1])) - 1 <= end for n in range(len(entries)))


TRAPS = (
    "[",
    "{",
    '["',
    '{"a":',
    "['a'b",
    "[[],",
    '["a",]',
    '{"a"',
    "```[",
    "[/*",
    "[\n\n\n",
    '["\\',
    "[\u201c",
)
LINES = ("1. ", "- ", "</think>", "<think>", " ", "\n", "**", '1. "a\n')


@pytest.mark.parametrize("trap", [*TRAPS, *LINES])
def test_no_reply_stalls_the_run(trap):
    text = trap * (400_000 // len(trap))
    began = time.process_time()
    parse_list(text)
    parse_list("[" + text)
    parse_object(text)
    assert time.process_time() - began < 20


def test_what_comes_after_a_trap_is_still_found():
    assert parse_list("[" * 50 + ' ["cats", "dogs"]') == TWO
    assert parse_list('["' * 300 + '\n```json\n["cats", "dogs"]\n```') == TWO
