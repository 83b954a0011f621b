"""
Kills with -9 at random moments, each followed by a rerun: fifty over the whole smoke profile, twenty over
each kind of pre-training run.

    python -m pytest -m bench tests/test_kills.py -k fifty              # about six minutes on two cores
    python -m pytest -m bench tests/test_kills.py -k pretraining -s     # four kinds of run
"""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
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


PRETRAINING_KILLS = 20
CONFIG = "config/smoke/50_pretrain.json"
LAUNCHER = ("-m", "accelerate.commands.accelerate_cli", "launch")
LAUNCHER += ("--config_file", "config/accelerate/cpu.yaml", "--num_processes", "2")
OPTIMIZERS = {
    "adamw": {"learning_rate": 0.002},
    "velvet": {"kind": "velvet", "learning_rate": 0.002},
}
"""How the pre-training is made easy to hit: a checkpoint every three steps, accumulation in all of them."""
SETTINGS = {"save_every_steps": 3, "micro_batch_rows": 2, "cpu_threads": 1, "trackers": []}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, clone_repository: Callable[[Path], Clone]) -> Clone:
    clone = clone_repository(tmp_path_factory.mktemp("packed") / "repository")
    assert clone.pipeline("run", "smoke", "--to", "40_pack_dataset").returncode == 0
    return clone


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_pretraining_killed_twenty_times_ends_in_the_same_bytes(
    packed: Clone, tmp_path: Path, optimizer: str, processes: int
) -> None:
    clone = packed.fork(tmp_path / "hunted")
    path = clone.root / CONFIG
    changed = SETTINGS | {"optimizer": OPTIMIZERS[optimizer]}
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    command = [*(LAUNCHER if processes > 1 else ()), "scripts/50_pretrain.py", "--config", CONFIG]
    started = time.time()
    calm = run_to_the_end(clone, command)
    longest, dice, where = time.time() - started, random.Random(processes), Counter()
    while where.total() < PRETRAINING_KILLS:
        began, process = time.time(), clone.start(*command, stdout=subprocess.DEVNULL)
        if sleep_while_running(process, longest * dice.random()):
            kill_tree(process)
            where[moment_of(clone, began)] += 1
            assert unsealed(clone) == []
        else:  # it was done before its moment came
            assert run_to_the_end(clone, command) == calm
    assert run_to_the_end(clone, command) == calm
    print(f"\n{optimizer}, {processes} process(es): {dict(where)}, {longest:.0f} s undisturbed")
    assert where["in training"] > 0


def run_to_the_end(clone: Clone, command: list[str]) -> str:
    """The output digest of a finished pre-training, whose artifact is removed again."""
    done = clone.run(*command)
    assert done.returncode == 0, done.stdout
    output = clone.root / "checkpoints/smoke/base"
    found = json.loads((output / "manifest.json").read_text())["output_digest"]
    shutil.rmtree(output)
    return found


def sleep_while_running(process: subprocess.Popen, seconds: float) -> bool:
    """Whether it still runs after so many seconds; a process that ends earlier must have succeeded."""
    try:
        assert process.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        return True
    return False


def moment_of(clone: Clone, began: float) -> str:
    """Where a pre-training that began then was when it was killed."""
    partial = clone.root / "checkpoints/smoke/base.partial"
    curve = partial / "log/metrics.jsonl"
    if not curve.exists() or curve.stat().st_mtime < began:
        return "starting"
    if (partial / "model.safetensors").exists():
        return "sealing"
    return "writing a checkpoint" if [*partial.glob("checkpoints/.writing-*")] else "in training"


def kill_after(clone: Clone, seconds: float) -> None:
    """Start the pipeline and kill it and everything below it at the same moment."""
    process = clone.start("tools/pipeline.py", "run", "smoke", stdout=subprocess.DEVNULL)
    time.sleep(seconds)
    kill_tree(process)


def kill_tree(process: subprocess.Popen) -> None:
    """-9 for the process and everything below it; ranks have sessions of their own, so a group is not all."""
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
