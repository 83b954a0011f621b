"""
Being asked to stop: SIGTERM means 75, Ctrl-C means 130, a second Ctrl-C means now (P31).

    with StopRequest() as stop:
        ... work, looking at stop.exit_code between units ...
"""

import os
import signal
import threading
from types import FrameType, TracebackType

PREEMPTED, INTERRUPTED = 75, 130


class StopRequest:
    """
    Remembers that somebody asked; handlers are installed in the main thread only and restored on leaving.
    """

    def __init__(self) -> None:
        self.exit_code = 0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.exit_code:
            os._exit(INTERRUPTED)
        self.exit_code = INTERRUPTED if number == signal.SIGINT else PREEMPTED
