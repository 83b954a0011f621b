"""
A whole transform: rows in, asked about side by side, out in the same order; nothing paid for is lost.

    result = transform(config, rows, total, stage.partial, root, stage.log, stopping=lambda: stage.stopping)
    if result is None: ...      # a stop was asked for; the same command continues

Every pass reads all rows and finds the replies of earlier ones in the journal, so that the rows of a run that
was killed and continued are those of one that was not.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from utils.config.transform import TransformConfig
from utils.generate.budget import Budget
from utils.generate.calls import Calls, Request
from utils.generate.client import OnAttempt, open_clients
from utils.generate.errors import Draining
from utils.generate.journal import CARRIED, Entry, Journal
from utils.generate.keys import Key, api_keys
from utils.generate.preflight import STEP, note_preflight, preflight
from utils.generate.reply import Reply
from utils.generate.requests_log import RequestsLog
from utils.generate.teacher.process import offline_teacher
from utils.generate.transform import FAILURES, PairWriter, RejectedMaker, SourceRow, samples_tried
from utils.pipeline.errors import StageError

LOOK_SECONDS = 0.05
PROGRESS_SECONDS = 10.0
WINDOW_ROWS = 2048
R = TypeVar("R")
M = TypeVar("M")


@dataclass(frozen=True)
class Transformed:
    """Rows written, rows left out by reason, calls that were new, and what all of them used and cost."""

    rows: int
    failed: dict[str, int]
    calls_made: int
    usage: dict


def transform(
    config: TransformConfig,
    rows: Iterable[SourceRow],
    total: int,
    folder: Path,
    root: Path,
    log: Callable[..., None],
    stopping: Callable[[], bool],
) -> Transformed | None:
    """
    Write `<dataset>/dataset.jsonl` and `failures.jsonl` below `folder`; None when `stopping` became true.
    StageError when more than `max_failed_rows` failed, the budget is reached or a provider is gone.
    """
    keys = api_keys(config.providers, root)
    budget = Budget(config.budget, config.models)
    past = _Past(config, budget)
    journal = Journal(folder / CARRIED, config.journal, visit=past.read)
    if past.noted != (noted := {"config": config.model_dump(mode="json"), "source_rows": total}):
        journal.note_config(noted)
    if journal.num_replies:
        log("journal", f"{journal.num_replies:,} replies are already paid for", replies=journal.num_replies)
    try:
        with _endpoints(config) as addresses:
            if not past.has_answers:
                replies = preflight(config, keys, addresses, log, stopping)
                note_preflight(replies, config.models, journal, budget)
            run = _Run(config, rows, total, folder, journal, budget, log, stopping)
            return asyncio.run(run.finish(keys, addresses))
    except Draining:
        return None  # a stop was asked for before anything was
    finally:
        journal.close()


class _Past:
    """What the journal says of earlier runs: what was paid for counts; config and number of source rows."""

    def __init__(self, config: TransformConfig, budget: Budget) -> None:
        self._models, self._budget = config.models, budget
        self.noted: dict | None = None
        self.has_answers = False

    def read(self, entry: Entry) -> None:
        """Take in one line."""
        if entry.kind == "config":
            self.noted = entry.record()
        elif entry.kind == "reply" and entry.fields[1] in self._models:
            _, model, step, prompt_tokens, completion_tokens = entry.fields
            self.has_answers = self.has_answers or step != STEP
            counts = Reply("", "", "", int(prompt_tokens), int(completion_tokens))
            self._budget.charge(self._models[model].provider, model, step, counts)


@contextmanager
def _endpoints(config: TransformConfig) -> Iterator[dict[str, str]]:
    """Base URL of every provider; offline teachers live as long as the block."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(offline_teacher(config.seed, provider.faults))
            if provider.kind == "offline-teacher"
            else provider.base_url
            for name, provider in config.providers.items()
        }


@dataclass
class _Run:
    """One event loop's worth of work."""

    config: TransformConfig
    rows: Iterable[SourceRow]
    total: int
    folder: Path
    journal: Journal
    budget: Budget
    log: Callable[..., None]
    stopping: Callable[[], bool]

    async def finish(self, keys: dict[str, Key], addresses: dict[str, str]) -> Transformed | None:
        self.closing = asyncio.Event()
        with ExitStack() as stack:
            heard = self._heard(stack)
            opened = open_clients(self.config, keys, addresses, self.closing, self.log, heard)
            async with opened as clients:
                calls = Calls(self.config, clients, self.journal, self.budget.reached, self._paid)
                return await self._pass(calls)

    async def _pass(self, calls: Calls) -> Transformed | None:
        """All rows once."""

        def knows(request: Request) -> bool:
            return self.journal.reply(calls.identity(request)) is not None

        maker = RejectedMaker(self.config, calls.ask, knows, samples_tried(self.folder))
        writer = PairWriter(self.config, self.folder)
        watch = asyncio.create_task(self._watch(writer, calls))
        drain_seconds = self.config.journal.drain_seconds
        try:
            await in_order(self.rows, maker.make, writer.add, self._window(), self.closing, drain_seconds)
            writer.finish()
        except Draining:
            return self._stopped(writer)
        finally:
            watch.cancel()
            writer.close()
        return self._checked(writer, calls)

    def _heard(self, stack: ExitStack) -> OnAttempt | None:
        """Who writes each attempt to `log/requests.jsonl`, if the config asks for it."""
        if not self.config.journal.log_requests:
            return None
        attempts = RequestsLog(self.folder / "log" / "requests.jsonl")
        stack.callback(attempts.close)
        return attempts.attempt

    def _window(self) -> int:
        most = sum(provider.max_in_flight for provider in self.config.providers.values())
        return max(WINDOW_ROWS, 4 * most)

    def _paid(self, model: str, step: str, reply: Reply) -> None:
        self.budget.charge(self.config.models[model].provider, model, step, reply)
        self._close_when_spent()

    def _close_when_spent(self) -> None:
        """No call goes out once the budget is reached, also none that waits for its turn."""
        if self.budget.reached():
            self.closing.set()

    def _stopped(self, writer: PairWriter) -> None:
        """None if somebody asked for the stop. StageError if the budget did."""
        if not self.stopping() and (reason := self.budget.reached()):
            raise StageError(
                f"budget reached: {writer.rows:,} of {self.total:,} rows; {reason}",
                fix="raise the budget and rerun: it continues, nothing is paid for twice",
            )

    def _checked(self, writer: PairWriter, calls: Calls) -> Transformed:
        failed = sum(writer.reasons.values())
        reasons = dict(writer.reasons.most_common())
        if not writer.rows or failed > self.config.max_failed_rows:
            shown = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items()) or "none were read"
            raise StageError(
                f"{failed:,} of {self.total:,} rows failed: {shown}",
                fix=f"see {self.folder.name}/{FAILURES}; a rerun asks for them again, and max_failed_rows "
                "says how many may be left out",
            )
        return Transformed(writer.rows, reasons, calls.made, self.budget.table())

    async def _watch(self, writer: PairWriter, calls: Calls) -> None:
        """Notice a request to stop; say now and then how far the run is."""
        told = time.monotonic()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self.stopping() and not self.closing.is_set():
                self.log("stopping", "calls in flight may finish; no new ones start")
                self.closing.set()
            self._close_when_spent()
            if time.monotonic() - told >= PROGRESS_SECONDS:
                told = time.monotonic()
                failed = sum(writer.reasons.values())
                spent = f"{self.budget.total.tokens:,} tokens, cost {self.budget.total.cost:.4g}"
                state = f"{writer.rows:,} of {self.total:,} rows, {failed:,} failed"
                self.log("progress", f"{state}; {calls.under_way:,} calls under way; {spent}")


async def in_order(
    rows: Iterable[R],
    make: Callable[[R], Awaitable[M]],
    take: Callable[[M], None],
    window: int,
    closing: asyncio.Event,
    drain_seconds: float,
) -> None:
    """
    Make all rows side by side and take the results in their order, with at most `window` rows in memory.
    After an error calls in flight have `drain_seconds` to finish.
    """
    tasks: deque[asyncio.Task] = deque()
    try:
        for row in rows:
            tasks.append(asyncio.ensure_future(make(row)))
            if len(tasks) >= window:
                take(await tasks.popleft())
        while tasks:
            take(await tasks.popleft())
    except Exception as error:
        closing.set()
        raise await _cause(error, tasks, drain_seconds) from None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _cause(error: Exception, tasks: Iterable[asyncio.Task], seconds: float) -> Exception:
    """The error, or what is behind a drain if another row met it; calls in flight may finish first."""
    if waiting := list(tasks):
        await asyncio.wait(waiting, timeout=seconds)
    ended = [task.exception() for task in tasks if task.done() and not task.cancelled()]
    behind = [found for found in ended if isinstance(found, Exception) and not isinstance(found, Draining)]
    return behind[0] if behind and isinstance(error, Draining) else error
