"""Whole runs against the teacher: what comes out, faults, stops, budgets, keys."""

import json
import re
import socket
import time

import pytest

from tests.generate.helpers import Session, small_document
from utils.generate.journal import Scan
from utils.generate.teacher.process import offline_teacher
from utils.generate.teacher.replies import right_answer
from utils.pipeline.errors import ConfigError, StageError

ROWS = {"stories": 40, "chat": 60, "pairs": 30}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    session = Session(tmp_path_factory.mktemp("whole") / "generated")
    session.generated = session.run(small_document(**ROWS))
    return session


def through(url: str, document: dict, **provider: object) -> dict:
    """The same run through an `openai` provider at `url`."""
    document["providers"]["teacher"] = {"kind": "openai", "base_url": url, "max_in_flight": 32} | provider
    for model in document["models"].values():
        model["max_backoff_seconds"] = 0.02
    return document


def calls_in(session: Session) -> int:
    """Calls that the journal holds the reply to, the test calls of preflight left out."""
    replies = (entry for entry in Scan(session.journal) if entry.kind == "reply")
    return sum(entry.fields[2] != "preflight" for entry in replies)


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


def test_metrics_count_what_is_there_and_usage_what_was_paid(uninterrupted):
    generated = uninterrupted.generated
    counts = generated.metrics["datasets"]
    assert {name: counts[name]["rows"] for name in ROWS} == ROWS
    assert counts["pairs"]["mode"] == "dpo" and counts["chat"]["subtopics"] == 8
    steps = generated.usage["teacher"]["main"]
    assert set(steps) == {"subtopics", "prompts", "chosen"} and steps["chosen"]["calls"] >= 130
    assert generated.usage["teacher"]["rejected"]["rejected"]["calls"] >= 30
    total = sum(step["calls"] for model in generated.usage["teacher"].values() for step in model.values())
    assert total == generated.calls_made == calls_in(uninterrupted)


def test_two_runs_give_the_same_bytes(uninterrupted, tmp_path):
    session = Session(tmp_path)
    session.run(small_document(**ROWS))
    assert session.outputs() == uninterrupted.outputs()


def test_another_seed_gives_other_rows(uninterrupted, tmp_path):
    session = Session(tmp_path)
    session.run(small_document(**ROWS) | {"seed": 1})
    assert session.rows("stories") != uninterrupted.rows("stories")


def test_no_output_tells_time_or_place(uninterrupted):
    for path, data in uninterrupted.outputs().items():
        assert not re.search(rb"20\d\d-\d\d|127\.0\.0\.1|seconds|/tmp", data), path


def test_the_card_counts_what_is_there(uninterrupted):
    card = uninterrupted.outputs()["DATA_CARD.md"].decode()
    assert "| stories | text | 40 | 8 |" in card and "## Samples of pairs" in card
    assert "| teacher | teacher-weak | rejected | 30 |" in card


@pytest.mark.parametrize(
    "faults",
    ["429:0.2", "500:0.2", "529:0.2", "drop:0.2", "truncate:0.2", "empty:0.2", "cut:0.2", "429:.2,drop:.2"],
)
def test_faults_change_nothing_in_the_result(faults, uninterrupted, tmp_path):
    session = Session(tmp_path)
    with offline_teacher(0, faults) as url:
        session.run(through(url, small_document(**ROWS)))
    assert session.outputs() == uninterrupted.outputs()


def test_a_stop_lets_calls_finish_and_the_next_run_continues(tmp_path):
    session, document = Session(tmp_path / "stopped"), small_document(stories=300)
    document["providers"]["teacher"]["max_in_flight"] = 8
    assert session.run(document, stopping=lambda: session.journal.stat().st_size > 100_000) is None
    assert not (session.folder / "stories").exists() and "stopping" in dict(session.events)
    recorded = calls_in(session)
    continued = session.run(document)
    assert "journal" in dict(session.events) and recorded >= 9
    assert continued.calls_made == calls_in(session) - recorded
    whole = Session(tmp_path / "whole")
    whole.run(document)
    assert session.outputs() == whole.outputs()


def test_a_stop_waits_for_calls_no_longer_than_asked(tmp_path):
    document = small_document(stories=20) | {"journal": {"drain_seconds": 0.3}}
    document["providers"]["teacher"]["faults"] = "latency:1:20000"
    began = time.monotonic()
    assert Session(tmp_path).run(document, stopping=lambda: time.monotonic() > began + 1) is None
    assert 1.3 < time.monotonic() - began < 10


def test_a_finished_run_asks_nothing_again(tmp_path):
    session, document = Session(tmp_path), small_document(chat=20)
    first = session.run(document)
    outputs = session.outputs()
    again = session.run(document)
    assert first.calls_made > 20 and again.calls_made == 0 and again.usage == first.usage
    assert session.outputs() == outputs


def test_another_dataset_later_pays_only_for_what_is_new(tmp_path):
    session = Session(tmp_path)
    session.run(small_document(stories=40))
    stories, paid = session.rows("stories"), calls_in(session)
    more = session.run(small_document(stories=40, chat=16))
    assert more.calls_made == calls_in(session) - paid and session.rows("stories") == stories


# budgets


def test_a_budget_stops_cleanly_and_more_of_it_continues(tmp_path):
    session, document = Session(tmp_path), small_document(chat=200)
    document["models"]["main"] |= {"prompt_price": 1e6, "completion_price": 1e6}  # a token costs 1
    document["providers"]["teacher"]["max_in_flight"] = 4
    with pytest.raises(
        StageError, match=r"budget reached: chat \d+ of 200 rows \(max_cost 2000 reached: "
    ) as told:
        session.run(document | {"budget": {"max_cost": 2000}})
    assert "raise the budget" in told.value.fix
    spent = sum(int(f) for e in Scan(session.journal) if e.kind == "reply" for f in e.fields[3:])
    assert 2000 <= spent < 2600, "calls in flight finish, and no other starts"
    paid = calls_in(session)
    generated = session.run(document | {"budget": {"max_cost": 100_000}})
    assert len(session.rows("chat")) == 200 and generated.calls_made == calls_in(session) - paid


def test_a_budget_of_tokens_counts_over_all_runs(tmp_path):
    session, document = Session(tmp_path), small_document(chat=100)
    document["providers"]["teacher"]["max_in_flight"] = 4
    for _ in range(2):
        with pytest.raises(StageError, match="max_tokens 1,000 reached"):
            session.run(document | {"budget": {"max_tokens": 1000}})
    spent = sum(int(f) for e in Scan(session.journal) if e.kind == "reply" for f in e.fields[3:])
    before = calls_in(session)
    with pytest.raises(StageError, match="max_tokens"):
        session.run(document | {"budget": {"max_tokens": 1000}})
    assert spent >= 1000 and calls_in(session) == before


# endings


def test_the_key_is_nowhere_but_in_the_environment(tmp_path, monkeypatch):
    session = Session(tmp_path)
    monkeypatch.setenv("PLANTED_KEY", "sk-planted-0123456789")
    document = small_document(chat=8) | {"journal": {"log_requests": True}}
    with offline_teacher(0, "429:0.3", api_key_env="PLANTED_KEY") as url:
        session.run(through(url, document, api_key_env="PLANTED_KEY"))
    everything = b"".join(path.read_bytes() for path in session.folder.rglob("*") if path.is_file())
    assert b"sk-planted" not in everything + json.dumps(session.events).encode() and len(everything) > 1000


def test_a_model_that_is_not_there_ends_the_run_before_any_answer_is_asked_for(tmp_path):
    session, document = Session(tmp_path), small_document(pairs=10)
    with offline_teacher(0, latency_ms=50) as url:
        document = through(url, document)
        document["models"]["rejected"]["model"] = "nobody"
        with pytest.raises(ConfigError, match='refuses a call of "nobody"'):
            session.run(document)
    steps = {entry.fields[2] for entry in Scan(session.journal) if entry.kind == "reply"}
    assert steps <= {"subtopics", "prompts"}


def test_lists_are_asked_for_beside_the_preflight_which_is_in_the_accounts(tmp_path):
    session = Session(tmp_path)
    with offline_teacher(0, latency_ms=200) as url:
        generated = session.run(through(url, small_document(chat=10)))
    entries = [entry for entry in Scan(session.journal) if entry.kind == "reply"]
    steps = [entry.fields[2] for entry in entries]
    assert set(steps[:2]) == {"preflight", "subtopics"} and steps.count("preflight") == 1
    counted, noted = generated.usage["teacher"]["main"]["preflight"], entries[steps.index("preflight")].fields
    assert (counted["calls"], counted["completion_tokens"]) == (1, int(noted[4]))


def test_attempts_are_logged_on_request(tmp_path):
    session = Session(tmp_path)
    with offline_teacher(0, "429:0.3") as url:
        session.run(through(url, small_document(chat=20) | {"journal": {"log_requests": True}}))
    lines = [json.loads(line) for line in (tmp_path / "log" / "requests.jsonl").read_text().splitlines()]
    assert {line["status"] for line in lines} == {"200", "http_429"} and {
        line["model"] for line in lines
    } == {"teacher"}
    good = [line for line in lines if line["status"] == "200"]
    assert len(good) == calls_in(session) and all(line["tokens"] > 0 <= line["took"] for line in good)


def test_an_endpoint_that_is_not_there_stops_the_run_before_it_starts(tmp_path):
    session = Session(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        started = time.monotonic()
        with pytest.raises(StageError, match='provider "teacher" at .* cannot be reached'):
            session.run(through(url, small_document(chat=60)))
    assert time.monotonic() - started < 20 and calls_in(session) == 0


def test_a_provider_that_goes_away_in_the_middle_stops_the_run_and_keeps_what_came(tmp_path):
    session, document = Session(tmp_path), small_document(chat=400)
    for model in document["models"].values():
        model |= {"max_retries": 0}
    with offline_teacher(0, latency_ms=20) as url:
        configured = through(url, document)
        configured["providers"]["teacher"]["max_in_flight"] = 4
        assert session.run(configured, stopping=lambda: calls_in(session) >= 20) is None
    for model in configured["models"].values():
        model["max_backoff_seconds"] = 0.02
    before = calls_in(session)
    started = time.monotonic()
    with pytest.raises(StageError, match='provider "teacher" .*failed'):
        session.run(configured)
    assert calls_in(session) == before and time.monotonic() - started < 60


def test_a_model_that_the_provider_does_not_have_is_a_mistake_of_the_config(tmp_path):
    session, document = Session(tmp_path), small_document(chat=8)
    document["models"]["main"]["model"] = "teacher-strong"
    with offline_teacher(0) as url, pytest.raises(ConfigError, match="teacher-strong"):
        session.run(through(url, document))
    assert calls_in(session) == 0


def test_a_run_that_falls_short_says_which_units_failed_and_why(tmp_path):
    session, document = Session(tmp_path), small_document(chat=8)
    document["models"]["main"]["max_output_tokens"] = 60
    document["datasets"]["chat"]["templates"]["chosen"] = "story"
    document["templates"]["story"] = {"user": 'Write a short story with this idea: "{{ prompt }}"'}
    with pytest.raises(StageError, match=r"0 of 8 rows; not accepted: .*truncated"):
        session.run(document)
    told = [json.loads(line) for line in (session.folder / "failures.jsonl").read_text().splitlines()]
    assert told and {failure["reason"] for failure in told} == {"truncated"}
    assert set(told[0]) == {"dataset", "unit", "reason", "excerpt", "attempts"} and told[0]["attempts"] == 2


def test_one_dataset_that_falls_short_holds_up_no_other(tmp_path):
    session, document = Session(tmp_path), small_document(chat=8, stories=40)
    del document["templates"]["story_ideas"], document["templates"]["story"]
    document["models"]["brief"] = document["models"]["main"] | {"max_output_tokens": 20}
    document["datasets"]["stories"] |= {"main_model": "brief", "templates": {"subtopics": "story_topics"}}
    document["models"]["brief"]["max_output_tokens"] = 60
    with pytest.raises(StageError, match='dataset "stories" stopped at'):
        session.run(document)
    from utils.generate.recorded import Recorded

    with Recorded.open(session.folder) as recorded:
        assert recorded.states["chat"].rows == 8 and len(list(recorded.rows("chat"))) == 8


# the judge


def test_judged_pairs_carry_scores_and_weak_ones_are_replaced(tmp_path):
    session, document = Session(tmp_path), small_document(pairs=24)
    document["datasets"]["pairs"] |= {"mode": "mo_dpo", "judge": {"min_margin": 1.0}}
    document["models"]["judge"] = {"provider": "teacher", "model": "teacher-judge"}
    document["judge"] = {
        "criteria": [
            {"name": "correct", "description": "Is it right?", "weight": 3},
            {"name": "style", "description": "Is it friendly?"},
        ]
    }
    generated = session.run(document)
    rows = session.rows("pairs")
    assert len(rows) == 24 and all(row["margin"] >= 1 for row in rows)
    for row in rows:
        assert set(row["chosen_scores"]) == set(row["rejected_scores"]) == {"correct", "style"}
        assert row["margin"] == pytest.approx(row["chosen_total"] - row["rejected_total"])
    assert generated.metrics["criteria"][0] == {"name": "correct", "weight": 3, "lowest": 1, "highest": 5}
    assert generated.metrics["datasets"]["pairs"]["scored"] == 24
    assert "## Rubric" in session.outputs()["DATA_CARD.md"].decode()
