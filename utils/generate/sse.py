"""
Server-sent events of a streamed completion: bytes in any pieces -> events -> one reply.

    events, reply = EventReader(), StreamedReply()
    for data in events.feed(b'data: {"choices": [{"delta": {"content": "moo"}}]}\\n\\n'):
        reply.add(data)

Source: the event stream format of the HTML standard, https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import json
from collections.abc import Mapping

from utils.generate.errors import BrokenReply
from utils.generate.reply import Reply, make_reply, stated_thinking, text_of

END = b"[DONE]"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventReader:
    """Splits a stream into the data of its events; other fields and comments are passed over."""

    def __init__(self) -> None:
        self._begun: list[bytes] = []  # pieces of a line whose end has not come yet
        self._data: list[bytes] = []  # data lines of the event under way
        self._first = True
        self._after_return = False  # the last piece ended with \r, so a \n now belongs to it

    def feed(self, piece: bytes) -> list[bytes]:
        """The events that this piece completes."""
        if self._after_return and piece:
            piece = piece.removeprefix(b"\n")
            self._after_return = False
        self._after_return = self._after_return or piece.endswith(b"\r")
        if b"\r" in piece:
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if b"\n" not in piece:
            self._begun.append(piece)
            return []
        *lines, rest = (b"".join(self._begun) + piece).split(b"\n")
        self._begun = [rest]
        return [data for line in lines if (data := self._line(line)) is not None]

    def close(self) -> list[bytes]:
        """The event that a stream left open, when it ended without the blank line."""
        lines = [b"".join(self._begun), b""]
        self._begun = []
        return [data for line in lines if (data := self._line(line)) is not None]

    def _line(self, line: bytes) -> bytes | None:
        if self._first:
            self._first, line = False, line.removeprefix(_BYTE_ORDER_MARK)
        if line.startswith(b"data"):
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" "))
        elif not line and self._data:
            data, self._data = b"\n".join(self._data), []
            return data
        return None


class StreamedReply:
    """Puts the pieces of a streamed completion together."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._thoughts: list[str] = []
        self._usage: object = None
        self._finish_reason = ""
        self._begun = False
        self.ended = False  # [DONE] came

    @property
    def complete(self) -> bool:
        """Whether all was said: the model's finish_reason came, or [DONE] after at least one choice."""
        return bool(self._finish_reason) or (self.ended and self._begun)

    def add(self, data: bytes) -> None:
        """Take one event. BrokenReply when it is no JSON object or tells of an error."""
        if data.strip() == END:
            self.ended = True
            return
        try:
            self._take(json.loads(data))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise BrokenReply("broken_reply", data[:1000].decode("utf-8", "replace")) from None

    def reply(self) -> Reply:
        """The reply so far. BrokenReply when the stream ended before the model did."""
        if not self.complete:
            raise BrokenReply("truncated", f"the stream ended after {len(self._content)} pieces, unfinished")
        return make_reply("".join(self._content), "".join(self._thoughts), self._finish_reason, self._usage)

    def _take(self, document: Mapping) -> None:
        if error := document.get("error"):
            raise BrokenReply("error_in_stream", json.dumps(error))
        self._usage = document.get("usage") or self._usage
        for choice in document.get("choices") or ():
            if choice.get("index", 0) == 0:
                self._take_choice(choice)

    def _take_choice(self, choice: Mapping) -> None:
        if error := choice.get("error"):
            raise BrokenReply("error_in_stream", json.dumps(error))
        delta = choice.get("delta") or {}
        said, thought = text_of(delta.get("content"))
        self._content.append(said)
        self._thoughts += [stated_thinking(delta), thought]
        self._finish_reason = choice.get("finish_reason") or self._finish_reason
        self._begun = True
