"""Scores are found in whatever a judge writes, and nothing outside the rubric counts."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.config.answers import Criterion
from utils.generate.scores import parse_scores

RUBRIC = [Criterion(name=name, description="How good is it?") for name in ("clarity", "overall_clarity")]
ONE = [Criterion(name="correct", description="Is it right?", lowest=-10, highest=10)]
GOOD = {"clarity": 4.0, "overall_clarity": 2.0}


@pytest.mark.parametrize(
    "text",
    {
        "integers": '{"clarity": 4, "overall_clarity": 2}',
        "floats": '{"clarity": 4.0, "overall_clarity": 2.0}',
        "strings": '{"clarity": "4", "overall_clarity": " 2 "}',
        "fractions": '{"clarity": "4/5", "overall_clarity": "2 / 5"}',
        "fractions out of quotation marks": '{"clarity": 4/5, "overall_clarity": 2/5}',
        "out of": '{"clarity": "4 out of 5", "overall_clarity": "2"}',
        "strings with reasons": '{"clarity": "4 - clear", "overall_clarity": "2 (not so)"}',
        "objects": '{"clarity": {"score": 4, "why": "x"}, "overall_clarity": {"why": "3", "score": "2"}}',
        "objects with a rating": '{"clarity": {"rating": 4}, "overall_clarity": {"value": 2}}',
        "below scores": '{"scores": {"clarity": 4, "overall_clarity": 2}}',
        "scores beside reasons": '{"clarity": "3 words", "scores": {"clarity": 4, "overall_clarity": 2}}',
        "reasons first": '{"reasons": {"clarity": "3 ok"}, "scores": {"clarity": 4, "overall_clarity": 2}}',
        "list of names": '[{"name": "clarity", "score": 4}, {"criterion": "Overall clarity", "score": 2}]',
        "list of names, wrapped": '{"scores": [{"name": "clarity", "score": 4}, '
        '{"name": "overall_clarity", "score": 2}]}',
        "list of objects": '[{"clarity": 4}, {"overall_clarity": 2}]',
        "other spelling of names": '{"Clarity": 4, "Overall Clarity": 2}',
        "more than was asked": '{"clarity": 4, "overall_clarity": 2, "style": 1, "total": 6}',
        "fenced": 'Sure:\n```json\n{"clarity": 4, "overall_clarity": 2}\n```\nDone.',
        "single quotes, comments, comma": "{'clarity': 4, // clear\n 'overall_clarity': 2,}",
        "prose in the object": "{clarity: 4 - because it is, overall_clarity: 2 - as well}",
        "reasons, then scores": 'It is {very} clear [1].\n{"clarity": 4, "overall_clarity": 2}',
        "a draft without all scores": 'First {"clarity": 3}. Then {"clarity": 4, "overall_clarity": 2}',
        "think block": '<think>{"clarity": 1}</think>{"clarity": 4, "overall_clarity": 2}',
        "lines": "clarity: 4 - because it is clear\noverall_clarity: 2",
        "lines, longer name first": "Overall clarity: 2\nClarity: 4",
        "lines with fractions": "Clarity: 4/5\nOverall clarity: 2 out of 5",
        "bold names": "**Clarity**: 4\n**Overall clarity**: 2",
        "bold with colon": "**Clarity:** 4/5 - clear\n**Overall clarity:** **2**/5",
        "bulleted": "- `clarity`: 4\n- _overall_clarity_: 2",
        "numbered, with ranges": "1. Clarity (1 to 5): 4\n2. Overall clarity (1 to 5): 2",
        "equals signs": "clarity = 4, overall_clarity = 2",
        "dashes": "Clarity - 4\nOverall clarity \u2013 2",
        "sentence": "Clarity is 4, overall clarity is 2.",
        "score of each": "Clarity score: 4\nOverall clarity:\nScore: 2",
        "table": "| criterion | score |\n| --- | --- |\n| clarity | 4 |\n| overall_clarity | 2 |",
        "corrected later": "clarity: 3 at first\noverall_clarity: 2\nclarity: 4",
    }.values(),
)
def test_scores_in_every_shape(text):
    assert parse_scores(text, RUBRIC) == GOOD


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("4", 4),
        ("4/10", 4),
        ("**4**", 4),
        ("-2.5", -2.5),
        ("Score: 4", 4),
        ('{"score": 4}', 4),
        ('{"rating": "4 out of 10"}', 4),
        ('{"correct": -10}', -10),
        ('{"correct": "+7"}', 7),
    ],
)
def test_a_single_criterion_need_not_be_named(text, score):
    assert parse_scores(text, ONE) == {"correct": score}


@pytest.mark.parametrize(
    ("text", "wrong"),
    {
        "nothing": ("", "clarity: no score; overall_clarity: no score"),
        "prose": ("It is rather good.", "clarity: no score; overall_clarity: no score"),
        "one missing": ('{"clarity": 4}', "overall_clarity: no score"),
        "too high": ('{"clarity": 6, "overall_clarity": 2}', "clarity: 6 is outside 1 to 5"),
        "too low": ('{"clarity": 4, "overall_clarity": 0.5}', "overall_clarity: 0.5 is outside 1 to 5"),
        "both": (
            '{"clarity": 9, "overall_clarity": 0}',
            "clarity: 9 is outside 1 to 5; overall_clarity: 0 is outside 1 to 5",
        ),
        "another scale": (
            '{"clarity": "4/10", "overall_clarity": 2}',
            "clarity: 4/10 is not on the scale 1 to 5",
        ),
        "a word": ('{"clarity": "high", "overall_clarity": 2}', "clarity: not a number"),
        "truth": ('{"clarity": true, "overall_clarity": 2}', "clarity: not a number"),
        "null": ('{"clarity": null, "overall_clarity": 2}', "clarity: not a number"),
        "percent": ('{"clarity": "80%", "overall_clarity": 2}', "clarity: not a number"),
        "a range": ("clarity: 3-4\noverall_clarity: 2", "clarity: not a number"),
        "a decimal comma": ('{"clarity": "3,5", "overall_clarity": 2}', "clarity: not a number"),
        "not finite": ('{"clarity": NaN, "overall_clarity": 2}', "clarity: nan is outside 1 to 5"),
        "infinite": ('{"clarity": 1e999, "overall_clarity": 2}', "clarity: inf is outside 1 to 5"),
        "absurd": ('{"clarity": 1' + "0" * 400 + ', "overall_clarity": 2}', "clarity: inf is outside 1 to 5"),
        "part of another name": ("unclarity: 4\noverall_clarity: 2", "clarity: no score"),
        "the nearest reading": (
            '{"clarity": 4} or clarity: 4, overall_clarity: 7',
            "overall_clarity: no score",
        ),
    }.values(),
)
def test_what_is_wrong_is_said(text, wrong):
    assert parse_scores(text, RUBRIC) == wrong


def test_a_number_at_the_very_end_of_a_cut_reply_may_be_half_a_number():
    text = "correct: 1"
    assert parse_scores(text, ONE) == {"correct": 1.0}
    assert parse_scores(text, ONE, is_cut=True) == "correct: not a number"
    assert parse_scores("correct: 1 because", ONE, is_cut=True) == {"correct": 1.0}


@given(st.text(alphabet='{}[]":,./0123456789 clarityove_\n*|-', max_size=80) | st.text(max_size=40))
@settings(max_examples=500)
def test_reading_never_raises_and_never_invents(text):
    found = parse_scores(text, RUBRIC)
    assert isinstance(found, str) or all(1 <= found[criterion.name] <= 5 for criterion in RUBRIC)


@pytest.mark.parametrize(
    "trap", ["clarity: ", "clarity (", "clarity ", "clarity: 4\n", '{"clarity":', '[{"name":', " ", "4"]
)
def test_no_reply_stalls_the_run(trap):
    began = time.process_time()
    parse_scores(trap * (400_000 // len(trap)), RUBRIC)
    assert time.process_time() - began < 10
