"""
What to do after a failed attempt: try again and when, give the call up, or stop the run.

    >>> verdict_on(503)
    'retry'
    >>> asked_pause_seconds(429, {"x-ratelimit-reset-requests": "6m0s"})
    360.0
"""

import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Literal

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
FORBIDDEN = frozenset({401, 403})
THROTTLED = frozenset({429, 503, 529})
"""The provider is there and has too much to do: fewer calls at the same time may help."""
BASE_SECONDS = 1.0
_RESETS = ("requests", "tokens")
_UNIT_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)(d|h|ms|us|ns|m|s)")
_EPOCH_FROM = 1e8  # numbers from here on are moments (1973 and later), below they are seconds to wait
_MILLISECONDS_FROM = 1e11


@dataclass(frozen=True)
class Failure:
    """One failed attempt. `status` is 0 when no answer came; `excerpt` holds no key."""

    reason: str
    excerpt: str
    retry: bool
    status: int = 0
    asked_seconds: float | None = None

    @property
    def throttled(self) -> bool:
        return self.status in THROTTLED

    @property
    def provider_is_down(self) -> bool:
        """Whether the provider, not the call, is at fault; a 429 shows that it is well."""
        return self.retry and self.status != 429


def verdict_on(status: int) -> Literal["good", "retry", "forbidden", "refused"]:
    """`forbidden` ends the run (no other call would fare better), `refused` ends the call."""
    if status == 200:
        return "good"
    if status in RETRIED:
        return "retry"
    return "forbidden" if status in FORBIDDEN else "refused"


def asked_pause_seconds(status: int, headers: Mapping[str, str], now: float | None = None) -> float | None:
    """
    How long the server asks us to wait, in seconds; None when it does not say.

    `Retry-After` (seconds or date) counts for every status; `x-ratelimit-reset-requests` and `-tokens` only
    for a throttled call (many servers send them with each answer), and the one whose `remaining` is 0 first.
    `now` is in seconds since 1970.
    """
    moment = time.time() if now is None else now
    asked = _retry_after(headers.get("Retry-After", ""), moment)
    if asked is not None or status not in THROTTLED:
        return asked
    used_up = [name for name in _RESETS if headers.get(f"x-ratelimit-remaining-{name}", "").strip() == "0"]
    texts = [headers.get(f"x-ratelimit-reset-{name}", "") for name in used_up or _RESETS]
    found = [seconds for text in texts if (seconds := seconds_of(text, moment)) is not None]
    return max(found, default=None)


def seconds_of(text: str, now: float) -> float | None:
    """Seconds from now in "1s", "6m0s", "250ms", "12.5", or a moment in (milli)seconds since 1970."""
    text = text.strip().lower()
    spans = _SPAN.findall(text)
    if spans and "".join(number + unit for number, unit in spans) == text:
        return sum(float(number) * _UNIT_SECONDS[unit] for number, unit in spans)
    number = _number(text)
    if number is None or number < _EPOCH_FROM:
        return number
    return max(0.0, (number / 1000 if number >= _MILLISECONDS_FROM else number) - now)


def pause_seconds(attempt: int, asked: float | None, longest: float, rng: random.Random) -> float:
    """Full-jitter exponential backoff after attempt 0, 1, ...; what the server asked for wins."""
    if asked is not None:
        return asked
    return rng.uniform(0, min(longest, BASE_SECONDS * 2**attempt))


def _retry_after(text: str, now: float) -> float | None:
    number = _number(text)
    if number is not None:
        return number
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, moment.timestamp() - now)


def _number(text: str) -> float | None:
    """A finite number, not below 0."""
    try:
        number = float(text)
    except ValueError:
        return None
    return max(0.0, number) if abs(number) < float("inf") else None
