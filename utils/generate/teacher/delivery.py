"""
A completion on its way to the client: whole or as a stream, intact or with one scheduled fault.

    await deliver(request, completion, asked, Drawn(delivery="cut"), headers={})
"""

import asyncio
import json
from typing import Any

from aiohttp import web

from utils.generate.teacher.asked import Asked
from utils.generate.teacher.completion import DONE, events, odd
from utils.generate.teacher.faults import Drawn

SLOW_PIECES = 8
_ERROR = {"error": {"message": "the model went away", "type": "server_error", "param": None, "code": None}}


async def deliver(
    request: web.BaseRequest,
    completion: dict[str, Any],
    asked: Asked,
    drawn: Drawn,
    headers: dict[str, str],
) -> web.StreamResponse:
    """Send a completion with the delivery fault that was drawn, if any."""
    fault = drawn.delivery
    if fault == "latency":
        await asyncio.sleep(drawn.amount / 1000 * (0.5 + drawn.luck))
    if fault == "drop":
        return _abort(request)
    if fault == "error-200":
        return json_response(_ERROR, headers=headers)
    if fault == "empty":
        completion["choices"] = []
    data = _stream_data(completion, asked, fault) if asked.stream else json.dumps(completion).encode()
    if fault == "truncate":
        data = data[: len(data) * 3 // 5]
    kind = "text/event-stream" if asked.stream else "application/json"
    if asked.stream or fault in ("cut", "slow"):
        return await _in_pieces(request, data, headers | {"Content-Type": kind}, drawn)
    return web.Response(body=data, content_type=kind, headers=headers)


def json_response(body: dict, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A whole JSON document."""
    return web.Response(
        body=json.dumps(body).encode(), status=status, content_type="application/json", headers=headers
    )


def _stream_data(completion: dict[str, Any], asked: Asked, fault: str) -> bytes:
    written = events(completion, asked.include_usage)
    if fault == "stream-error":
        written = [*written[: len(written) // 2], f"data: {json.dumps(_ERROR)}\n\n"]
    if fault == "stream-odd":
        written = [odd(event) for event in written]
    end = "" if fault in ("stream-error", "stream-no-done") else DONE
    return ("".join(written) + end).encode()


async def _in_pieces(
    request: web.BaseRequest, data: bytes, headers: dict[str, str], drawn: Drawn
) -> web.StreamResponse:
    """The data in two writes that care nothing for the ends of events; slow in more; cut in the middle."""
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    slow = drawn.delivery == "slow"
    size = max(1, -(-len(data) // (SLOW_PIECES if slow else 2)))
    for start in range(0, len(data), size):
        await response.write(data[start : start + size])
        if slow:
            await asyncio.sleep(drawn.amount / 1000 / SLOW_PIECES)
        if drawn.delivery == "cut":
            return _abort(request)
    await response.write_eof()
    return response


def _abort(request: web.BaseRequest) -> web.Response:
    """Close the connection without another word."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
