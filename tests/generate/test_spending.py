"""A budget that is reached ends the run: calls in flight finish, those that wait never go out."""

import time

import pytest

from tests.generate.helpers import Session, small_document
from tests.generate.providers import Provider, good, slow
from utils.config.transform import SFTToDPOConfig
from utils.generate.journal import Scan
from utils.generate.teacher.process import offline_teacher
from utils.generate.transform import SourceRow
from utils.generate.transform_run import transform
from utils.pipeline.errors import StageError


def replies(session: Session) -> list[int]:
    """Tokens of each reply, in the order in which they came."""
    entries = (entry for entry in Scan(session.journal) if entry.kind == "reply")
    return [int(entry.fields[3]) + int(entry.fields[4]) for entry in entries]


def limited(url: str, budget: dict, calls_per_minute: int) -> dict:
    """Hundreds of rows that are asked for at once, and go out slowly."""
    document = small_document(chat=400) | {"budget": budget}
    limits = {"max_in_flight": 64, "rate_limit_per_minute": calls_per_minute, "burst_percent": 1}
    document["providers"]["teacher"] = {"base_url": url} | limits
    return document


def test_calls_that_wait_for_the_rate_are_not_made_once_the_tokens_are_spent(tmp_path, monkeypatch):
    """The reply that reaches the budget says so itself, however rarely somebody looks."""
    monkeypatch.setattr("utils.generate.run.LOOK_SECONDS", 1.0)
    session = Session(tmp_path)
    with offline_teacher(0, latency_ms=5) as url, pytest.raises(StageError, match="budget reached") as told:
        session.run(limited(url, {"max_tokens": 1500}, 600))
    assert "chat" in str(told.value) and "max_tokens 1,500 reached" in str(told.value)
    tokens = replies(session)
    reached_at = next(n for n in range(len(tokens)) if sum(tokens[: n + 1]) >= 1500)
    assert len(tokens) - reached_at - 1 <= 4, "what was in flight, and no more"


def test_calls_that_wait_for_the_rate_are_not_made_once_the_time_is_up(tmp_path):
    """Six seconds lie between two calls, and the time is up after two."""
    session = Session(tmp_path)
    began = time.monotonic()
    with offline_teacher(0, latency_ms=5) as url, pytest.raises(StageError, match="max_minutes 0.03 reached"):
        session.run(limited(url, {"max_minutes": 0.03}, 10))
    assert 1.8 <= time.monotonic() - began < 5


def test_a_budget_that_is_reached_with_the_last_row_spoils_nothing(tmp_path):
    session, document = Session(tmp_path), small_document(chat=8)
    whole = Session(tmp_path / "whole")
    whole.run(document)
    document["budget"] = {"max_tokens": sum(replies(whole))}
    assert session.run(document) is not None and session.rows("chat") == whole.rows("chat")


def test_a_transform_ends_when_its_time_is_up(tmp_path):
    document = {
        "output": "data/toy/pairs",
        "sources": [{"name": "mine", "kind": "local", "paths": ["raw/*.jsonl"]}],
        "models": {"rejected": {"provider": "lab", "model": "m"}},
        "budget": {"max_minutes": 0.01},
    }
    rows = [
        SourceRow(n, f"row {n}", ({"role": "user", "content": f"What is {n}?"},), "A number.")
        for n in range(1, 9)
    ]
    provider = Provider(good, slow(0.3))
    with provider.in_thread() as url:
        lab = {"base_url": url, "max_in_flight": 1, "rate_limit_per_minute": 60, "burst_percent": 1}
        config = SFTToDPOConfig.model_validate(document | {"providers": {"lab": lab}})
        began = time.monotonic()
        with pytest.raises(StageError, match=r"budget reached: [01] of 8 rows; max_minutes 0.01 reached"):
            transform(config, rows, 8, tmp_path, tmp_path, lambda *_, **__: None, lambda: False)
    assert time.monotonic() - began < 3 and provider.calls <= 3
