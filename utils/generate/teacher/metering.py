"""
What the teacher counts, and how many requests it lets in.

    meter.report()["served"]                    # answers given
    RateLimit(600).seconds_to_wait(now=0.0)     # 0.0: come in
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

BURST_SHARE = 0.25
"""Share of a minute's requests that may arrive at once."""


@dataclass
class Meter:
    """Counts per model: served, repeated (a body that was answered before), failed, tokens; who came when."""

    models: dict[str, Counter[str]] = field(default_factory=dict)
    attempts: list[tuple[float, str, str, str]] = field(default_factory=list)
    active: int = 0
    most_active: int = 0
    _seen: set[bytes] = field(default_factory=set)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """A request is being answered."""
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        try:
            yield
        finally:
            self.active -= 1

    def served(self, model: str, call: bytes, usage: dict[str, Any]) -> None:
        """An answer has been made for a call."""
        counts = self.models.setdefault(model, Counter())
        counts["served"] += 1
        counts["repeated"] += call in self._seen
        counts["prompt_tokens"] += usage["prompt_tokens"]
        counts["completion_tokens"] += usage["completion_tokens"]
        self._seen.add(call)

    def failed(self, model: str) -> None:
        """A request has been refused, or its answer was broken on purpose."""
        self.models.setdefault(model, Counter())["failed"] += 1

    def came(self, seconds: float, model: str, outcome: str, call: bytes) -> None:
        """A call came `seconds` after the server's start; `outcome` is a status or a fault."""
        self.attempts.append((round(seconds, 4), model, outcome, call.hex()[:16]))

    def report(self, with_attempts: bool = False) -> dict[str, Any]:
        """Totals, the same per model, the most requests at a time, and on demand every attempt in order."""
        names = ("served", "repeated", "failed", "prompt_tokens", "completion_tokens")
        per_model = {model: {name: counts[name] for name in names} for model, counts in self.models.items()}
        totals = {name: sum(counts[name] for counts in per_model.values()) for name in names}
        found = totals | {"max_concurrent": self.most_active, "models": per_model}
        return found | {"attempts": self.attempts} if with_attempts else found


@dataclass
class RateLimit:
    """A bucket of requests that fills evenly, `per_minute` in a minute; at the start it is full."""

    per_minute: int
    _left: float = field(init=False)
    _at: float = 0.0

    def __post_init__(self) -> None:
        self.capacity = max(1.0, BURST_SHARE * self.per_minute)
        self._left = self.capacity

    def seconds_to_wait(self, now: float) -> float:
        """0 and a place less, or the seconds until there is a place again."""
        per_second = self.per_minute / 60
        self._left = min(self.capacity, self._left + (now - self._at) * per_second)
        self._at = now
        if self._left >= 1:
            self._left -= 1
            return 0.0
        return (1 - self._left) / per_second

    def headers(self, wait: float) -> dict[str, str]:
        """The headers that tell a client where it stands, with Retry-After when it must wait."""
        full_in = (self.capacity - self._left) / (self.per_minute / 60)
        told = {
            "x-ratelimit-limit-requests": str(self.per_minute),
            "x-ratelimit-remaining-requests": str(int(self._left)),
            "x-ratelimit-reset-requests": f"{full_in:.3f}s",
        }
        return told | {"Retry-After": f"{wait:.3f}"} if wait else told
