"""
Logging: every event is one line for people on the terminal and one JSON line in a file.

    log = Log("40_pack_dataset")
    log.event("padding", "0.24 % of the ids are padding", fraction=0.0024)
"""

import json
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path

LEVELS = ("debug", "info", "warning", "error")
STAGE_COLUMN = 23
EVENT_COLUMN = 10


class Log:
    """Writes events of one stage; `path` (set once a build folder exists) takes the JSON lines."""

    def __init__(
        self, stage: str, level: str = "info", path: Path | None = None, quiet: bool = False
    ) -> None:
        self.stage = stage
        self.path = path
        self._threshold = LEVELS.index(level)
        self._quiet = quiet
        self._live_line = False

    def event(
        self, event: str, message: str = "", level: str = "info", live: bool = False, **fields: object
    ) -> None:
        """
        One human line, `stage  event  message` (or the fields when there is no message), and its JSON
        twin. On a terminal the next line takes the place of a `live` one.
        """
        if self._quiet:
            return
        if LEVELS.index(level) >= self._threshold:
            text = message or "  ".join(f"{name} {_human(value)}" for name, value in fields.items())
            self._show(f"{self.stage:<{STAGE_COLUMN}}{event:<{EVENT_COLUMN}} {text}".rstrip(), live)
        row = {"event": event, "stage": self.stage, "level": level} | (
            {"message": message} if message else {}
        )
        self._append(row | fields)

    def error(self, text: str, event: str, **fields: object) -> None:
        """A refusal or failure: the text on stderr after `error: `, and its JSON twin."""
        if self._quiet:
            return
        self._clear()
        print(f"error: {text}", file=sys.stderr, flush=True)
        self._append({"event": event, "stage": self.stage, "level": "error"} | fields)

    def _show(self, line: str, live: bool) -> None:
        self._clear()
        self._live_line = live and sys.stderr.isatty()
        if self._live_line:
            print(line[: shutil.get_terminal_size().columns - 1], end="", file=sys.stderr, flush=True)
        if not self._live_line or not sys.stdout.isatty():  # a file keeps every line
            print(line, flush=True)

    def _clear(self) -> None:
        if self._live_line:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        self._live_line = False

    def _append(self, row: dict) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"time": utc_now()} | row, ensure_ascii=True, default=str)
        with open(self.path, "a", encoding="ascii") as file:
            file.write(line + "\n")


def utc_now() -> str:
    """UTC with seconds, as manifests write it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _human(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
