"""
A provider that fails every time is left alone for a while, then tried with one call at a time.

    breaker = Breaker("lab", log)
    probe = await breaker.admit()          # waits while the breaker is open; True for the one call that tries
    breaker.failed("timeout: no reply within 120 s", probe)

Opens after 20 failures without a reply between them, probes every 30 s. After ten failed probes (five
minutes) the provider counts as gone and the run stops; everything paid for is kept.
"""

import asyncio
from collections.abc import Callable

from utils.pipeline.errors import StageError

FAILURES_TO_OPEN = 20
PROBE_SECONDS = 30.0
PROBES_UNTIL_GONE = 10


class Breaker:
    """Counts failures in a row; `log(event, text, **fields)` hears of every change."""

    def __init__(self, provider: str, log: Callable[..., None]) -> None:
        self._provider, self._log = provider, log
        self._failures = self._probes = 0
        self._probe_at = 0.0  # event loop time of the next probe
        self._probing = False
        self._changed = asyncio.Event()
        self.open = False

    async def admit(self) -> bool:
        """Wait until a call may go out; True when it is the probe of an open breaker."""
        while self.open:
            self._changed.clear()
            wait = self._probe_at - asyncio.get_running_loop().time()
            if wait <= 0 and not self._probing:
                self._probing = True
                return True
            try:
                await asyncio.wait_for(self._changed.wait(), None if self._probing else wait)
            except TimeoutError:
                continue
        return False

    def answered(self) -> None:
        """The provider is there, whatever it said: every call may go out."""
        self._failures = self._probes = 0
        if self.open:
            self.open = False
            self._changed.set()
            self._say("answers again; calls go on")

    def failed(self, what: str, probe: bool) -> None:
        """An attempt failed. StageError when the provider is gone for good."""
        self._failures += 1
        if probe:
            self._probe_failed(what)
        elif not self.open and self._failures >= FAILURES_TO_OPEN:
            self.open = True
            self._wait_for_probe()
            self._say(f"failed {self._failures} times in a row ({what}); next try in {PROBE_SECONDS:g} s")

    def probe_ended(self) -> None:
        """The probe came to an end, whatever it was: another may go out when it is time."""
        self._probing = False
        self._changed.set()

    def _probe_failed(self, what: str) -> None:
        self._probes += 1
        if self._probes >= PROBES_UNTIL_GONE:
            raise StageError(
                f'provider "{self._provider}" is gone: {self._failures} attempts in a row failed, the last '
                f"{self._probes} of them {PROBE_SECONDS:g} s apart; the last with {what}",
                fix="check the address and the service; the same command continues",
            )
        self._wait_for_probe()
        self._say(f"probe {self._probes} of {PROBES_UNTIL_GONE} failed ({what}); next in {PROBE_SECONDS:g} s")

    def _wait_for_probe(self) -> None:
        self._probe_at = asyncio.get_running_loop().time() + PROBE_SECONDS

    def _say(self, text: str) -> None:
        state = "open" if self.open else "closed"
        self._log("breaker", f'provider "{self._provider}" {text}', provider=self._provider, state=state)
