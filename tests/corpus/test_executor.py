"""Ordered work: order, look-ahead, exceptions, a dead worker, no orphans."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from utils.config.shared import ExecutorConfig
from utils.corpus.executor import open_executor, ordered_map
from utils.pipeline.errors import StageError

INLINE = ExecutorConfig(kind="inline")
ROOT = Path(__file__).resolve().parents[2]


def test_inline_keeps_order_and_looks_ahead_only_so_far():
    taken = []

    def items():
        for i in range(10):
            taken.append(i)
            yield i

    with open_executor(INLINE) as executor:
        results = ordered_map(executor, abs, items(), in_flight=3)
        assert next(results) == 0
        assert taken == [0, 1, 2]
        assert list(results) == list(range(1, 10))


def test_processes_give_the_same_order():
    with open_executor(ExecutorConfig(workers=2)) as executor:
        assert list(ordered_map(executor, abs, range(-20, 0))) == list(range(20, 0, -1))
        with pytest.raises(TypeError):
            list(ordered_map(executor, abs, [1, "text"]))


def test_exception_of_a_task_is_raised():
    with open_executor(INLINE) as executor, pytest.raises(ZeroDivisionError):
        list(ordered_map(executor, lambda i: 1 // i, [1, 0]))


def test_a_dead_worker_is_named_by_its_item():
    with open_executor(ExecutorConfig(workers=1)) as executor:
        results = ordered_map(executor, os._exit, [7], name=lambda item: f"web rows {item}")
        with pytest.raises(StageError, match="a worker process died at or after web rows 7"):
            list(results)


ORPHANS = """
import time
from utils.config.shared import ExecutorConfig
from utils.corpus.executor import open_executor, ordered_map
if __name__ == "__main__":
    with open_executor(ExecutorConfig(workers=2)) as executor:
        list(ordered_map(executor, abs, range(4)))
        print("ready", flush=True)
        time.sleep(60)
"""


def test_workers_end_with_a_killed_coordinator(tmp_path: Path):
    script = tmp_path / "coordinator.py"
    script.write_text(ORPHANS)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=environment)
    assert process.stdout.readline() == b"ready\n"
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(child.is_running() for child in children):
        time.sleep(0.05)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
