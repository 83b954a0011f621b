"""Content faults: another form, the same entries and the same scores, or plainly none."""

import json
import re

import pytest

from utils.generate.parse import parse_list
from utils.generate.teacher.answer import Answer, Score
from utils.generate.teacher.forms import LISTS, REFUSAL, SCORES, THINKING, content_kinds, reshape
from utils.generate.teacher.thinking import MARK

ENTRIES = ("What does Tom's dog eat?", 'Which word is "small"?', "Where is a ship found?", "Who is Tim?")
A_LIST = Answer("list", json.dumps(ENTRIES), entries=ENTRIES)
SCORED = Answer(
    "scores", '{"correct": 4, "clear": 0.25}', scores=(Score("correct", 4, 5), Score("clear", 0.25, 1))
)
PAIR = Answer("pair", '{"better": "B"}', entries=("B",))
UNREADABLE = ("score-range", "score-missing", "score-prose")


@pytest.mark.parametrize("kind", LISTS)
def test_every_form_of_a_list_differs_and_holds_its_entries(kind):
    written = reshape(A_LIST, kind, "")
    found = [entry.replace("\n", " ") for entry in parse_list(written.text)]
    assert written.text != A_LIST.text
    kept = found == list(ENTRIES) or (kind == "list-two" and found == list(ENTRIES[:2]))
    assert kept or (kind == "list-truncated" and found[:3] == list(ENTRIES[:3]))


def test_a_truncated_list_says_so():
    written = reshape(A_LIST, "list-truncated", "")
    assert written.finish == "length" and written.text.endswith('"Who i')


@pytest.mark.parametrize("kind", [kind for kind in SCORES if kind not in UNREADABLE])
def test_every_form_of_scores_holds_each_name_and_its_value(kind):
    text = reshape(SCORED, kind, "").text
    assert re.search(r"correct\W+(score\W+)?4", text) and re.search(r"clear\W+(score\W+)?0\.25", text)


def test_scores_that_cannot_be_used():
    assert json.loads(reshape(SCORED, "score-range", "").text) == {"correct": 10, "clear": 6}
    assert json.loads(reshape(SCORED, "score-missing", "").text) == {"clear": 0.25}
    assert not re.search(r"\d", reshape(SCORED, "score-prose", "").text)


def test_forms_of_a_comparison():
    assert '{"better": "B"}' in reshape(PAIR, "score-fence", "").text
    assert json.loads(reshape(PAIR, "score-missing", "").text) == {"better": "both"}
    assert "score-lines" not in content_kinds("pair")


def test_whole_answers_are_taken_away_or_cut():
    answer = Answer("text", "one two three four five")
    assert reshape(answer, "content-filter", "") == Answer("text", "", finish="content_filter")
    assert reshape(answer, "empty-content", "").text == ""
    assert reshape(answer, "refusal", "").text == REFUSAL
    assert reshape(answer, "length", "") == Answer("text", "one two three", finish="length")


@pytest.mark.parametrize("kind", THINKING)
def test_thinking_comes_before_any_answer(kind):
    for answer in (A_LIST, SCORED, PAIR, Answer("text", "A cow says moo.")):
        thought = reshape(answer, kind, "Say it.")
        if kind == "reasoning-field":
            assert thought.text == answer.text and thought.reasoning.startswith(MARK)
        else:
            assert MARK in thought.text and thought.text.endswith("</think>\n\n" + answer.text)
            assert thought.text.startswith("<think>") == (kind == "think")
