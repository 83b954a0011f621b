"""
Being asked to stop: SIGTERM means 75, Ctrl-C means 130, a second one of either means now (P31).

    with StopRequest() as stop:
        ... work, looking at stop.exit_code between units ...
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from utils.pipeline.errors import Stopped

PREEMPTED, INTERRUPTED = 75, 130
SAME_REQUEST_SECONDS = 1.0
"""SIGTERM within this time is the same request again: a launcher passes on what the process group got too."""
Handler = Callable[[int, FrameType | None], None]


@contextmanager
def handled(handler: Handler) -> Iterator[None]:
    """
    Call `handler` for SIGTERM and Ctrl-C meanwhile; outside the main thread, which alone may ask for them,
    nothing.
    """
    previous = {}
    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def stop_at_once(number: int, frame: FrameType | None) -> None:
    """A handler for programs that have nothing in hand: raises Stopped where they are."""
    raise Stopped(code_of_signal(number))


def code_of_signal(number: int) -> int:
    return INTERRUPTED if number == signal.SIGINT else PREEMPTED


class StopRequest:
    """
    Remembers that somebody asked, and when; the handlers are those of before again on leaving.
    """

    def __init__(self) -> None:
        self.exit_code = 0
        self.asked_at = 0.0  # on the monotonic clock
        self._handling = handled(self._handle)

    def __enter__(self) -> "StopRequest":
        self._handling.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._handling.__exit__(kind, error, trace)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = self.exit_code and time.monotonic() - self.asked_at > SAME_REQUEST_SECONDS
        if again or (number == signal.SIGINT and self.exit_code):
            os._exit(code_of_signal(number))
        self.exit_code, self.asked_at = code_of_signal(number), self.asked_at or time.monotonic()
