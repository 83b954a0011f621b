"""Whole runs against the teacher: formats, faults, stops, keys."""

import json
import re
import socket
import time

import pytest

from tests.generate.helpers import Session, small_document
from utils.generate.teacher.process import offline_teacher
from utils.generate.teacher.replies import right_answer
from utils.pipeline.errors import StageError

ROWS = {"stories": 40, "chat": 60, "pairs": 30}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    session = Session(tmp_path_factory.mktemp("whole") / "generated")
    session.run(small_document(**ROWS))
    return session


def through(url: str, document: dict, **provider: object) -> dict:
    """The same run through an `openai` provider at `url`."""
    document["providers"]["teacher"] = {"kind": "openai", "base_url": url, "max_in_flight": 32} | provider
    for model in document["models"].values():
        model["max_backoff_seconds"] = 0.02
    return document


def test_every_mode_has_its_columns_and_its_count(uninterrupted):
    columns = {
        "stories": {"id", "text"},
        "chat": {"id", "messages"},
        "pairs": {"id", "prompt", "chosen", "rejected"},
    }
    for name, count in ROWS.items():
        rows = uninterrupted.rows(name)
        assert len(rows) == count and all(set(row) == columns[name] for row in rows)
        assert len({row["id"] for row in rows}) == count
        assert all(re.fullmatch("[0-9a-f]{32}", row["id"]) for row in rows)


def test_answers_are_right_and_rejected_ones_are_not(uninterrupted):
    for row in uninterrupted.rows("chat"):
        user, assistant = row["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert assistant["content"] == right_answer(user["content"])
    for row in uninterrupted.rows("pairs"):
        assert row["chosen"] == right_answer(row["prompt"]) != row["rejected"]


def test_topic_columns_are_added_on_request(session):
    document = small_document(chat=8)
    document["datasets"]["chat"]["include_topic_columns"] = True
    session.run(document)
    assert {row["main_topic"] for row in session.rows("chat")} == {"the small world of children"}
    assert len({row["subtopic"] for row in session.rows("chat")}) == 8


def test_two_runs_give_the_same_bytes(uninterrupted, session):
    session.run(small_document(**ROWS))
    assert session.outputs() == uninterrupted.outputs()


def test_another_seed_gives_other_rows(uninterrupted, session):
    session.run(small_document(**ROWS) | {"seed": 1})
    assert session.rows("stories") != uninterrupted.rows("stories")


def test_no_output_tells_time_or_place(uninterrupted):
    for path, data in uninterrupted.outputs().items():
        assert not re.search(rb"20\d\d-\d\d|127\.0\.0\.1|seconds|/tmp", data), path


def test_the_card_counts_what_is_there(uninterrupted):
    card = uninterrupted.outputs()["DATA_CARD.md"].decode()
    assert (
        "| stories | text | 40 | 8 |" in card
        and "## Samples of pairs" in card
        and "rejected.rejected | 30" in card
    )


@pytest.mark.parametrize(
    "faults",
    [
        "429:0.2",
        "500:0.2",
        "drop:0.2",
        "truncate:0.2",
        "empty:0.2",
        "429:.2,503:.2,drop:.2,truncate:.2,empty:.2",
    ],
)
def test_faults_change_nothing_in_the_result(faults, uninterrupted, session):
    with offline_teacher(0, faults) as url:
        session.run(through(url, small_document(**ROWS)))
    assert session.outputs() == uninterrupted.outputs()


def test_a_stop_lets_calls_finish_and_the_next_run_continues(session, tmp_path):
    document = small_document(stories=900)
    journal = session.folder / ".journal" / "calls.jsonl"
    assert session.run(document, stopping=lambda: journal.stat().st_size > 20_000) is None
    assert not (session.folder / "stories").exists() and "stopping" in dict(session.events)
    recorded = len(journal.read_bytes().splitlines())
    continued = session.run(document)
    assert "journal" in dict(session.events) and recorded >= 20
    assert continued.calls_made == sum(counts["calls"] for counts in continued.usage.values()) - recorded
    whole = Session(tmp_path / "whole")
    whole.run(document)
    assert session.outputs() == whole.outputs()


def test_a_finished_run_asks_nothing_again(session):
    document = small_document(chat=20)
    first = session.run(document)
    again = session.run(document)
    assert first.calls_made > 20 and again.calls_made == 0 and again.usage == first.usage


def test_another_dataset_later_pays_only_for_what_is_new(session):
    first = session.run(small_document(stories=40))
    more = session.run(small_document(stories=40, chat=16))
    assert first.calls_made + more.calls_made == sum(counts["calls"] for counts in more.usage.values())


def test_the_key_is_nowhere_but_in_the_environment(session, monkeypatch):
    monkeypatch.setenv("PLANTED_KEY", "sk-planted-0123456789")
    with offline_teacher(0, "429:0.3") as url:
        session.run(through(url, small_document(chat=8), api_key_env="PLANTED_KEY"))
    everything = b"".join(path.read_bytes() for path in session.folder.rglob("*") if path.is_file())
    assert b"sk-planted" not in everything + json.dumps(session.events).encode() and len(everything) > 1000


def test_an_endpoint_that_is_not_there_stops_the_run_soon(session):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        document = through(url, small_document(chat=60))
        document["datasets"]["chat"]["num_subtopics"] = 30
        document["refill"] = {"entries_per_call": 1}
        started = time.monotonic()
        with pytest.raises(
            StageError, match='provider "teacher" at .* failed 20 calls in a row, the last with transport'
        ):
            session.run(document)
        assert time.monotonic() - started < 20


def test_a_model_that_the_provider_does_not_have_is_never_success(session):
    document = small_document(chat=8)
    document["models"]["main"]["model"] = "teacher-strong"
    with pytest.raises(StageError, match="list_http_404"):
        session.run(document)


def test_a_run_that_falls_short_says_which_units_failed_and_why(session):
    document = small_document(chat=8)
    document["models"]["main"]["max_output_tokens"] = 60
    document["datasets"]["chat"]["templates"]["chosen"] = "story"
    with pytest.raises(StageError, match=r"0 of 8 rows; not accepted: .*truncated"):
        session.run(document)
    told = [json.loads(line) for line in (session.folder / "failures.jsonl").read_text().splitlines()]
    assert told and {failure["reason"] for failure in told} == {"truncated"}
    assert set(told[0]) == {"dataset", "unit", "reason", "excerpt", "attempts"} and told[0]["attempts"] == 2
