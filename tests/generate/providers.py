"""
Small HTTP servers that answer from a script, for tests of what talks to providers.

    provider = Provider(status(429, Retry_After="1"), good)
    reply = provider.use(lambda client: client.complete(BODY, model(), estimate_tokens=10))
"""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from utils.config.providers import LimitsSpec, ModelSpec, ProviderSpec
from utils.generate.client import ChatClient, open_clients
from utils.generate.keys import Key

KEY = "sk-planted/key+0123"
BODY = {"model": "m", "messages": [{"role": "user", "content": "What does a cow say?"}]}
GOOD = json.dumps(
    {
        "choices": [{"message": {"content": "moo"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 2, "completion_tokens": 1},
    }
)

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
"""Writes one answer; `Gone` drops the connection."""


class Gone(Exception):
    """The server hangs up."""


async def good(_: web.BaseRequest) -> web.StreamResponse:
    return web.Response(text=GOOD, content_type="application/json")


async def drop(_: web.BaseRequest) -> web.StreamResponse:
    raise Gone


def status(code: int, text: str = f"no, {KEY}", **headers: str) -> Answer:
    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=code, text=text, headers=named)

    return answer


def body(text: str | bytes, kind: str = "application/json") -> Answer:
    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        data = text.encode() if isinstance(text, str) else text
        return web.Response(body=data, headers={"Content-Type": kind})

    return answer


def cut(text: str) -> Answer:
    """Promise more bytes than come."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(text) + 10)})
        await response.prepare(request)
        await response.write(text.encode())
        raise Gone

    return answer


def slow(seconds: float, then: Answer = good) -> Answer:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return await then(request)

    return answer


def streamed(
    *pieces: bytes,
    seconds: float = 0.0,
    hang_up: bool = False,
    hang: float = 0.0,
    kind: str = "text/event-stream",
) -> Answer:
    """Send pieces with pauses; then hang up rudely, or only after a while."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": kind})
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
            await asyncio.sleep(seconds)
        await asyncio.sleep(hang)
        if hang_up:
            raise Gone
        return response

    return answer


@dataclass
class Seen:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: Any
    at: float


class Provider:
    """Answers chat completions from a script, the last entry for ever, and remembers what it saw."""

    def __init__(self, *script: Answer, models: Answer | None = None) -> None:
        self.script, self.models = list(script), models or status(404)
        self.seen: list[Seen] = []
        self.connections: set[int] = set()
        self.running = self.most_running = 0

    @property
    def calls(self) -> int:
        return len(self.chats)

    @property
    def chats(self) -> list[Seen]:
        return [seen for seen in self.seen if seen.path.endswith("/chat/completions")]

    @property
    def times(self) -> list[float]:
        return [seen.at for seen in self.chats]

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        data = await request.read()
        number = self.calls
        now = asyncio.get_running_loop().time()
        document = json.loads(data) if data else None
        self.seen.append(Seen(request.path, dict(request.headers), document, now))
        self.connections.add(id(request.transport))
        answer = self.script[min(number, len(self.script) - 1)]
        if request.path.endswith("/models"):
            answer = self.models
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            return await answer(request)
        except Gone:
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        finally:
            self.running -= 1

    @asynccontextmanager
    async def served(self) -> Any:
        """Serve in the running loop; the base URL."""
        runner = web.ServerRunner(web.Server(self.handle), shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
        await site.start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        finally:
            await runner.cleanup()

    @contextmanager
    def in_thread(self) -> Iterator[str]:
        """Serve in a thread, for callers that wait; the base URL."""
        loop, ready, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
        urls: list[str] = []

        async def serve() -> None:
            async with self.served() as url:
                urls.append(url)
                ready.set()
                await stop.wait()

        thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
        thread.start()
        ready.wait()
        try:
            yield urls[0]
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()
            loop.close()

    def use(self, work: Callable[[ChatClient], Awaitable], key: str = KEY, **spec: object) -> Any:
        """Run `work(client)` against this provider."""

        async def run() -> object:
            async with self.served() as url, opened(url, key, **spec) as client:
                return await work(client)

        return asyncio.run(run())


@dataclass(frozen=True)
class OneProvider:
    """As much of a config as clients need."""

    providers: dict[str, ProviderSpec]
    limits: LimitsSpec = LimitsSpec()


@asynccontextmanager
async def opened(
    url: str,
    key: str = KEY,
    limits: LimitsSpec | None = None,
    log: Callable[..., None] = lambda *_, **__: None,
    on_attempt: Callable[..., None] | None = None,
    **spec: object,
) -> Any:
    """The client of one provider at a URL."""
    provider = ProviderSpec(**{"base_url": url, "api_key_env": "PLANTED", "max_in_flight": 8} | spec)
    config = OneProvider({"p": provider}, limits or LimitsSpec())
    closing = asyncio.Event()
    async with open_clients(config, {"p": Key(key)}, {"p": url}, closing, log, on_attempt) as clients:
        yield clients["p"]


def model(**changes: object) -> ModelSpec:
    return ModelSpec(
        **{"provider": "p", "model": "m", "max_retries": 3, "max_backoff_seconds": 0.01} | changes
    )
