"""kill -9 of the real stage at random moments costs calls in flight, and nothing else."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from utils.generate.journal import decode_line

STAGE = ("scripts/10_generate.py", "--config", "config/smoke/10_generate.json")
OUTPUT = "data/smoke/generated"


@pytest.fixture
def clone(clone_repository, tmp_path):
    return clone_repository(tmp_path / "clone")


def sealed(root: Path) -> str:
    return json.loads((root / OUTPUT / "manifest.json").read_text())["output_digest"]


def recorded(root: Path) -> list[str]:
    """Identities of the calls in the journal of an unfinished build, in order."""
    path = root / f"{OUTPUT}.partial" / ".journal" / "calls.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [record["call"] for record in map(decode_line, lines) if record]


def kill_when(clone, calls: int) -> None:
    """Start the stage and kill it as soon as its journal holds so many calls."""
    stage = clone.start(*STAGE)
    until = time.monotonic() + 30
    while len(recorded(clone.root)) < calls and stage.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    os.kill(stage.pid, signal.SIGKILL)
    stage.communicate()


@pytest.mark.slow
def test_killed_three_times_the_stage_ends_with_the_same_digest(clone):
    whole = clone.run(*STAGE)
    assert whole.returncode == 0, whole.stdout
    digest = sealed(clone.root)
    (clone.root / OUTPUT).rename(clone.root / "whole")

    rng, known = random.Random(), 0
    moments = sorted(rng.sample(range(1, 700), 3))
    for moment in moments:
        kill_when(clone, moment)
        calls = recorded(clone.root)
        assert len(calls) == len(set(calls)) >= known, moments
        assert not (clone.root / OUTPUT).exists()
        known = len(calls)

    last = clone.run(*STAGE)
    assert last.returncode == 0 and f"{known:,} replies are already paid for" in last.stdout, last.stdout
    assert sealed(clone.root) == digest, moments
    rows = (clone.root / OUTPUT / "stories" / "dataset.jsonl").read_bytes()
    assert rows == (clone.root / "whole" / "stories" / "dataset.jsonl").read_bytes()


def test_a_second_run_is_up_to_date_and_a_stop_is_resumable(clone):
    stage = clone.start(*STAGE)
    while not recorded(clone.root) and stage.poll() is None:
        time.sleep(0.002)
    stage.send_signal(signal.SIGTERM)
    output, _ = stage.communicate(timeout=30)
    assert stage.returncode == 75 and "Traceback" not in output, output
    continued = clone.run(*STAGE)
    assert continued.returncode == 0 and "replies are already paid for" in continued.stdout
    assert "up to date" in clone.run(*STAGE).stdout


def test_a_changed_temperature_is_refused_by_name_while_a_build_is_unfinished(clone):
    kill_when(clone, 5)
    config = clone.root / "config" / "smoke" / "10_generate.json"
    document = json.loads(config.read_text()) | {"models": {"main": {"temperature": 0.5}}}
    config.write_text(json.dumps(document))
    refused = clone.run(*STAGE)
    assert refused.returncode == 3 and "models.main.temperature: 1.0 -> 0.5" in refused.stdout, refused.stdout
