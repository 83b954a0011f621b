"""
kill -9 at random moments costs calls in flight, and nothing else; Ctrl-C and SIGTERM cost nothing at all.
"""

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.generate.helpers import Session, small_document
from utils.generate import write
from utils.generate.journal import Scan
from utils.generate.teacher.process import offline_teacher

STAGE = ("scripts/10_generate.py", "--config", "config/smoke/10_generate.json")
OUTPUT = "data/smoke/generated"
IN_FLIGHT = 8
RUBRIC = [
    {"name": "correct", "description": "Is it right?", "weight": 2},
    {"name": "kind", "description": "Is it friendly?"},
]
FORK = multiprocessing.get_context("fork")
"""Children that need no imports: a kill costs a tenth of a second, not one."""


def document(mode: str, url: str, rows: int = 60) -> dict:
    """A dataset in one mode, by a teacher that outlives the runs; mo_dpo rows are judged."""
    built = small_document(stories=rows) if mode == "text" else small_document(chat=rows)
    (spec,) = built["datasets"].values()
    spec |= {"mode": mode, "num_subtopics": 5}
    built["datasets"] = {"d": spec}
    built["providers"]["teacher"] = {"base_url": url, "max_in_flight": IN_FLIGHT}
    built["models"]["judge"] = {"provider": "teacher", "model": "teacher-judge"}
    if mode == "mo_dpo":
        built["judge"] = {"criteria": RUBRIC}
        spec["judge"] = {"min_margin": 0.5}
    return built


def work(folder: Path, built: dict) -> None:
    Session(folder).run(built)
    os._exit(0)


def die_while_writing(folder: Path, built: dict) -> None:
    """Run to the end of the calls, and die by kill -9 in the middle of the first file of rows."""

    whole = write._write_lines

    def dying(path: Path, rows: Iterator[dict]) -> None:
        if path.name != "dataset.jsonl":
            return whole(path, rows)
        with open(path, "w") as file:
            file.write(json.dumps(next(rows))[:40])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    write._write_lines = dying
    work(folder, built)


@contextmanager
def running(
    folder: Path, built: dict, target: Callable[[Path, dict], None] = work
) -> Iterator[multiprocessing.Process]:
    child = FORK.Process(target=target, args=(folder, built))
    child.start()
    try:
        yield child
    finally:
        child.kill()
        child.join()


def usage(url: str) -> dict:
    with urlopen(f"{url}/usage", timeout=10) as response:
        return json.load(response)


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def kill_after(folder: Path, built: dict, num_bytes: int) -> bool:
    """Run until the journal has grown by so many bytes, then kill -9; whether the run was still going on."""
    journal = folder / "log" / "journal.jsonl"
    until, started = size(journal) + num_bytes, time.monotonic()
    with running(folder, built) as child:
        while size(journal) < until and child.is_alive() and time.monotonic() < started + 60:
            time.sleep(0.001)
        return child.is_alive()


@pytest.mark.parametrize("mode", ["text", "sft", "dpo", "kto", "mo_dpo"])
def test_killed_twenty_times_nothing_is_lost_nothing_doubled_and_the_rows_are_the_same(mode, tmp_path):
    rng, kills = random.Random(), 20
    with offline_teacher(0, latency_ms=15) as url:
        whole = Session(tmp_path / "whole")
        whole.run(document(mode, url))
        grows = size(whole.journal) // kills
    with offline_teacher(0, latency_ms=15) as url:
        session = Session(tmp_path / "killed")
        moments, killed = [], 0
        while killed < kills and len(moments) < 3 * kills:
            moments.append(rng.randrange(1, grows))
            killed += kill_after(session.folder, document(mode, url), moments[-1])
        with running(session.folder, document(mode, url), die_while_writing) as child:
            child.join(60)
            assert child.exitcode == -signal.SIGKILL
        cut_short = session.folder / "d" / "dataset.jsonl"
        assert 0 < cut_short.stat().st_size <= 40
        session.run(document(mode, url))
        spent = usage(url)
    assert killed >= kills // 2 and session.outputs() == whole.outputs(), moments
    entries = [entry.fields for entry in Scan(session.journal) if entry.kind == "reply"]
    replies = [identity for identity, _, step, *_ in entries if step != "preflight"]
    assert len(replies) == len(set(replies)), "a call was paid for and recorded twice"
    lost = spent["served"] - len(replies)
    assert 0 <= spent["repeated"] <= lost <= kills * IN_FLIGHT, (spent, moments)


@pytest.fixture
def clone(clone_repository, tmp_path):
    return clone_repository(tmp_path / "clone")


def recorded(root: Path) -> int:
    """Replies in the journal of an unfinished build of the stage."""
    entries = Scan(root / f"{OUTPUT}.partial" / "log" / "journal.jsonl")
    return sum(entry.kind == "reply" for entry in entries)


def wait_for_replies(clone, stage, count: int) -> None:
    until = time.monotonic() + 60
    while recorded(clone.root) < count and stage.poll() is None and time.monotonic() < until:
        time.sleep(0.005)


def sealed(root: Path) -> str:
    return json.loads((root / OUTPUT / "manifest.json").read_text())["output_digest"]


def test_the_stage_itself_killed_once_and_stopped_twice_ends_with_the_same_digest(clone):
    whole = clone.run(*STAGE)
    assert whole.returncode == 0, whole.stdout
    digest = sealed(clone.root)
    (clone.root / OUTPUT).rename(clone.root / "whole")

    known = 0
    for stop, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 75), (signal.SIGINT, 130)):
        stage = clone.start(*STAGE)
        wait_for_replies(clone, stage, known + 200)
        os.kill(stage.pid, stop)
        output, _ = stage.communicate(timeout=60)
        assert stage.returncode == code and "Traceback" not in output, output
        assert recorded(clone.root) > known and not (clone.root / OUTPUT).exists()
        known = recorded(clone.root)

    last = clone.run(*STAGE)
    assert last.returncode == 0 and f"{known:,} replies are already paid for" in last.stdout, last.stdout
    assert sealed(clone.root) == digest
    assert "up to date" in clone.run(*STAGE).stdout


def slowed(clone, milliseconds: int) -> None:
    """Let every call take its time, so that some are in flight when the signals come."""
    config = clone.root / "config" / "smoke" / "10_generate.json"
    slow = {"teacher": {"faults": f"latency:1:{milliseconds}", "max_in_flight": 16}}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"providers": slow}))


def test_a_second_ctrl_c_leaves_at_once_and_what_is_paid_for_stays(clone):
    slowed(clone, 2000)
    stage = clone.start(*STAGE)
    wait_for_replies(clone, stage, 1)
    known = recorded(clone.root)
    os.kill(stage.pid, signal.SIGINT)
    time.sleep(0.2)
    asked = time.monotonic()
    os.kill(stage.pid, signal.SIGINT)
    assert stage.wait(30) == 130 and time.monotonic() - asked < 1.5
    stage.communicate()
    assert recorded(clone.root) >= known >= 1


def test_the_first_ctrl_c_waits_for_calls_in_flight(clone):
    slowed(clone, 500)
    stage = clone.start(*STAGE)
    wait_for_replies(clone, stage, 4)
    known = recorded(clone.root)
    time.sleep(0.3)
    os.kill(stage.pid, signal.SIGINT)
    output, _ = stage.communicate(timeout=30)
    assert stage.returncode == 130 and "calls in flight may finish" in output, output
    assert recorded(clone.root) > known


def test_a_changed_temperature_is_refused_by_name_while_a_build_is_unfinished(clone):
    stage = clone.start(*STAGE)
    wait_for_replies(clone, stage, 5)
    os.kill(stage.pid, signal.SIGKILL)
    stage.communicate()
    config = clone.root / "config" / "smoke" / "10_generate.json"
    document = json.loads(config.read_text())
    config.write_text(json.dumps(document | {"models": {"main": {"temperature": 0.5}}}))
    refused = clone.run(*STAGE)
    assert refused.returncode == 3 and "models.main.temperature: 1.0 -> 0.5" in refused.stdout, refused.stdout
    forced = clone.run(*STAGE, "--force")
    assert forced.returncode == 0 and "replies are already paid for" in forced.stdout, forced.stdout


def test_more_rows_than_a_finished_artifact_has_continue_from_its_journal(clone):
    assert clone.run(*STAGE).returncode == 0
    before = (clone.root / OUTPUT / "chat" / "dataset.jsonl").read_text().splitlines()
    config = clone.root / "config" / "smoke" / "10_generate.json"
    document = json.loads(config.read_text())
    document["datasets"]["chat"]["rows"] += 20
    config.write_text(json.dumps(document))
    more = clone.run(*STAGE)
    assert more.returncode == 0, more.stdout
    after = (clone.root / OUTPUT / "chat" / "dataset.jsonl").read_text().splitlines()
    assert len(after) == len(before) + 20 and set(before) < set(after)
    made = json.loads((clone.root / OUTPUT / "manifest.json").read_text())["run"]["rates"]["calls_made"]
    assert 20 <= made <= 60
