"""
`log/requests.jsonl`: one line for each attempt, for those who ask for it. No texts, no keys.

    {"seconds": 12.031, "model": "big-1", "status": "200", "took": 0.82, "tokens": 91}
"""

import json
import time
from pathlib import Path


class RequestsLog:
    """Takes the attempts of one run; `seconds` count from its start. Several runs follow each other."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a", encoding="ascii")  # noqa: SIM115 - closed by close()
        self._started = time.monotonic()

    def attempt(self, model: str, status: str, seconds: float, tokens: int) -> None:
        """Note one attempt: its status or what went wrong, how long it took, tokens of its reply."""
        since = round(time.monotonic() - self._started, 3)
        line = {
            "seconds": since,
            "model": model,
            "status": status,
            "took": round(seconds, 3),
            "tokens": tokens,
        }
        self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        self._file.close()
