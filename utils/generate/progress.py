"""
How far a run is: a live line on a terminal, otherwise a line every ten seconds.

    progress = Progress(datasets, calls, clients, budget, log)
    progress.tell(now)
    # chat 812 of 1,000; 41.2 rows/s; 64 in flight of 64, 12 waiting; 1.2M tokens; 4.5 minutes left
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from utils.generate.budget import Budget
from utils.generate.client import ChatClient
from utils.generate.dataset import Dataset

LINE_SECONDS = 10.0
LIVE_SECONDS = 0.25
RATE_SECONDS = 30.0


class Progress:
    """Tells how far the datasets of a run are."""

    def __init__(
        self,
        datasets: Sequence[Dataset],
        clients: Mapping[str, ChatClient],
        budget: Budget,
        log: Callable[..., None],
        live: bool | None = None,
    ) -> None:
        self._datasets, self._clients, self._budget, self._log = datasets, clients, budget, log
        self._live = sys.stdout.isatty() if live is None else live
        self._display = None
        self._told = time.monotonic()
        self._points = deque([(self._told, self._done)])

    def tell(self) -> None:
        """Say it, if it is time."""
        now = time.monotonic()
        if now - self._told < (LIVE_SECONDS if self._live else LINE_SECONDS):
            return
        self._told = now
        self._points.append((now, self._done))
        while self._points[0][0] < now - RATE_SECONDS:
            self._points.popleft()
        if self._live:
            self._show()
        else:
            self._log("progress", self.line(), **self.fields())

    def close(self) -> None:
        if self._display:
            self._display.stop()

    @property
    def _done(self) -> int:
        return sum(dataset.finished for dataset in self._datasets)

    @property
    def rate(self) -> float:
        """Rows per second over the last half minute."""
        if len(self._points) < 2:
            return 0.0
        (since, before), (now, done) = self._points[0], self._points[-1]
        return (done - before) / (now - since)

    def fields(self) -> dict[str, object]:
        """The same as the line, for the log."""
        gates = [client.gate for client in self._clients.values()]
        return {
            "rows": {dataset.name: dataset.finished for dataset in self._datasets},
            "rows_per_second": round(self.rate, 2),
            "in_flight": sum(gate.in_flight for gate in gates),
            "limit": sum(gate.limit for gate in gates),
            "waiting": sum(gate.waiting for gate in gates),
            "tokens": self._budget.total.tokens,
            "cost": round(self._budget.total.cost, 4),
        }

    def line(self) -> str:
        """One line for people."""
        fields = self.fields()
        parts = [", ".join(f"{d.name} {d.finished:,} of {d.num_rows:,}" for d in self._datasets)]
        parts.append(f"{self.rate:.1f} rows/s")
        parts.append(f"{fields['in_flight']} in flight of {fields['limit']}, {fields['waiting']} waiting")
        cost = f", cost {fields['cost']:g}" if fields["cost"] else ""
        parts.append(f"{fields['tokens']:,} tokens{cost}")
        left = sum(max(0, d.num_rows - d.finished) for d in self._datasets)
        if self.rate > 0 and left:
            parts.append(f"{_duration(left / self.rate)} left")
        failing = [f"{name}: {c.last_failure}" for name, c in self._clients.items() if c.last_failure]
        return "; ".join(parts + (["last failure of " + ", ".join(failing)] if failing else []))

    def _show(self) -> None:
        from rich.live import Live
        from rich.text import Text

        if self._display is None:
            self._display = Live(auto_refresh=False, transient=True)
            self._display.start()
        self._display.update(Text(self.line(), overflow="ellipsis", no_wrap=True), refresh=True)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
