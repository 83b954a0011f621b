"""
The gate before a provider: a call goes out when provider and model both have room, in fair order.

    async with Gate("lab", provider, log) as gate:
        ticket = await gate.enter(model, estimate_tokens)     # waits; Draining once the gate is closed
        try:
            ...                                               # send the call
        finally:
            gate.leave(ticket)
        gate.succeeded(ticket, used_tokens)

Each model has a line of its own, served first come, first served (a call that is tried again goes to the
front). Only the head of a line waits for limits: first for its model's, then, in turn with the heads of the
other lines, for the provider's. So a slow model never holds what another needs, and nobody waits for ever.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from utils.config.providers import ModelSpec, ProviderSpec
from utils.generate.breaker import Breaker
from utils.generate.bucket import Bucket, Grant
from utils.generate.errors import Draining
from utils.generate.retry import Failure

CUT = 0.7
SUCCESSES_FOR_ONE_MORE = 4
"""Window after which one more call may be in flight: from 1 to 1,024 in about thirty round trips."""


@dataclass
class Ticket:
    """Leave to send one attempt; `number` counts the attempts sent to the provider."""

    line: "_Line"
    number: int
    probe: bool
    requests: list[Grant]
    tokens: list[Grant]


class Places:
    """Calls in flight: at most `limit`, which falls when the provider is busy and rises again to `most`."""

    def __init__(self, most: int) -> None:
        self.most = self.limit = most
        self.taken = 0
        self._successes = 0
        self._changed = asyncio.Event()

    async def take(self) -> None:
        while self.taken >= self.limit:
            self._changed.clear()
            await self._changed.wait()
        self.taken += 1

    def give_back(self) -> None:
        self.taken -= 1
        self._changed.set()

    def shrink(self) -> None:
        self.limit = max(1, int(self.limit * CUT))
        self._successes = 0

    def grow(self) -> None:
        """Count a success; a window of them is worth one more place."""
        self._successes += 1
        if self.limit < self.most and self._successes >= min(self.limit, SUCCESSES_FOR_ONE_MORE):
            self.limit += 1
            self._successes = 0
            self._changed.set()


class _Limits:
    """Places and buckets of a provider or of one model; 0 in the config is no limit."""

    def __init__(self, spec: ProviderSpec | ModelSpec, burst_percent: float) -> None:
        self.places = Places(spec.max_in_flight) if spec.max_in_flight else None
        self._requests = _bucket(spec.rate_limit_per_minute, burst_percent)
        self._tokens = _bucket(spec.tokens_per_minute, burst_percent)

    async def take(self, tokens: int) -> tuple[list[Grant], list[Grant]]:
        """Wait for a place, then for the buckets; what was taken of requests, and of tokens."""
        if self.places:
            await self.places.take()
        of_tokens = [await self._tokens.take(tokens)] if self._tokens else []
        of_requests = [await self._requests.take(1)] if self._requests else []
        return of_requests, of_tokens

    def give_back_place(self) -> None:
        if self.places:
            self.places.give_back()


@dataclass
class _Line:
    """The calls that wait for one model."""

    model: ModelSpec
    limits: _Limits
    waiting: deque[tuple[asyncio.Future, int]] = field(default_factory=deque)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def join(self, waiter: asyncio.Future, tokens: int, front: bool) -> None:
        (self.waiting.appendleft if front else self.waiting.append)((waiter, tokens))
        self.arrived.set()

    async def next(self) -> tuple[asyncio.Future, int]:
        """The first call that still waits."""
        while True:
            while not self.waiting:
                self.arrived.clear()
                await self.arrived.wait()
            waiter, tokens = self.waiting.popleft()
            if not waiter.done():
                return waiter, tokens


class Gate:
    """All limits of one provider, and its breaker. Use as `async with`, inside a running event loop."""

    def __init__(self, name: str, provider: ProviderSpec, log: Callable[..., None]) -> None:
        self.breaker = Breaker(name, log)
        self._provider = provider
        self._limits = _Limits(provider, provider.burst_percent)
        self._turn = asyncio.Lock()  # the heads of the lines take turns here
        self._lines: dict[int, _Line] = {}
        self._servants: list[asyncio.Task] = []
        self._waiters: set[asyncio.Future] = set()
        self._sent = self._cut_at = 0
        self._closed = False
        self.in_flight = 0  # calls that were let through and have not come back

    @property
    def waiting(self) -> int:
        """Calls that wait for a limit."""
        return len(self._waiters)

    @property
    def limit(self) -> int:
        """Calls that may be in flight at present."""
        return self._places.limit

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        await asyncio.gather(*self._servants, return_exceptions=True)

    def close(self) -> None:
        """Let nobody through any more; those who wait get Draining."""
        self._closed = True
        self._dismiss(Draining)
        for servant in self._servants:
            servant.cancel()

    async def enter(self, model: ModelSpec, tokens: int, again: bool = False) -> Ticket:
        """Wait for leave to send; `again` puts a call that was already tried to the front of its line."""
        if self._closed:
            raise Draining
        waiter: asyncio.Future[Ticket] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        self._line_of(model).join(waiter, tokens, again)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._take_back(waiter.result())
            raise
        finally:
            self._waiters.discard(waiter)

    def leave(self, ticket: Ticket) -> None:
        """The attempt is over, however it ended."""
        self.in_flight -= 1
        self._limits.give_back_place()
        ticket.line.limits.give_back_place()
        if ticket.probe:
            self.breaker.probe_ended()

    def succeeded(self, ticket: Ticket, used_tokens: int) -> None:
        """A reply came that took so many tokens."""
        for grant in ticket.tokens:
            grant.settle(used_tokens)
        self._places.grow()
        self.breaker.answered()

    def failed(self, ticket: Ticket, failure: Failure) -> None:
        """An attempt failed. StageError when the provider is gone for good."""
        if failure.throttled:
            for grant in ticket.tokens:
                grant.settle(0)
            self._slow_down(ticket)
        if failure.provider_is_down:
            self.breaker.failed(f"{failure.reason}: {failure.excerpt}", ticket.probe)
        else:
            self.breaker.answered()

    def _slow_down(self, ticket: Ticket) -> None:
        """Once in a round trip: attempts that were sent before the last cut say nothing new."""
        if ticket.number > self._cut_at:
            self._cut_at = self._sent
            self._places.shrink()

    @property
    def _places(self) -> Places:
        assert self._limits.places is not None, "max_in_flight of a provider is at least 1"
        return self._limits.places

    def _line_of(self, model: ModelSpec) -> _Line:
        line = self._lines.get(id(model))  # the line keeps its model, so no other one gets its id
        if line is None:
            line = _Line(model, _Limits(model, self._provider.burst_percent))
            self._lines[id(model)] = line
            servant = asyncio.get_running_loop().create_task(self._serve(line))
            servant.add_done_callback(self._servant_ended)
            self._servants.append(servant)
        return line

    async def _serve(self, line: _Line) -> None:
        while True:
            waiter, tokens = await line.next()
            of_model = await line.limits.take(tokens)
            async with self._turn:
                of_provider = await self._limits.take(tokens)
                probe = await self.breaker.admit()
                self._sent += 1
                self.in_flight += 1
                requests, of_tokens = of_model[0] + of_provider[0], of_model[1] + of_provider[1]
                ticket = Ticket(line, self._sent, probe, requests, of_tokens)
            self._hand_over(ticket, waiter)
            await asyncio.sleep(0)  # the other lines have their turn, also when nothing has to be waited for

    def _hand_over(self, ticket: Ticket, waiter: asyncio.Future) -> None:
        if waiter.done():  # cancelled while its limits were waited for
            self._take_back(ticket)
            return
        for grant in (*ticket.requests, *ticket.tokens):
            grant.start()
        waiter.set_result(ticket)

    def _take_back(self, ticket: Ticket) -> None:
        """A ticket that nobody used."""
        for grant in (*ticket.requests, *ticket.tokens):
            grant.settle(0)
        self.leave(ticket)

    def _dismiss(self, reason: type[Exception], *arguments: object) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(reason(*arguments))

    def _servant_ended(self, servant: asyncio.Task) -> None:
        """A servant never ends on its own: should one fail, those who wait must hear it."""
        if not servant.cancelled() and (error := servant.exception()):
            self._closed = True
            self._dismiss(RuntimeError, f"the gate broke: {error!r}")


def _bucket(per_minute: int, burst_percent: float) -> Bucket | None:
    return Bucket(per_minute, burst_percent) if per_minute else None
