"""
Token bytes to text that may be shown: whole characters only, and nothing of a stop string, not even its
start.

    text = AnswerText(["###"])
    text.add(b"Hello #")      # "Hello ": what might begin a stop string is held back
    text.add(b"## bye")       # "", and text.stopped is true
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class AnswerText:
    """The text of one answer; `stopped` once a stop string was written, after which nothing more is shown."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self.stopped = False
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, data: bytes, final: bool = False) -> str:
        """
        What can be shown now. Bytes that are no UTF-8 become U+FFFD; `final` gives out what was held back.
        """
        if self.stopped:
            return ""
        self._held += self._decoder.decode(data, final)
        ends = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if ends:
            self.stopped = True
            shown, self._held = self._held[: min(ends)], ""
            return shown
        keep = 0 if final else self._possible_start()
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(shown) :]
        return shown

    def _possible_start(self) -> int:
        """Length of the longest end of the held text that a stop string begins with."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0
