"""
Where the curves go: log/metrics.jsonl always, TensorBoard and wandb on request. Only rank 0 has sinks.

    check_trackers(["wandb"])          # ConfigError where it cannot be, before anything is computed
    trackers = Trackers(stage.partial / "log", ["tensorboard"], from_step=200, settings={}, warn=print)
    trackers.write(201, {"loss": 3.4, "step_ms": 912.0})

Nothing here is an output of the stage; a sink that fails is switched off with one line and never stops a run.
"""

import json
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from utils.pipeline.errors import ConfigError

PROJECT = "lockstep"
WANDB_KEY, WANDB_MODE = "WANDB_API_KEY", "WANDB_MODE"


class Sink(Protocol):
    """A place for curves; it may fail in any way it likes."""

    def write(self, step: int, numbers: dict[str, float]) -> None: ...
    def close(self) -> None: ...


def check_trackers(kinds: list[str]) -> None:
    """ConfigError for a tracker whose package is not installed, or for wandb without a key."""
    for kind in kinds:
        spec = find_spec(kind)
        if spec is None or spec.origin is None:  # without an origin it is a folder of that name
            raise ConfigError(f'"trackers": {kind} is not installed', fix=f"pip install {kind}")
    if "wandb" in kinds and not os.environ.get(WANDB_KEY) and os.environ.get(WANDB_MODE) != "offline":
        raise ConfigError(
            f'"trackers": wandb needs {WANDB_KEY} in the environment', fix=f"set it, or {WANDB_MODE}=offline"
        )


class Trackers:
    """
    Appends one row per step; on resume, rows after `from_step` are cut off first. `settings` is what a sink
    shows of the run.
    """

    def __init__(
        self, folder: Path, kinds: list[str], from_step: int, settings: dict, warn: Callable[[str], None]
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._warn = folder / "metrics.jsonl", warn
        cut_after(self._path, from_step)
        self.sinks: dict[str, Sink] = {}
        for kind in kinds:
            self._guarded(kind, self._open, folder, from_step, settings)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """One row to every sink."""
        with open(self._path, "a", encoding="ascii") as file:
            file.write(json.dumps({"step": step} | numbers) + "\n")
        for kind in list(self.sinks):
            self._guarded(kind, lambda kind: self.sinks[kind].write(step, numbers))

    def close(self) -> None:
        for kind in list(self.sinks):
            self._guarded(kind, lambda kind: self.sinks[kind].close())

    def _open(self, kind: str, folder: Path, from_step: int, settings: dict) -> None:
        if kind == "tensorboard":
            self.sinks[kind] = TensorBoard(folder / "tensorboard", from_step)
        else:
            self.sinks[kind] = Wandb(folder, settings)

    def _guarded(self, kind: str, action: Callable[..., None], *given: object) -> None:
        try:
            action(kind, *given)
        except Exception as error:  # whatever it is, a curve is not worth a run
            self.sinks.pop(kind, None)
            key = os.environ.get(WANDB_KEY)
            text = str(error).replace(key, "***") if key else str(error)
            self._warn(f"{kind} is switched off: {text}")


class TensorBoard:
    """Events below log/tensorboard."""

    def __init__(self, folder: Path, from_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and not needed without it

        self._board = SummaryWriter(str(folder), purge_step=from_step + 1)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._board.close()


class Wandb:
    """A run of the project "lockstep"; a resumed process continues it by the id noted in log/."""

    def __init__(self, folder: Path, settings: dict) -> None:
        import wandb

        note = folder / "wandb_run"
        known = note.read_text(encoding="ascii") if note.exists() else None
        name = settings["output"]
        self._run = wandb.init(
            project=PROJECT, name=name, id=known, resume="allow", dir=str(folder), config=settings
        )
        note.write_text(self._run.id, encoding="ascii")

    def write(self, step: int, numbers: dict[str, float]) -> None:
        self._run.log(numbers, step=step)

    def close(self) -> None:
        self._run.finish()


def cut_after(path: Path, step: int) -> None:
    """Drop rows after `step`, and a last line that a kill tore."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="ascii").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break
        if row["step"] > step:
            break
        kept.append(line + "\n")
    path.write_text("".join(kept), encoding="ascii")
