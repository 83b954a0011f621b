"""
What to do after a failed attempt: try again and when, give the call up, or stop the run.

    >>> verdict_on(503)
    'retry'
"""

import random
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
FORBIDDEN = frozenset({401, 403})
BASE_SECONDS = 1.0


def verdict_on(status: int) -> Literal["good", "retry", "forbidden", "refused"]:
    """`forbidden` ends the run (no other call would fare better), `refused` ends the call."""
    if status == 200:
        return "good"
    if status in RETRIED:
        return "retry"
    return "forbidden" if status in FORBIDDEN else "refused"


def asked_pause_seconds(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """What `Retry-After` asks for, given as seconds or as a date; None when it is absent or unreadable."""
    text = headers.get("Retry-After", "").strip()
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())


def pause_seconds(attempt: int, asked: float | None, longest: float, rng: random.Random) -> float:
    """Full-jitter exponential backoff after attempt 0, 1, ...; what the server asked for wins."""
    if asked is not None:
        return asked
    return rng.uniform(0, min(longest, BASE_SECONDS * 2**attempt))
