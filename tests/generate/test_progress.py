"""What is said of a run while it goes on."""

import io
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from utils.config.providers import BudgetSpec, ModelSpec
from utils.generate import progress
from utils.generate.budget import Budget
from utils.generate.progress import Progress
from utils.generate.reply import Reply


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now.seconds)
    return now


def made(log, live=False):
    dataset = SimpleNamespace(name="chat", finished=0, num_rows=1000)
    gate = SimpleNamespace(in_flight=64, limit=64, waiting=12)
    client = SimpleNamespace(gate=gate, last_failure="")
    budget = Budget(BudgetSpec(), {"main": ModelSpec(provider="p", model="m", prompt_price=1e6)}, lambda: 0.0)
    budget.charge("p", "main", "chosen", Reply("", "", "", 3, 1200))
    return dataset, client, Progress([dataset], {"lab": client}, budget, log, live=live)


def test_a_line_every_ten_seconds_tells_how_far_it_is_and_how_long_it_takes(clock):
    said = []
    dataset, client, told = made(lambda event, text, **fields: said.append((event, text, fields)))
    for second in range(31):
        clock.seconds = 100.0 + second
        dataset.finished = 10 * second
        told.tell()
    assert [event for event, _, _ in said] == ["progress"] * 3
    assert said[-1][1] == (
        "chat 300 of 1,000; 10.0 rows/s; 64 in flight of 64, 12 waiting; 1,203 tokens, cost 3; 70 s left"
    )
    assert said[-1][2]["rows"] == {"chat": 300} and said[-1][2]["rows_per_second"] == 10
    client.last_failure = "http_503: busy"
    assert told.line().endswith("last failure of lab: http_503: busy")


def test_the_rate_is_that_of_the_last_half_minute(clock):
    dataset, _, told = made(lambda *_, **__: None)
    for second in range(200):
        clock.seconds = 100.0 + second
        dataset.finished = second if second < 100 else 100
        told.tell()
    assert told.rate == 0 and "left" not in told.line()


def test_a_terminal_has_a_live_line_instead(clock, monkeypatch):
    said, screen = [], io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=200)
    monkeypatch.setattr("rich.live.get_console", lambda: terminal)
    dataset, _, told = made(lambda *arguments, **_: said.append(arguments), live=True)
    for _ in range(5):
        clock.seconds += 0.3
        dataset.finished += 5
        told.tell()
    told.close()
    assert not said and re.search("chat 25 of 1,000", screen.getvalue())


def test_times_are_told_in_fitting_units():
    assert [progress._duration(s) for s in (12, 600, 7200)] == ["12 s", "10 minutes", "2.0 hours"]
