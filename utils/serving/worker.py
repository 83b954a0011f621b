"""
One thread that owns the model: takes jobs from a queue, gives each a slot, writes them all a token at a time.

    worker = Worker(slots, tokenizer, stop_ids, queue_limit=64)
    worker.start()
    worker.submit([Job(prompt_ids, Sampling(max_tokens=20), deliver=queue.put)])    # QueueFull (try later)
    worker.close()

`deliver` hears of each Piece on the worker's thread; the last one has a `finish_reason`. A job whose
`cancelled` is set, or whose time is up, leaves before the next step.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from utils.serving.engine import PieceTokenizer
from utils.serving.grammar import Grammar
from utils.serving.sampling import Sampling, choose, log_probabilities, penalised
from utils.serving.slots import Slots
from utils.serving.text import AnswerText

FinishReason = Literal["", "stop", "length", "timeout", "cancelled", "error"]


class QueueFull(Exception):
    """More jobs wait than may; none of those submitted was taken."""


@dataclass(frozen=True)
class Chance:
    """A token, the log of its probability before sampling (None: nothing came before it), the likeliest."""

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """What became known of an answer: text to show, tokens with their chances where asked for, the end."""

    text: str = ""
    chances: tuple[Chance, ...] = ()
    num_tokens: int = 0
    finish_reason: FinishReason = ""


@dataclass(eq=False)
class Job:
    """
    A prompt to be continued; `grammar` (GBNF) is what the answer must be, "" for anything. `top_logprobs` -1
    asks for no chances, N for those of the token and of the N likeliest; `score_prompt` also for those of the
    prompt; `write` false for nothing else. `deadline` is in seconds of `time.monotonic`.
    """

    prompt: Sequence[int]
    sampling: Sampling
    deliver: Callable[[Piece], None]
    stops: Sequence[str] = ()
    grammar: str = ""
    top_logprobs: int = -1
    score_prompt: bool = False
    write: bool = True
    deadline: float = float("inf")
    cancelled: bool = False


@dataclass(eq=False)
class _Running:
    """A job in its slot, with the logits [vocabulary] of its next token."""

    job: Job
    slot: int
    logits: np.ndarray
    room: int
    text: AnswerText
    generator: np.random.Generator
    grammar: Grammar | None = None
    ids: list[int] = field(default_factory=list)


class Worker(threading.Thread):
    """`context_tokens` bounds prompt and answer together."""

    def __init__(
        self,
        slots: Slots,
        tokenizer: PieceTokenizer,
        stop_ids: frozenset[int],
        context_tokens: int,
        queue_limit: int,
    ) -> None:
        super().__init__(name="model", daemon=True)
        self._slots, self._tokenizer, self._stop_ids = slots, tokenizer, stop_ids
        self._context_tokens, self._queue_limit = context_tokens, queue_limit
        self._waiting: deque[Job] = deque()
        self._running: dict[int, _Running] = {}
        self._wake = threading.Condition()
        self._closed = False

    @property
    def capacity(self) -> int:
        """How many jobs may run and wait together."""
        return self._queue_limit + self._slots.num_slots

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue all of them, or none: QueueFull."""
        with self._wake:
            free = self._slots.num_slots - len(self._running)
            if len(self._waiting) + len(jobs) > self._queue_limit + free:
                raise QueueFull
            self._waiting.extend(jobs)
            self._wake.notify()

    def close(self) -> None:
        """End what is under way as cancelled, and the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self.join()

    def run(self) -> None:
        while self._take_up():
            try:
                self._step()
            except Exception:
                traceback.print_exc(file=sys.stderr)
                for running in list(self._running.values()):
                    self._leave(running, "error")
        for running in list(self._running.values()):
            self._leave(running, "cancelled")
        for job in self._waiting:
            job.deliver(Piece(finish_reason="cancelled"))
        self._slots.close()

    def _take_up(self) -> bool:
        """Fill free slots, waiting while there is nothing to do; False when the worker is closed."""
        while True:
            with self._wake:
                while not (self._closed or self._running or self._waiting):
                    self._wake.wait()
                if self._closed:
                    return False
                free = [slot for slot in range(self._slots.num_slots) if slot not in self._running]
                if not (free and self._waiting):
                    return True
                job = self._waiting.popleft()
            self._begin(job, free[0])

    def _begin(self, job: Job, slot: int) -> None:
        if reason := _given_up(job):
            job.deliver(Piece(finish_reason=reason))
            return
        try:
            logits = self._slots.begin(slot, job.prompt, every=job.score_prompt)
        except Exception:
            traceback.print_exc(file=sys.stderr)
            self._slots.end(slot)
            job.deliver(Piece(finish_reason="error"))
            return
        room = min(job.sampling.max_tokens, self._context_tokens - len(job.prompt)) if job.write else 0
        generator = np.random.default_rng(job.sampling.seed)
        if job.score_prompt:
            job.deliver(Piece(chances=_chances_of_prompt(job, logits)))
            logits = logits[-1]
        grammar = self._slots.constraint(job.grammar) if job.grammar and self._slots.constraint else None
        running = _Running(job, slot, logits, room, AnswerText(job.stops), generator, grammar)
        self._running[slot] = running
        if not room:
            self._leave(running, "length")

    def _step(self) -> None:
        """Every answer under way gets a token; those that go on share one pass of the model."""
        tokens = {}
        for running in list(self._running.values()):
            if reason := _given_up(running.job):
                self._leave(running, reason)
            elif (token := self._write(running)) is not None:
                tokens[running.slot] = token
        if tokens:
            for slot, logits in self._slots.step(tokens).items():
                self._running[slot].logits = logits

    def _write(self, running: _Running) -> int | None:
        """Choose a token and deliver what it shows; None when the answer ends with it."""
        job, logits = running.job, running.logits
        if job.sampling.penalises:
            logits = penalised(logits, job.sampling, job.prompt, running.ids)
        if running.grammar:
            logits = running.grammar.mask(logits)
        token = choose(logits, job.sampling, running.generator)
        if token in self._stop_ids:
            self._leave(running, "stop")
            return None
        if running.grammar:
            running.grammar.accept(token)
        running.ids.append(token)
        shown = running.text.add(self._tokenizer.token_bytes(token))
        chances = () if job.top_logprobs < 0 else (_chance(running.logits, token, job.top_logprobs),)
        if running.text.stopped or len(running.ids) == running.room:
            self._leave(running, "stop" if running.text.stopped else "length", shown, chances)
            return None
        job.deliver(Piece(shown, chances, len(running.ids)))
        return token

    def _leave(
        self, running: _Running, reason: FinishReason, shown: str = "", chances: tuple[Chance, ...] = ()
    ) -> None:
        if running.grammar:
            running.grammar.close()
        self._slots.end(running.slot)
        del self._running[running.slot]
        shown += running.text.add(b"", final=True)
        running.job.deliver(Piece(shown, chances, len(running.ids), reason))


def _given_up(job: Job) -> FinishReason:
    if job.cancelled:
        return "cancelled"
    return "timeout" if time.monotonic() > job.deadline else ""


def _chances_of_prompt(job: Job, logits: np.ndarray) -> tuple[Chance, ...]:
    """How likely each token of the prompt was after those before it; `logits` is [tokens, vocabulary]."""
    top = max(job.top_logprobs, 0)
    rest = [_chance(row, token, top) for row, token in zip(logits, job.prompt[1:], strict=False)]
    return (Chance(job.prompt[0], None), *rest)


def _chance(logits: np.ndarray, token: int, top: int) -> Chance:
    logs = log_probabilities(logits)
    likeliest = np.argsort(-logs, kind="stable")[:top]
    return Chance(token, float(logs[token]), tuple((int(i), float(logs[i])) for i in likeliest))
