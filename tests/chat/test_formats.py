"""Adapters: golden rows per format, detection, field mapping, and text that would be lost."""

import json
from pathlib import Path

import pytest

from utils.chat.conversation import Conversation, Rejection
from utils.chat.formats import (
    FORMATS,
    chat_format,
    check_paths,
    check_unused,
    detect_format,
    map_fields,
    unused_text,
)
from utils.pipeline.errors import ConfigError

ROWS: dict[str, dict] = {
    "messages": {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
    "alpaca": {"instruction": "Q", "input": "", "output": "A"},
    "qa": {"question": "Q", "answer": "A"},
    "hh_rlhf": {"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"},
}
GOLDEN = Path(__file__).parents[1] / "golden" / "chat_formats.json"


@pytest.mark.parametrize("name", ROWS)
def test_every_format_finds_question_and_answer(name: str) -> None:
    found = FORMATS[name].convert(ROWS[name])
    assert isinstance(found, Conversation)
    assert [(m.role, m.content) for m in found.messages] == [("user", "Q"), ("assistant", "A")]


@pytest.mark.parametrize("name", ROWS)
def test_detection_picks_the_format(name: str) -> None:
    assert detect_format([ROWS[name]] * 5, FORMATS, "f.jsonl") == name


def test_golden_rows() -> None:
    cases = json.loads(GOLDEN.read_text(encoding="utf-8"))
    for case in cases:
        found = chat_format(case["format"]).convert(case["row"])
        assert isinstance(found, Conversation), (case, found)
        assert [[m.role, m.content] for m in found.messages] == case["turns"]
    assert {case["format"] for case in cases} == {*FORMATS, "stage10"}


def test_detection_refuses_a_mixed_file_with_counts() -> None:
    rows = [ROWS["qa"]] * 7 + [ROWS["alpaca"]] * 3
    with pytest.raises(
        ConfigError, match=r"f\.jsonl: no single chat format fits \(of 10 rows: 7 qa, 3 alpaca\)"
    ):
        detect_format(rows, FORMATS, "f.jsonl")


def test_detection_forgives_one_row_in_a_hundred() -> None:
    assert detect_format([ROWS["qa"]] * 99 + [{"x": 1}], FORMATS, "f") == "qa"
    with pytest.raises(ConfigError, match="98 qa, 2 of no known format"):
        detect_format([ROWS["qa"]] * 98 + [{"x": 1}] * 2, FORMATS, "f")


def test_detection_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="of 0 rows: none"):
        detect_format([], FORMATS, "empty.jsonl")


REJECTED = [
    ("sharegpt", {"conversations": [{"from": "alien", "value": "x"}]}, "unknown_role"),
    ("messages", {"messages": [{"role": "user"}]}, "schema"),
    ("alpaca", {"instruction": "Q", "output": ""}, "empty_text"),
    ("alpaca", {"instruction": ["Q"], "output": "A"}, "schema"),
    ("qa", {"question": "Q", "answer": "Q"}, "echo"),
    ("hh_rlhf", {"chosen": "Assistant: A"}, "bad_order"),
    ("hh_rlhf", {"chosen": "Human: Q\n\nAssistant: A\n\nHuman: more"}, "bad_order"),
    ("hh_rlhf", {"chosen": "preface\n\nHuman: Q\n\nAssistant: A"}, "bad_order"),
    ("stage10", {"text": "a story"}, "schema"),
]


@pytest.mark.parametrize(("name", "row", "reason"), REJECTED)
def test_adapters_reject_with_a_reason(name: str, row: dict, reason: str) -> None:
    found = chat_format(name).convert(row)
    assert isinstance(found, Rejection)
    assert found.reason == reason


def test_fields_are_mapped_by_path_and_consumed() -> None:
    row = {"q": "Q", "responses": [{"text": "A"}, {"text": "B"}], "id": 7}
    fields = {"question": "q", "answer": "responses.0.text"}
    assert map_fields(row, fields) == {"question": "Q", "answer": "A", "id": 7}


def test_a_path_that_is_nowhere_names_what_is_there() -> None:
    with pytest.raises(
        ConfigError, match=r'"answer" is mapped from "reply\.0", which none of the first 2 rows has'
    ) as refused:
        check_paths([{"reply": []}, {"question": "Q"}], {"answer": "reply.0"}, "f")
    assert "question, reply" in refused.value.fix


def test_text_that_would_be_lost_is_refused_unless_ignored() -> None:
    rows = [ROWS["qa"] | {"context": "important"}, ROWS["qa"] | {"context": " "}]
    with pytest.raises(ConfigError, match=r'the format does not use "context" \(1 rows\)'):
        check_unused(rows, FORMATS["qa"].uses, (), "f")
    check_unused(rows, FORMATS["qa"].uses, ("context",), "f")
    assert unused_text({"id": "x", "score": 3} | ROWS["qa"], FORMATS["qa"].uses, ()) == []
