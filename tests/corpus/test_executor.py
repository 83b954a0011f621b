"""Ordered work: order, look-ahead, exceptions, dead workers, being stopped, no orphans, one thread each."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from utils.config.shared import ExecutorConfig
from utils.corpus.executor import InlineWorkers, open_executor, ordered_map, stoppable_map
from utils.pipeline.errors import StageError

INLINE = ExecutorConfig(kind="inline")
ROOT = Path(__file__).resolve().parents[2]


def counted(taken: list[int], count: int) -> Iterator[int]:
    for i in range(count):
        taken.append(i)
        yield i


@pytest.mark.parametrize(("in_flight", "ahead"), [(3, [0, 1, 2]), (0, [0])])
def test_inline_keeps_order_and_looks_ahead_only_so_far(in_flight: int, ahead: list[int]):
    taken: list[int] = []
    with open_executor(INLINE) as executor:
        results = ordered_map(executor, abs, counted(taken, 10), in_flight)
        assert next(results) == 0
        assert taken == ahead
        assert list(results) == list(range(1, 10))


def test_processes_give_the_same_order_two_blocks_ahead_per_worker():
    taken: list[int] = []
    with open_executor(ExecutorConfig(workers=2)) as executor:
        results = ordered_map(executor, abs, counted(taken, 20))
        assert next(results) == 0
        assert taken == [0, 1, 2, 3]
        assert list(results) == list(range(1, 20))
        with pytest.raises(TypeError):
            list(ordered_map(executor, abs, [1, "text"]))


def test_exception_of_a_task_is_raised_and_not_tried_again():
    tries = []

    def fails(item: int) -> float:
        tries.append(item)
        return 1 / item

    with open_executor(INLINE) as executor, pytest.raises(ZeroDivisionError):
        list(ordered_map(executor, fails, [1, 0, 2]))
    assert tries == [1, 0]


def test_what_was_submitted_before_the_items_broke_still_comes():
    def items() -> Iterator[int]:
        yield from (-1, -2, -3)
        raise OSError("the file is cut off")

    done = []
    with open_executor(INLINE) as executor, pytest.raises(OSError, match="cut off"):
        done.extend(ordered_map(executor, abs, items(), in_flight=5))
    assert done == [1, 2, 3]


def blocked(_: int) -> set[signal.Signals]:
    return signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_worker_is_deaf_before_its_first_instruction_and_the_coordinator_is_not():
    with open_executor(ExecutorConfig(workers=1)) as executor:
        (inherited,) = ordered_map(executor, blocked, [0])
    assert {signal.SIGINT, signal.SIGTERM} <= inherited
    assert not {signal.SIGINT, signal.SIGTERM} & blocked(0)


def die_once(marker: str) -> str:
    """Kill the worker the first time, answer the second."""
    if marker and not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return marker


def die_on_seven(item: int) -> int:
    if item == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def test_what_a_dead_worker_had_in_hand_is_tried_once_more(tmp_path: Path):
    items = ["", str(tmp_path / "a"), *[""] * 8, str(tmp_path / "b"), ""]
    with open_executor(ExecutorConfig(workers=2)) as executor:
        assert list(ordered_map(executor, die_once, items)) == items
    assert (tmp_path / "a").exists() and (tmp_path / "b").exists()


def test_a_second_death_names_the_item_and_keeps_what_came_before():
    done = []
    with open_executor(ExecutorConfig(workers=2)) as executor:
        results = ordered_map(
            executor, die_on_seven, range(20), name=lambda i: f"web rows {2_000 * i:,}-{2_000 * i + 1_999:,}"
        )
        with pytest.raises(StageError) as error:
            done.extend(results)
    assert done == list(range(7))
    assert str(error.value) == (
        "a worker process died at web rows 14,000-15,999, and again when that was tried alone"
    )
    assert "rerun to continue" in error.value.fix
    assert error.value.exit_code == 4


class AskedToStop:
    """A stage that is asked to stop after so many results."""

    def __init__(self, after: int) -> None:
        self.after, self.results = after, 0

    @property
    def stopping(self) -> bool:
        return self.results >= self.after

    def stop_point(self) -> None:
        if self.stopping:
            raise KeyboardInterrupt


def test_when_stopped_nothing_more_is_submitted_and_what_is_done_still_comes():
    taken: list[int] = []
    stage = AskedToStop(after=2)
    with pytest.raises(KeyboardInterrupt):
        for _ in stoppable_map(InlineWorkers(), stage, abs, counted(taken, 10)):
            stage.results += 1
    assert (taken, stage.results) == ([0, 1], 2)
    stage = AskedToStop(after=2)
    for _ in ordered_map(InlineWorkers(), abs, range(10), 5, stop=lambda: stage.stopping):
        stage.results += 1
    assert stage.results == 6  # 0-4 were submitted before the first result, 5 after it


def test_a_stop_does_not_wait_for_what_is_running():
    started = time.monotonic()

    def soon() -> bool:
        return time.monotonic() > started + 3

    with open_executor(ExecutorConfig(workers=1)) as executor:
        assert list(ordered_map(executor, abs, [1])) == [1]
        assert list(ordered_map(executor, time.sleep, [60], stop=soon)) == []
    assert time.monotonic() - started < 20


def threads_after_a_product(size: int) -> tuple[int, int, int]:
    """Number of threads of this process before and after a matrix product, and after importing numpy."""
    before = len(os.listdir("/proc/self/task"))
    import numpy

    imported = len(os.listdir("/proc/self/task"))
    numpy.ones((size, size)) @ numpy.ones((size, size))
    return before, imported, len(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_workers_calculate_with_one_thread():
    with open_executor(ExecutorConfig(workers=1)) as executor:
        before, *after = executor.submit(threads_after_a_product, 600).result()
    assert after == [before, before]


def ignored_signals(_: int) -> list[bool]:
    return [signal.getsignal(number) is signal.SIG_IGN for number in (signal.SIGINT, signal.SIGTERM)]


def test_workers_leave_signals_to_the_coordinator():
    with open_executor(ExecutorConfig(workers=1)) as executor:
        assert executor.submit(ignored_signals, 0).result() == [True, True]


ORPHANS = """
import time
from utils.config.shared import ExecutorConfig
from utils.corpus.executor import open_executor, ordered_map
if __name__ == "__main__":
    with open_executor(ExecutorConfig(workers=2)) as executor:
        list(ordered_map(executor, abs, range(4)))
        print("ready", flush=True)
        executor.submit(time.sleep, 60)
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
