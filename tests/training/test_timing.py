"""When things are due, how fast the steps are, how long the rest takes; the line on a terminal."""

import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.pipeline.log import Log
from utils.training.timing import Due, Timing

counts = st.integers(1, 40)


@given(counts, counts, counts, st.integers(0, 40))
def test_what_is_left_is_what_will_be_due(steps, eval_every, save_every, step):
    due, rest = Due(steps, eval_every, save_every), range(step + 1, steps + 1)
    savings = [each for each in rest if due.saves(each) and not due.evaluates(each)]
    assert due.left(step) == (sum(map(due.evaluates, rest)), len(savings))


def test_the_rate_is_that_of_the_last_20_steps_without_the_first_10():
    timing = Timing(Due(100, 100, 100))
    for _ in range(10):
        timing.step(weight=10, seconds=100.0)
    assert timing.rate() == pytest.approx(0.1)  # nothing else is known yet
    for _ in range(5):
        timing.step(weight=10, seconds=2.0)
    assert timing.rate() == timing.overall_rate() == pytest.approx(5.0)
    for _ in range(20):
        timing.step(weight=10, seconds=1.0)
    assert timing.rate() == pytest.approx(10.0)
    assert timing.overall_rate() == pytest.approx(250 / 30)
    assert timing.training_seconds == pytest.approx(1030)


def test_the_time_left_counts_evaluations_and_savings_at_their_cost():
    timing = Timing(Due(100, eval_every=20, save_every=10))
    for _ in range(20):
        timing.step(weight=1, seconds=1.0)
    assert timing.seconds_left(20) == pytest.approx(80)
    timing.pause(10, 3.0)
    timing.pause(20, 7.0)
    timing.pause(21, 500.0)  # nothing was due: whatever that was, it is not coming again
    assert timing.seconds_left(20) == pytest.approx(80 + 4 * 7 + 4 * 3)
    assert timing.seconds_left(100) == 0


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self):
        return True


def shown(monkeypatch, out, err):
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    lines = Log("50_pretrain")
    for step in (10, 20):
        lines.event("step", f"{step}/30", live=True)
    lines.event("eval", "20  val loss 3.1")
    lines.event("step", "30/30", live=True)
    lines.error("no", "failed")
    return out.getvalue(), err.getvalue()


def test_a_log_file_gets_every_line(monkeypatch):
    out, err = shown(monkeypatch, io.StringIO(), io.StringIO())
    assert [line.split()[1:3] for line in out.splitlines()] == [
        ["step", "10/30"], ["step", "20/30"], ["eval", "20"], ["step", "30/30"]
    ]  # fmt: skip
    assert err == "error: no\n"


def test_a_terminal_gets_one_line_that_changes(monkeypatch):
    out, err = shown(monkeypatch, Terminal(), Terminal())
    assert [line.split()[1] for line in out.splitlines()] == ["eval"]
    clear = "\r\x1b[K"
    lines = [f"50_pretrain            step       {step}" for step in ("10/30", "20/30", "30/30")]
    assert err == f"{lines[0]}{clear}{lines[1]}{clear}{lines[2]}{clear}error: no\n"


def test_with_a_file_behind_stdout_both_get_theirs(monkeypatch):
    out, err = shown(monkeypatch, io.StringIO(), Terminal())
    assert len(out.splitlines()) == 4 and err.count("\r\x1b[K") == 3
