"""
An event loop whose time passes at once: minutes of limits and pauses take milliseconds to test.

    assert run_at_once(asyncio.sleep(3600, "done")) == "done"
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any

TICK = 1e-9
"""Time that passes all the same: what waits for the last bit of a float would wait for ever."""


class _Hurry(selectors.DefaultSelector):
    """Waits for nothing: a timeout moves the clock instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list:
        found = super().select(0)
        if not found:
            assert timeout is not None, "nothing will ever happen: everybody waits for everybody"
            self.now += max(TICK, timeout)
        return found


class InstantLoop(asyncio.SelectorEventLoop):
    """`time()` is the sum of all timeouts so far."""

    def __init__(self) -> None:
        self._hurry = _Hurry()
        super().__init__(self._hurry)

    def time(self) -> float:
        return self._hurry.now


def run_at_once(work: Coroutine[Any, Any, Any]) -> Any:
    """Run without sockets or threads; a deadlock is an AssertionError."""
    loop = InstantLoop()
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(work)
    finally:
        asyncio.set_event_loop(None)
        loop.close()
