"""
How a stage ended, written where the program that started it can read it (T70).

`accelerate launch` and torchrun turn every exit code into 1. So rank 0 notes the true one: in the state
of the build folder, and under `data/.lockstep/` for refusals, which leave no build folder.

    forget_ending(workspace, output); code = launch(...); code = ending_of(workspace, output) or code
"""

import json
from contextlib import suppress
from pathlib import Path

from utils.pipeline.errors import exit_code_of
from utils.pipeline.seal import partial_of, read_state, write_state
from utils.pipeline.signals import INTERRUPTED, PREEMPTED
from utils.pipeline.workspace import Workspace

WORDS = {PREEMPTED: "preempted", INTERRUPTED: "interrupted"}


def record_ending(workspace: Workspace, output: Path, error: BaseException, building: bool) -> None:
    """
    Note that the stage which writes `output` ended with this error; the build folder is another's unless
    this process is `building` in it.
    """
    code = exit_code_of(error)
    ending = {"ended": WORDS.get(code, "failed"), "exit_code": code}
    try:
        _write(workspace, output, ending, building)
    except OSError:  # a full or read-only disk is what ended it, and the exit code itself still says so
        with suppress(OSError):
            _place(workspace, output).unlink(missing_ok=True)


def _write(workspace: Workspace, output: Path, ending: dict, building: bool) -> None:
    path = _place(workspace, output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(ending), encoding="ascii")
    state = read_state(partial_of(output)) if building else None
    if state:
        write_state(partial_of(output), state | ending)


def forget_ending(workspace: Workspace, output: Path) -> None:
    _place(workspace, output).unlink(missing_ok=True)


def ending_of(workspace: Workspace, output: Path) -> int:
    """The exit code that the stage noted since `forget_ending`, 0 for none."""
    path = _place(workspace, output)
    try:
        return json.loads(path.read_text(encoding="ascii"))["exit_code"]
    except (OSError, ValueError):  # nothing was noted, or a full disk took the note
        return 0


def _place(workspace: Workspace, output: Path) -> Path:
    name = workspace.relative(output).replace("/", "__")
    return workspace.records / "ended" / f"{name}.json"
