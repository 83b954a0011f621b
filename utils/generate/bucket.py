"""
Requests or tokens per minute: a leaky bucket whose fill can be corrected when the true amount is known.

    bucket = Bucket(per_minute=600, burst_percent=15)      # 90 at once, then 10 a second
    grant = await bucket.take(1200)                        # reserve an estimate ...
    grant.settle(310)                                      # ... and pay what it was

In any span of t seconds no more than burst + t x per_minute / 60 goes out, where burst is
max(1, per_minute x burst_percent / 100); when much less was used than reserved and settled late, up to half a
burst more. One `take` may wait at a time: the caller keeps the line.
"""

import asyncio
from dataclasses import dataclass

from aiolimiter import AsyncLimiter

SMALLEST_CREDIT = 0.01


@dataclass
class Grant:
    """An amount taken from a bucket at a moment of the event loop's clock."""

    bucket: "Bucket"
    amount: float
    at: float

    def start(self) -> None:
        """Say that the call goes out only now, so that it counts as if it had been taken now."""
        self.bucket.make_up(self.amount, self.at)

    def settle(self, used: float) -> None:
        """Correct the amount to what was used; what exceeds a burst has leaked and is not given back."""
        self.bucket.owe(used - min(self.amount, max(used, self.bucket.burst)))
        self.amount = used


class Bucket:
    """
    Lets `per_minute` through, `burst_percent` of it at once.

    aiolimiter has no way to give back, so the difference between reserved and used is kept here and enters
    the next `take`: a debt is paid, a credit spent. A credit above the bucket's fill would allow more than a
    burst. So it is cut when the bucket has leaked below it, and stays below half a burst, while amounts go in
    parts of half a burst: whenever a part had to wait, the bucket is at least half full.
    """

    def __init__(self, per_minute: float, burst_percent: float) -> None:
        self.burst = max(1.0, per_minute * burst_percent / 100)
        self._per_second = per_minute / 60
        self._limiter = AsyncLimiter(self.burst, self.burst / self._per_second)
        self._owed = 0.0  # below 0: a credit

    async def take(self, amount: float) -> Grant:
        """Wait until the amount fits; amounts above the burst take as long as they must."""
        self._cut_credit()
        left = amount + max(0.0, self._owed)
        self._owed = min(0.0, self._owed)
        while left > 0:
            part = min(left, self.burst / 2)
            left -= part
            credit = min(part, -self._owed)
            self._owed += credit
            await self._limiter.acquire(part - credit)
        return Grant(self, amount, _now())

    def owe(self, amount: float) -> None:
        """Add to what the next `take` pays besides its own; a negative amount is a credit."""
        self._cut_credit()
        self._owed = max(self._owed + amount, -self.burst / 2)
        self._cut_credit()

    def make_up(self, amount: float, at: float) -> None:
        """Owe what has leaked out of an amount since it was taken, unless there was other fill to leak."""
        self._cut_credit()
        rest = max(0.0, self.burst - amount + min(0.0, self._owed))
        if self._limiter.has_capacity(rest):
            self.owe(min(amount, self._per_second * (_now() - at)))

    def _cut_credit(self) -> None:
        if self._owed < 0 and self._limiter.has_capacity(self.burst):
            self._owed = 0.0
        while self._owed < 0 and self._limiter.has_capacity(self.burst + self._owed + SMALLEST_CREDIT):
            self._owed = self._owed * 0.9 if self._owed < -SMALLEST_CREDIT else 0.0


def _now() -> float:
    return asyncio.get_running_loop().time()
