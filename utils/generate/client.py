"""
One provider's chat completions: limited, retried, streamed or not, never telling the key.

    async with open_clients(config, keys, addresses, closing, log) as clients:
        reply = await clients["lab"].complete(body, model, estimate_tokens=1200)

Retried: transport errors, timeouts, 408, 409, 425, 429, 500, 502-504, 520-524, 529, broken JSON in a 200,
empty choices, streams that break off or tell of an error. The first 401 or 403 stops the run. The deadline
starts when an attempt is sent, and every retry goes through the limits again.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

import aiohttp
from yarl import URL

from utils.config.providers import LimitsSpec, ModelSpec, ProviderSpec
from utils.generate.errors import BrokenReply, CallFailed, Draining
from utils.generate.keys import Key
from utils.generate.limits import Gate, Ticket
from utils.generate.reply import Reply, with_guessed_counts
from utils.generate.retry import Failure, asked_pause_seconds, pause_seconds, verdict_on
from utils.generate.transport import allow_open_files, beginning, open_session, rare_collections, receive
from utils.pipeline.errors import StageError

EXCERPT_CHARACTERS = 300
CONNECT_SECONDS = 30.0
SAME_MOMENT_SECONDS = 10.0
MOST_FAILED_CALLS_IN_A_ROW = 20
"""Calls given up one after another, without a reply between them, before the run stops."""

Log = Callable[..., None]
"""`log(event, text, **fields)`: what a person should know."""
OnAttempt = Callable[[str, str, float, int], None]
"""Hears of each attempt: model, "200" or what went wrong, seconds, tokens. No texts, no keys."""


class Endpoints(Protocol):
    """The part of a config that clients are opened from."""

    @property
    def providers(self) -> Mapping[str, ProviderSpec]: ...

    @property
    def limits(self) -> LimitsSpec: ...


@dataclass
class ChatClient:
    """Calls one provider. Set `closing` to start no further attempt: callers then get Draining."""

    name: str
    base_url: str
    key: Key
    provider: ProviderSpec
    limits: LimitsSpec
    session: aiohttp.ClientSession = field(repr=False)
    gate: Gate = field(repr=False)
    closing: asyncio.Event = field(repr=False)
    log: Log = field(repr=False)
    on_attempt: OnAttempt | None = field(default=None, repr=False)
    last_failure: str = ""  # what the latest failed attempt met; "" again after a reply
    uncounted: set[str] = field(default_factory=set)  # models that report no token counts: theirs are guessed

    def __post_init__(self) -> None:
        self._url = URL(self.base_url.rstrip("/") + "/chat/completions")
        self._headers = {**self.provider.headers, "Content-Type": "application/json"}
        self._headers |= self.key.headers(self.provider.api_key_header)
        self._rng = random.Random(self.name)
        self._failed_in_a_row = 0
        self._told_until = 0.0  # event loop time up to which a person knows of a long pause

    async def complete(self, body: Mapping[str, object], model: ModelSpec, *, estimate_tokens: int) -> Reply:
        """
        The reply to a request body, which goes out with the fields of streaming added.

        CallFailed: the call is given up. Draining: the run ends. StageError: the run must end.
        """
        data = encode(body, model)
        attempts = retries = 0
        while True:
            outcome, was_probe = await self._attempt(data, model, estimate_tokens, again=attempts > 0)
            if isinstance(outcome, Reply):
                return outcome
            attempts += 1
            if not outcome.retry or (retries >= model.max_retries and not was_probe):
                self._give_up(outcome, attempts)
            pause = pause_seconds(retries, outcome.asked_seconds, model.max_backoff_seconds, self._rng)
            retries += not was_probe  # finding out whether the provider is back is not at the call's cost
            if pause > model.max_backoff_seconds:
                self._tell_of_a_long_pause(pause, outcome.reason)
            await self._pause(pause)

    async def _attempt(
        self, data: bytes, model: ModelSpec, estimate_tokens: int, again: bool
    ) -> tuple[Reply | Failure, bool]:
        ticket = await self.gate.enter(model, estimate_tokens, again)
        clock = asyncio.get_running_loop().time
        try:
            if self.closing.is_set():
                raise Draining
            started = clock()
            outcome = await self._send(data, model)
        finally:
            self.gate.leave(ticket)
        if self.on_attempt:
            said = isinstance(outcome, Reply)
            status = "200" if said else outcome.reason
            self.on_attempt(model.model, status, clock() - started, outcome.tokens if said else 0)
        self._learn(ticket, outcome)
        return outcome, ticket.probe

    async def _send(self, data: bytes, model: ModelSpec) -> Reply | Failure:
        """One request, by its outcome; the deadline runs from here."""
        seconds = model.timeout_seconds
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=min(seconds, CONNECT_SECONDS))
        try:
            async with self.session.post(
                self._url, data=data, headers=self._headers, timeout=timeout, allow_redirects=False
            ) as response:
                if response.status != 200:
                    return self._refused(response, await beginning(response))
                reply = await receive(response, model.stream, self.limits.max_reply_bytes)
        except BrokenReply as broken:
            return Failure(broken.reason, self._excerpt(str(broken)), broken.reason != "too_large", 200)
        except TimeoutError:
            return Failure("timeout", f"no reply within {seconds:g} s", retry=True)
        except (aiohttp.ClientError, OSError) as error:
            return Failure("transport", self._excerpt(f"{type(error).__name__}: {error}"), retry=True)
        return self._checked(reply, model, len(data))

    def _refused(self, response: aiohttp.ClientResponse, text: str) -> Failure:
        """What an answer that is not 200 means. StageError when the key is refused."""
        status, excerpt = response.status, self._excerpt(text)
        verdict = verdict_on(status)
        if verdict == "forbidden":
            self._stop(
                f'provider "{self.name}" refuses the key: HTTP {status} {excerpt}',
                f"check the environment variable {self.provider.api_key_env}"
                if self.provider.api_key_env
                else f"name the variable that holds it in providers.{self.name}.api_key_env",
            )
        asked = asked_pause_seconds(status, response.headers)
        return Failure(f"http_{status}", excerpt, verdict == "retry", status, asked)

    def _checked(self, reply: Reply, model: ModelSpec, num_body_bytes: int) -> Reply | Failure:
        """The reply with token counts, unless it tells the key, which must never be written down."""
        if self.key.told_by(*reply.texts):
            return Failure("key_in_reply", "the answer holds the key", retry=False, status=200)
        if reply.tokens:
            return reply
        if model.model not in self.uncounted:
            self.uncounted.add(model.model)
            text = (
                f'model "{model.model}" of provider "{self.name}" reports no token counts; they are guessed'
            )
            self.log("usage", text, provider=self.name, model=model.model)
        return with_guessed_counts(reply, num_body_bytes)

    def _learn(self, ticket: Ticket, outcome: Reply | Failure) -> None:
        if isinstance(outcome, Reply):
            self._failed_in_a_row, self.last_failure = 0, ""
            self.gate.succeeded(ticket, outcome.tokens)
            return
        self.last_failure = f"{outcome.reason}: {outcome.excerpt}"
        try:
            self.gate.failed(ticket, outcome)
        except StageError:
            self.closing.set()
            raise

    def _give_up(self, last: Failure, attempts: int) -> None:
        """CallFailed, or StageError when call after call fails."""
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= MOST_FAILED_CALLS_IN_A_ROW:
            self._stop(
                f'provider "{self.name}" at {self.base_url} failed {self._failed_in_a_row} calls in a row, '
                f"the last with {last.reason}: {last.excerpt}",
                "check the address, the model name and the service; the same command continues",
            )
        raise CallFailed(last.reason, last.excerpt, attempts)

    def _stop(self, message: str, fix: str) -> None:
        self.closing.set()
        raise StageError(message, fix=fix)

    def _tell_of_a_long_pause(self, seconds: float, reason: str) -> None:
        """Once for all calls that wait for the same moment."""
        until = asyncio.get_running_loop().time() + seconds
        if until > self._told_until + SAME_MOMENT_SECONDS:
            self._told_until = until
            text = f'provider "{self.name}" asks to wait {seconds:,.0f} s ({reason}); the calls concerned do'
            self.log("waiting", text, provider=self.name, seconds=seconds)

    async def _pause(self, seconds: float) -> None:
        """Sleep, but not through the end of the run."""
        try:
            await asyncio.wait_for(self.closing.wait(), seconds)
        except TimeoutError:
            return
        raise Draining

    def _excerpt(self, text: str) -> str:
        """One short line of what came back, without the key should the server repeat it."""
        return " ".join(self.key.hide(text).split())[:EXCERPT_CHARACTERS]


@asynccontextmanager
async def open_clients(
    config: Endpoints,
    keys: Mapping[str, Key],
    addresses: Mapping[str, str],
    closing: asyncio.Event,
    log: Log,
    on_attempt: OnAttempt | None = None,
) -> AsyncIterator[dict[str, ChatClient]]:
    """A client for each provider, by name, over one session; `addresses` are base URLs by provider."""
    most = sum(provider.max_in_flight for provider in config.providers.values())
    allow_open_files(most)
    async with open_session(most) as session, AsyncExitStack() as stack:
        stack.enter_context(rare_collections())
        clients = {}
        for name, provider in config.providers.items():
            gate = await stack.enter_async_context(Gate(name, provider, log))
            spot = (name, addresses[name], keys[name], provider, config.limits)
            clients[name] = ChatClient(*spot, session, gate, closing, log, on_attempt)
        watch = asyncio.create_task(_close_gates(closing, [client.gate for client in clients.values()]))
        try:
            yield clients
        finally:
            watch.cancel()


def encode(body: Mapping[str, object], model: ModelSpec) -> bytes:
    """The bytes of a request; how an answer is delivered is no part of the call's identity."""
    if model.stream:
        options = {"stream_options": {"include_usage": True}} if model.include_usage else {}
        body = {**body, "stream": True, **options}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


async def _close_gates(closing: asyncio.Event, gates: list[Gate]) -> None:
    await closing.wait()
    for gate in gates:
        gate.close()
