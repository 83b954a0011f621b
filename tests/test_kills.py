"""
Fifty kills: one smoke run that is killed with -9 at random moments and started again each time.

    python -m pytest -m bench tests/test_kills.py        # about six minutes on two cores
"""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Clone
from tests.test_smoke import digests

pytestmark = pytest.mark.bench
KILLS = 50


def test_a_run_killed_fifty_times_ends_in_the_same_bytes(
    tmp_path: Path, clone_repository: Callable[[Path], Clone]
) -> None:
    calm, hunted = clone_repository(tmp_path / "calm"), clone_repository(tmp_path / "hunted")
    assert calm.pipeline("run", "smoke").returncode == 0
    dice = random.Random(50)
    for _ in range(KILLS):
        kill_after(hunted, 0.5 + 7.5 * dice.random())
        assert [str(folder) for folder in unsealed(hunted)] == []
    done = hunted.pipeline("run", "smoke")
    assert done.returncode == 0, done.stdout
    assert digests(hunted) == digests(calm)


def kill_after(clone: Clone, seconds: float) -> None:
    """Start the pipeline and kill it and everything below it at the same moment."""
    process = clone.start("tools/pipeline.py", "run", "smoke", stdout=subprocess.DEVNULL)
    time.sleep(seconds)
    for pid in [*descendants(process.pid), process.pid]:
        os.kill(pid, signal.SIGKILL)
    process.wait()


def descendants(pid: int) -> Iterator[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    for child in map(int, children.read_text().split() if children.exists() else []):
        yield from descendants(child)
        yield child


def unsealed(clone: Clone) -> list[Path]:
    """Artifact folders without a manifest; there must never be one."""
    folders = [*clone.root.glob("data/smoke/*"), *clone.root.glob("checkpoints/smoke/*")]
    finished = [path for path in folders if path.suffix not in (".partial", ".previous")]
    return [path for path in finished if not (path / "manifest.json").is_file()]
