"""
Who may come in, and how every refusal looks: Host and Origin headers, the key, the size and pace of a body.

    middlewares(service, Door(hosts=frozenset({"localhost"}), key=""))

No error tells a path, a stack or a prompt; the key is compared in constant time and never written anywhere.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import sys
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web

from utils.serving.asked import BadRequest, Body
from utils.serving.service import Service

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Door:
    """`hosts` are names that the Host header may have, lower case; `key` "" asks for none."""

    hosts: frozenset[str]
    key: str = field(default="", repr=False)
    origin: str = ""

    def check(self, request: web.Request) -> None:
        """BadRequest for a caller that may not come in: 403 or 401."""
        if _host_name(request.headers.get("Host", "")) not in self.hosts:
            raise BadRequest(403, "this server does not answer to that Host header", code="host_not_allowed")
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.key and not hmac.compare_digest(given.encode(), self.key.encode()):
            raise BadRequest(401, "the API key is missing or wrong", code="invalid_api_key")


def _host_name(header: str) -> str:
    """The name in a Host header, without the port: `[::1]:80` is `::1`."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()


def middlewares(service: Service, door: Door) -> list[Callable]:
    """In the order in which a request meets them."""

    @web.middleware
    async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            response = await handler(request)
        except BadRequest as refused:
            service.say(f"{request.method} {request.path}  {refused.status}  {refused}")
            response = json_response(refused.document, refused.status, headers=refused.headers)
        except web.HTTPException as refused:
            response = _translated(refused)
        except (ConnectionError, asyncio.CancelledError):
            service.say(f"{request.method} {request.path}  the client went away")
            raise
        except Exception:
            traceback.print_exc(file=sys.stderr)
            response = json_response(BadRequest(500, "the server failed; its own log says why").document, 500)
        _allow_origin(door, request, response)
        return response

    @web.middleware
    async def enter(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method == "OPTIONS" and door.origin:
            return web.Response(status=204)
        door.check(request)
        if request.method == "POST":
            await _receive(request, service.limits.idle_seconds)
        return await handler(request)

    return [errors, enter]


async def _receive(request: web.Request, seconds: float) -> None:
    """Read the body, which `request.read()` then has at once."""
    try:
        await asyncio.wait_for(request.read(), seconds)
    except TimeoutError:
        raise BadRequest(408, f"the body did not arrive within {seconds:g} s") from None


def _translated(refused: web.HTTPException) -> web.Response:
    texts = {404: "there is no such route", 405: "this route does not take that method"}
    text = texts.get(refused.status, refused.reason)
    if refused.status == 413:
        text = "the body is larger than this server takes"
    return json_response(BadRequest(refused.status, text).document, refused.status)


def _allow_origin(door: Door, request: web.Request, response: web.StreamResponse) -> None:
    if door.origin and request.headers.get("Origin") == door.origin and not response.prepared:
        response.headers["Access-Control-Allow-Origin"] = door.origin
        response.headers["Access-Control-Allow-Headers"] = "Authorization, Content-Type"
        response.headers["Access-Control-Allow-Methods"] = "GET, POST"


def json_response(
    document: dict, status: int = 200, headers: dict[str, str] | None = None, asked: Body | None = None
) -> web.Response:
    """A JSON answer; `asked` tells which fields of its request were not read."""
    text = json.dumps(document, ensure_ascii=False).encode("utf-8", "replace")
    response = web.Response(body=text, status=status, headers=headers, content_type="application/json")
    if asked and asked.ignored:
        response.headers["x-lockstep-ignored"] = ignored_header(asked.ignored)
    return response


def ignored_header(names: list[str]) -> str:
    """Names of fields as a header can carry them."""
    plain = ("".join(c for c in name if c.isascii() and c.isprintable())[:64] for name in names[:32])
    return ", ".join(plain)
