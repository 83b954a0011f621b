"""
Locks: one builder per output folder, one run per profile (P29).

`flock` is freed by the kernel when its process dies, however it dies, so a lock file left on disk means
nothing.

    with exclusive(workspace, "data/demo/packed", "data/demo/packed is being built"):
        ...
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TextIO

from utils.pipeline.errors import StageError
from utils.pipeline.guards import GUARDS
from utils.pipeline.workspace import Workspace


@contextmanager
def exclusive(workspace: Workspace, name: str, message: str) -> Iterator[None]:
    """
    Hold the lock `name`, or StageError: `<message> (pid 4121, since 10:02)`. The lock survives fork, not
    death.
    """
    path = workspace.records / "locks" / (name.replace("/", "__") + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="ascii") as file:
        if holder := GUARDS["G16"](_take(file)):
            raise StageError(f"{message} ({holder})", fix="wait for it, or stop it, then rerun")
        yield


def _take(file: TextIO) -> str:
    """'' when the lock is ours now, else who holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(file)
    file.truncate(0)
    file.write(json.dumps({"pid": os.getpid(), "since": datetime.now().strftime("%H:%M")}))
    file.flush()
    return ""


def _holder(file: TextIO) -> str:
    file.seek(0)
    try:
        record = json.loads(file.read())
        return f"pid {record['pid']}, since {record['since']}"
    except (ValueError, KeyError):
        return "by another process"
