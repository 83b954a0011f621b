"""
Jobs of one HTTP request, from the event loop's side: submitted together, read as they come, dropped on
leaving.

    async with Answers(worker, jobs) as answers:
        async for news in answers:                   # {number of the job: Answer, ...}, what is new
            ...

Leaving the block, by an error or because the client went away, frees the slots before the next step.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial

from utils.serving.asked import BadRequest
from utils.serving.objects import Answer
from utils.serving.sampling import Sampling
from utils.serving.worker import Job, Piece, QueueFull, Worker

RETRY_SECONDS = 1
News = dict[int, Answer]


@dataclass(frozen=True)
class Wish:
    """One answer that is wanted: everything of a Job but where it goes."""

    prompt: Sequence[int]
    sampling: Sampling
    stops: Sequence[str] = ()
    grammar: str = ""
    top_logprobs: int = -1
    score_prompt: bool = False
    write: bool = True


class Answers:
    """BadRequest: 429 when the queue is full, 408 and 5xx when there is nothing to give."""

    def __init__(self, worker: Worker, wishes: Sequence[Wish], seconds: float) -> None:
        self.wishes = wishes
        self._worker, self._seconds = worker, seconds
        self._news: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        loop, deadline = asyncio.get_running_loop(), time.monotonic() + seconds
        self._jobs = [
            Job(**vars(wish), deliver=partial(self._deliver, loop, number), deadline=deadline)
            for number, wish in enumerate(wishes)
        ]
        self._open = len(self._jobs)

    async def __aenter__(self) -> Answers:
        if len(self._jobs) > self._worker.capacity:
            raise BadRequest(400, f"{len(self._jobs)} answers at once, {self._worker.capacity} may be")
        try:
            self._worker.submit(self._jobs)
        except QueueFull:
            raise BadRequest(
                429, "too many requests wait", code="queue_full", Retry_After=str(RETRY_SECONDS)
            ) from None
        return self

    async def __aexit__(self, *_: object) -> None:
        for job in self._jobs:
            job.cancelled = True

    async def __aiter__(self) -> AsyncIterator[News]:
        """Whatever came since the last time, until every job has ended."""
        began = False
        while self._open:
            pieces = [await self._news.get()]
            while not self._news.empty():
                pieces.append(self._news.get_nowait())
            news: News = {}
            for number, piece in pieces:
                self._check(piece, began)
                news.setdefault(number, Answer()).add(piece)
            began = True
            self._open -= sum(bool(part.finish_reason) for part in news.values())
            yield news

    async def whole(self) -> list[Answer]:
        """All answers, when they are finished."""
        answers = [Answer() for _ in self._jobs]
        async for news in self:
            for number, part in news.items():
                answers[number].add(part)
        return answers

    def _deliver(self, loop: asyncio.AbstractEventLoop, number: int, piece: Piece) -> None:
        """Called by the worker."""
        loop.call_soon_threadsafe(self._news.put_nowait, (number, piece))

    def _check(self, piece: Piece, began: bool) -> None:
        if piece.finish_reason == "error":
            raise BadRequest(500, "the model failed; the server's own log says why")
        if piece.finish_reason == "cancelled":
            raise BadRequest(503, "the server is stopping")
        if piece.finish_reason == "timeout" and not began and not piece.num_tokens:
            raise BadRequest(408, f"no answer began within {self._seconds:g} s", code="timeout")
