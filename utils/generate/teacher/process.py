"""
The offline teacher as a child process: started for a run, gone with it, whatever ends the run.

The child holds the read end of a pipe. When its parent leaves the block, fails or is killed with -9, the
kernel closes the other end and the child stops. It lives in a session of its own, so Ctrl-C reaches the
parent alone, which can still let the calls in flight finish.

    with offline_teacher(seed=0, faults="429:0.1") as base_url:
        ...
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.generate.teacher.faults import Faults
from utils.pipeline.errors import StageError

_ROOT = Path(__file__).resolve().parents[3]
_GRACE_SECONDS = 5.0


@contextmanager
def offline_teacher(
    seed: int,
    faults: str = "",
    *,
    latency_ms: float = 0.0,
    requests_per_minute: int = 0,
    api_key_env: str = "",
) -> Iterator[str]:
    """
    Yield the base URL of a teacher that listens on a port chosen by the kernel. ConfigError for a schedule of
    faults that makes no sense, StageError when it does not start.
    """
    Faults.parse(faults)
    options = {
        "--port": 0,
        "--seed": seed,
        "--faults": str(Path(faults).resolve()) if faults.endswith(".json") else faults,
        "--latency-ms": latency_ms,
        "--requests-per-minute": requests_per_minute,
        "--api-key-env": api_key_env,
    }
    command = [sys.executable, "-m", "utils.generate.teacher.cli", "--exit-with-stdin"]
    command += [f"{name}={value}" for name, value in options.items()]
    child = subprocess.Popen(
        command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, text=True
    )
    try:
        assert child.stdin is not None and child.stdout is not None
        first_line = child.stdout.readline()
        if not first_line:
            raise StageError(
                f"the offline teacher did not start (exit {child.wait()})", fix=" ".join(command)
            )
        yield json.loads(first_line)["base_url"]
    finally:
        _stop(child)


def _stop(child: subprocess.Popen[str]) -> None:
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()
    try:
        child.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
