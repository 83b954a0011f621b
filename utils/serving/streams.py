"""
Server-sent events to one client: nothing is sent before there is something to say, and nobody waits for ever.

    async with Stream(request, idle_seconds=30) as stream:
        await stream.write(event({...}))        # the first write sends status and headers
        return await stream.end()

What goes wrong before the first write is an error like any other; later it becomes an event, and the stream
breaks off without `[DONE]`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aiohttp import web

from utils.serving.asked import BadRequest
from utils.serving.door import ignored_header
from utils.serving.objects import event


class Stream:
    """ConnectionError from `write` when the client is gone, or has taken nothing for `idle_seconds`."""

    def __init__(self, request: web.Request, idle_seconds: float, ignored: Sequence[str] = ()) -> None:
        self._request, self._idle_seconds = request, idle_seconds
        headers = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store"}
        if ignored:
            headers["x-lockstep-ignored"] = ignored_header(list(ignored))
        self._response = web.StreamResponse(headers=headers)

    async def write(self, data: bytes) -> None:
        """Send one or more events."""
        try:
            async with asyncio.timeout(self._idle_seconds):
                if not self._response.prepared:
                    await self._response.prepare(self._request)
                await self._response.write(data)
        except TimeoutError:
            if self._request.transport:
                self._request.transport.abort()  # what waits in its buffer will never be taken
            raise ConnectionResetError("the client takes nothing") from None

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, BadRequest) and self._response.prepared:
            await self.write(event(error.document))
            self._drop()
            raise ConnectionResetError(str(error)) from error

    async def end(self, last: bytes = b"") -> web.StreamResponse:
        """Send the last event and `[DONE]`, and close the stream."""
        await self.write(last + event("[DONE]"))
        await self._response.write_eof()
        return self._response

    def _drop(self) -> None:
        if self._request.transport:
            self._request.transport.close()
