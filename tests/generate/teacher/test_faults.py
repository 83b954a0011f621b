"""Schedules of faults: read strictly, the same in every run, over after a few attempts."""

import json
from collections import Counter

import pytest

from utils.generate.teacher.faults import (
    ANYWHERE,
    DELIVERY,
    IN_STREAMS,
    KINDS,
    WORST_IN_A_ROW,
    Drawn,
    Faults,
)
from utils.generate.teacher.forms import LISTS, SCORES, content_kinds
from utils.pipeline.errors import ConfigError

CALLS = [b"call %d" % number for number in range(2000)]


def drawn(text: str, answer_kind: str = "text", stream: bool = False, seed: int = 0) -> list[Drawn]:
    faults = Faults.parse(text, seed)
    return [faults.draw(call, answer_kind, stream, "teacher") for call in CALLS]


def test_the_same_attempts_fail_in_every_run_and_others_under_another_seed():
    assert drawn("429:0.3,drop:0.2") == drawn("429:0.3,drop:0.2") != drawn("429:0.3,drop:0.2", seed=1)


def test_shares_are_kept():
    found = Counter(one.delivery for one in drawn("429:0.3,drop:0.2"))
    assert 0.26 < found["429"] / len(CALLS) < 0.34 and 0.16 < found["drop"] / len(CALLS) < 0.24


def test_a_call_that_is_tried_again_gets_through_at_last():
    faults = Faults.parse("500:1")
    attempts = [faults.draw(b"one call", "text", False, "teacher").delivery for _ in range(6)]
    assert attempts == ["500"] * WORST_IN_A_ROW + [""] * (6 - WORST_IN_A_ROW)


def test_what_a_reply_says_never_depends_on_the_attempt():
    faults = Faults.parse("refusal:0.3,list-lines:0.3,500:0.3")
    rounds = [[faults.draw(call, "list", False, "teacher").content for call in CALLS] for _ in range(5)]
    assert all(again == rounds[0] for again in rounds) and {"refusal", "list-lines", ""} == set(rounds[0])


@pytest.mark.parametrize("answer_kind", ["text", "list", "scores", "pair"])
@pytest.mark.parametrize("stream", [False, True])
def test_all_means_every_kind_that_the_call_can_suffer_and_nothing_else(answer_kind, stream):
    found = drawn("all:0.9", answer_kind, stream)
    possible = {*ANYWHERE, *(IN_STREAMS if stream else ()), *content_kinds(answer_kind)}
    assert {one.delivery for one in found} | {one.content for one in found} == possible | {""}


def test_all_at_a_fifth_hits_about_a_fifth_of_the_calls():
    hit = sum(bool(one.delivery or one.content) for one in drawn("all:0.2", "list", True))
    assert 0.16 < hit / len(CALLS) < 0.22


def test_a_kind_that_is_named_is_not_counted_into_all():
    found = Counter(one.delivery for one in drawn("all:0.2,drop:0"))
    assert found["drop"] == 0 and found["cut"] > 0


def test_a_fault_that_does_not_fit_the_call_does_nothing():
    assert set(drawn("list-lines:0.5,stream-odd:0.5", "scores")) <= {
        Drawn(luck=one.luck) for one in drawn("list-lines:0.5", "scores")
    }


def test_every_kind_belongs_to_some_call():
    contents = {
        kind for answer_kind in ("text", "list", "scores", "pair") for kind in content_kinds(answer_kind)
    }
    assert {*DELIVERY, *contents, "all"} == set(KINDS) and {*LISTS, *SCORES} < contents


def test_amounts_are_given_or_taken_from_the_kind():
    assert {one.amount for one in drawn("latency:1:40")} == {40} and {
        one.amount for one in drawn("429:1")
    } == {0}
    assert {one.amount for one in drawn("slow:1")} == {300}


def test_a_file_can_name_the_model_and_how_long_it_goes_on(tmp_path):
    path = tmp_path / "faults.json"
    entry = {"kind": "503", "share": 1, "model": "teacher-judge"}
    path.write_text(json.dumps({"faults": [entry], "most_in_a_row": 5}))
    faults = Faults.parse(str(path))
    assert not faults.draw(b"a", "text", False, "teacher").delivery
    assert [faults.draw(b"b", "scores", False, "teacher-judge").delivery for _ in range(6)] == ["503"] * 5 + [
        ""
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("418:0.1", 'unknown fault "418"'),
        ("429", "not KIND:SHARE"),
        ("429:0.1:1:2", "not KIND:SHARE"),
        ("drop:0.1:3", 'fault "drop" takes no amount'),
        ("429:0.7,500:0.7", "more than 1"),
        ("429:-0.1", "a share is from 0 to 1"),
        ("latency:0.1:-5", "an amount not negative"),
        ("nowhere.json", "nowhere.json is not a schedule of faults"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        Faults.parse(text)


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"faults": [{"kind": "429"}]},
        {"faults": [{"kind": "429", "share": "often"}]},
        {"faults": [], "most_in_a_row": 0},
        {"faults": [], "typo": 1},
        {"faults": [{"kind": "429", "share": 0.1, "typo": 1}]},
    ],
)
def test_files_that_make_no_sense_are_refused(tmp_path, document):
    path = tmp_path / "faults.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="is not a schedule of faults"):
        Faults.parse(str(path))
