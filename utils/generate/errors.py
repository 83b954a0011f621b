"""
Why a call gave nothing: an outcome that the levels handle, not an error of the run.

    try:
        reply = await calls.ask(request)
    except CallFailed as failure:
        failures.add(unit, failure.reason, failure.excerpt)
"""


class CallFailed(Exception):
    """A call that was given up; `reason` is a short word, `excerpt` what was seen last, without any key."""

    def __init__(self, reason: str, excerpt: str, attempts: int) -> None:
        super().__init__(f"{reason} after {attempts} attempts: {excerpt}")
        self.reason, self.excerpt, self.attempts = reason, excerpt, attempts


class Draining(Exception):
    """The run is ending (a stop was asked for, or an error ended it): no new call starts."""


class BrokenReply(Exception):
    """A body or stream that came with status 200 and holds no reply; `reason` is a short word."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
