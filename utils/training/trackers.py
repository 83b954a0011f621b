"""
Where the curves go: log/metrics.jsonl always, TensorBoard events on request. Only rank 0 has sinks.

    trackers = Trackers(stage.partial / "log", ["tensorboard"], from_step=200)
    trackers.write(201, {"loss": 3.4, "step_ms": 912.0})

Nothing here is an output of the stage; a sink that fails is switched off with one line and never stops a run.
"""

import json
from collections.abc import Callable
from pathlib import Path


class Trackers:
    """Appends one row per step; on resume, rows after `from_step` are cut off first."""

    def __init__(self, folder: Path, kinds: list[str], from_step: int, warn: Callable[[str], None]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._warn = folder / "metrics.jsonl", warn
        _cut_after(self._path, from_step)
        self._board = None
        if "tensorboard" in kinds:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and not needed without it

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=from_step + 1)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """One row to every sink."""
        with open(self._path, "a", encoding="ascii") as file:
            file.write(json.dumps({"step": step} | numbers) + "\n")
        try:
            for name, value in numbers.items():
                if self._board:
                    self._board.add_scalar(name, value, step)
        except OSError as error:
            self._board = None
            self._warn(f"tensorboard is switched off: {error}")

    def close(self) -> None:
        if self._board:
            self._board.close()


def _cut_after(path: Path, step: int) -> None:
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
