"""
Starting the toy stage, or a program like it, as two processes without a launcher, which saves the seconds
that one takes.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.training import toy_stage

SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def start_ranks(
    root: Path, *arguments: str, count: int = 2, program: str = toy_stage.__file__, **environment: str
) -> list[subprocess.Popen]:
    """The toy stage, or `program`, under `root` in `count` processes that find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    launch |= {"MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"} | environment
    command = [sys.executable, program, str(root), "--config", str(root / "toy.json"), *arguments]
    return [
        subprocess.Popen(
            command,
            env=os.environ | launch | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]


def finish_ranks(ranks: list[subprocess.Popen], seconds: float = 300) -> tuple[list[int], str]:
    """Exit codes and everything that was printed."""
    try:
        said = [rank.communicate(timeout=seconds)[0] for rank in ranks]
    finally:
        kill_ranks(ranks)
    return [rank.returncode for rank in ranks], "\n".join(said)


def run_ranks(root: Path, *arguments: str, program: str = toy_stage.__file__, **environment: str) -> str:
    """Run to the end, which must be a good one."""
    codes, said = finish_ranks(start_ranks(root, *arguments, program=program, **environment))
    assert set(codes) == {0}, said
    return said


def wait_for_steps(root: Path, count: int, ranks: list[subprocess.Popen], seconds: float = 300) -> None:
    """Until the processes just started have added so many rows to the curve, or are over."""
    curve, began, first = root / "checkpoints/toy.partial/log/metrics.jsonl", time.time(), -1
    while all(rank.poll() is None for rank in ranks):
        if curve.is_file() and curve.stat().st_mtime > began:
            rows = len(curve.read_text().splitlines())
            first = rows if first < 0 else first
            if rows >= first + count:
                return
        if time.time() > began + seconds:
            kill_ranks(ranks)
            raise TimeoutError(f"no {count} steps within {seconds:g} s: {finish_ranks(ranks)}")
        time.sleep(0.01)


def kill_ranks(ranks: list[subprocess.Popen], number: signal.Signals = signal.SIGKILL) -> None:
    """The same signal for all of them at once."""
    for rank in ranks:
        rank.send_signal(number)
