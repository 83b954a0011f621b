"""
One provider's chat completions over one aiohttp session: limited in flight, retried, never leaking the key.

    async with open_session(provider.max_in_flight) as session:
        client = ChatClient("teacher", base_url, key="", provider=spec, session=session)
        reply = await client.complete(body, model)

Retried: transport errors, timeouts, 408, 409, 425, 429, 5xx, broken JSON in a 200, empty choices. The first
401 or 403 stops the run. The deadline starts when an attempt is sent, and every retry waits for a free place
like any call.
"""

import asyncio
import json
import random
from dataclasses import dataclass, field

import aiohttp

from utils.config.generate import ModelSpec, ProviderSpec
from utils.generate.errors import CallFailed, Draining
from utils.generate.retry import asked_pause_seconds, pause_seconds, verdict_on
from utils.pipeline.errors import StageError

EXCERPT_CHARACTERS = 300
MAX_REPLY_BYTES = 4 * 1024 * 1024
MOST_FAILED_CALLS_IN_A_ROW = 20
"""Calls given up one after another before a provider counts as gone and the run stops."""


@dataclass(frozen=True)
class Reply:
    """What a model said; `finish_reason` and token counts as the provider reports them."""

    content: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class _Failure:
    """One failed attempt."""

    reason: str
    excerpt: str
    retry: bool
    asked_seconds: float | None = None


def open_session(in_flight: int) -> aiohttp.ClientSession:
    """A session with keep-alive and as many connections as calls may be in flight."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=in_flight), auto_decompress=True)


@dataclass
class ChatClient:
    """Calls one provider. Set `closing` to start no further attempt: callers then get Draining."""

    name: str
    base_url: str
    key: str = field(repr=False)
    provider: ProviderSpec
    session: aiohttp.ClientSession
    closing: asyncio.Event
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    last_failure: str = ""  # what the latest failed attempt met; "" again after a reply
    _failed_in_a_row: int = 0

    def __post_init__(self) -> None:
        self._places = asyncio.Semaphore(self.provider.max_in_flight)
        self._url = self.base_url.rstrip("/") + "/chat/completions"
        self._headers = {"Content-Type": "application/json"}
        if self.key:
            self._headers["Authorization"] = f"Bearer {self.key}"

    async def complete(self, body: bytes, model: ModelSpec) -> Reply:
        """The reply to one body. CallFailed: the call is given up. StageError: the run must stop."""
        for attempt in range(model.max_retries + 1):
            async with self._places:
                if self.closing.is_set():
                    raise Draining
                outcome = await self._attempt(body, model.timeout_seconds)
            if isinstance(outcome, Reply):
                self._failed_in_a_row, self.last_failure = 0, ""
                return outcome
            self.last_failure = f"{outcome.reason}: {outcome.excerpt}"
            if not outcome.retry or attempt == model.max_retries:
                break
            await self._pause(
                pause_seconds(attempt, outcome.asked_seconds, model.max_backoff_seconds, self.rng)
            )
        self._count_failed_call(outcome)
        raise CallFailed(outcome.reason, outcome.excerpt, attempt + 1)

    async def _attempt(self, body: bytes, timeout_seconds: float) -> Reply | _Failure:
        timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        try:
            async with self.session.post(
                self._url, data=body, headers=self._headers, timeout=timeout
            ) as response:
                data = await response.content.read(MAX_REPLY_BYTES + 1)
                while len(data) <= MAX_REPLY_BYTES and not response.content.at_eof():
                    data += await response.content.read(MAX_REPLY_BYTES + 1)
                return self._judge(response, data)
        except TimeoutError:
            return _Failure("timeout", f"no reply within {timeout_seconds:g} s", retry=True)
        except (aiohttp.ClientError, OSError) as error:
            return _Failure("transport", self._excerpt(f"{type(error).__name__}: {error}"), retry=True)

    def _judge(self, response: aiohttp.ClientResponse, data: bytes) -> Reply | _Failure:
        verdict = verdict_on(response.status)
        if len(data) > MAX_REPLY_BYTES:
            return _Failure("too_large", f"more than {MAX_REPLY_BYTES:,} bytes", retry=False)
        reply = read_reply(data) if verdict == "good" else None
        if reply:
            return reply
        excerpt = self._excerpt(data.decode("utf-8", "replace"))
        if verdict == "good":
            return _Failure("broken_reply", excerpt, retry=True)
        if verdict == "forbidden":
            self.closing.set()
            raise StageError(
                f'provider "{self.name}" refuses the key: HTTP {response.status} {excerpt}',
                fix=f"check the environment variable {self.provider.api_key_env or '(none is named)'}",
            )
        asked = asked_pause_seconds(response.headers)
        return _Failure(f"http_{response.status}", excerpt, verdict == "retry", asked)

    def _count_failed_call(self, last: _Failure) -> None:
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= MOST_FAILED_CALLS_IN_A_ROW:
            self.closing.set()
            raise StageError(
                f'provider "{self.name}" at {self.base_url} failed {self._failed_in_a_row} calls in a row, '
                f"the last with {last.reason}: {last.excerpt}",
                fix="check the address, the model name and the service; the same command continues",
            )

    async def _pause(self, seconds: float) -> None:
        """Sleep, but not through the end of the run."""
        try:
            await asyncio.wait_for(self.closing.wait(), seconds)
        except TimeoutError:
            return
        raise Draining

    def _excerpt(self, text: str) -> str:
        """One short line of what came back, without the key should the server echo it."""
        clean = text.replace(self.key, "<key>") if self.key else text
        return " ".join(clean.split())[:EXCERPT_CHARACTERS]


def read_reply(data: bytes) -> Reply | None:
    """The reply in a response body, or None when the body is broken or holds no choice."""
    try:
        document = json.loads(data)
        choice = document["choices"][0]
        content = choice["message"]["content"]
        usage = document.get("usage") or {}
        return Reply(
            content=content if isinstance(content, str) else "",
            finish_reason=str(choice.get("finish_reason") or ""),
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None
