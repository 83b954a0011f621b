"""
Connections and bodies: one session for all providers, and a reply read from a response, whole or streamed.

    async with open_session(in_flight=1024) as session, session.post(url, data=body) as response:
        reply = await receive(response, stream=False, most_bytes=4 * 1024 * 1024)
"""

import asyncio
import gc
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress

import aiohttp

from utils.generate.errors import BrokenReply
from utils.generate.reply import Reply, read_reply
from utils.generate.sse import EventReader, StreamedReply
from utils.pipeline.errors import ConfigError

SPARE_FILES = 128
EXCERPT_BYTES = 64 * 1024
"""How much of a body that is no reply is looked at."""
COLLECT_AFTER = (50_000, 20, 100)
AFTER_END_SECONDS = 0.2
"""How long a stream may take to close after [DONE] for its connection to be used again."""


def open_session(in_flight: int) -> aiohttp.ClientSession:
    """A session with keep-alive, as many connections as calls may be in flight, and no memory of cookies."""
    connector = aiohttp.TCPConnector(limit=in_flight, ttl_dns_cache=300)
    return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())


def allow_open_files(in_flight: int) -> None:
    """Raise this process's limit of open files as far as connections need it. ConfigError when it may not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = in_flight + SPARE_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise ConfigError(
            f"{in_flight:,} calls in flight need {wanted:,} open files, and this machine allows {hard:,}",
            fix=f"lower max_in_flight, or raise the limit (ulimit -Hn {wanted})",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextmanager
def rare_collections() -> Iterator[None]:
    """
    Look for garbage cycles less often, and not among what is loaded already.

    With 1,024 calls in flight the collector walks over what belongs to them again and again, which is a third
    of the processor time of a call (0.245 ms, and 0.16 without).
    """
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


async def receive(response: aiohttp.ClientResponse, stream: bool, most_bytes: int) -> Reply:
    """
    The reply in a response with status 200; `stream` says what was asked for, the response what it is.

    BrokenReply: "broken_reply", "truncated", "error_in_reply", "error_in_stream", or "too_large" for more
    than `most_bytes`. Whatever aiohttp raises, unless the reply was complete by then.
    """
    kind = response.headers.get("Content-Type", "")
    if "event-stream" in kind or (stream and "json" not in kind):
        return await _receive_stream(response.content, most_bytes)
    body = b"".join([piece async for piece in _pieces(response.content, most_bytes)])
    try:
        return read_reply(body)
    except BrokenReply as broken:
        seen = body[:EXCERPT_BYTES].decode("utf-8", "replace")
        raise BrokenReply(broken.reason, seen or "an empty body") from None


async def beginning(response: aiohttp.ClientResponse) -> str:
    """The beginning of an error's body, "" when it does not come."""
    body = b""
    with suppress(BrokenReply, aiohttp.ClientError, OSError):  # the status says enough
        async for piece in _pieces(response.content, EXCERPT_BYTES):
            body += piece
    return body.decode("utf-8", "replace")


async def _receive_stream(content: aiohttp.StreamReader, most_bytes: int) -> Reply:
    events, reply = EventReader(), StreamedReply()
    try:
        async for piece in _pieces(content, most_bytes):
            for data in events.feed(piece):
                reply.add(data)
            if reply.ended:
                await _read_to_end(content)
                return reply.reply()
    except (aiohttp.ClientError, OSError):
        if not reply.complete:
            raise
    if not reply.complete:
        for data in events.close():
            reply.add(data)
    return reply.reply()


async def _read_to_end(content: aiohttp.StreamReader) -> None:
    """Let the response end, so that its connection can be used again; one that does not is closed."""
    with suppress(aiohttp.ClientError, OSError):
        async with asyncio.timeout(AFTER_END_SECONDS):
            while await content.readany():
                pass


async def _pieces(content: aiohttp.StreamReader, most_bytes: int) -> AsyncIterator[bytes]:
    size = 0
    while piece := await content.readany():
        size += len(piece)
        if size > most_bytes:
            raise BrokenReply("too_large", f"the reply has more than {most_bytes:,} bytes")
        yield piece
