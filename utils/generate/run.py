"""
A whole generation run: the journal read, providers opened, datasets filled side by side, nothing paid for
lost.

    generated = generate(config, stage.partial, workspace, log=stage.log, stopping=lambda: stage.stopping)
    if generated is None: ...      # a stop was asked for; the same command continues
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from utils.config.generate import GenerateConfig
from utils.generate.budget import Budget
from utils.generate.calls import Calls
from utils.generate.client import open_clients
from utils.generate.dataset import Dataset
from utils.generate.desk import Desk, open_desks
from utils.generate.errors import Draining
from utils.generate.given import Given
from utils.generate.history import History
from utils.generate.journal import CARRIED, Journal
from utils.generate.keys import Key, api_keys
from utils.generate.loop import run as run_loop
from utils.generate.preflight import note_preflight, preflight
from utils.generate.progress import Progress
from utils.generate.recorded import config_line, epoch_after, identity_of, stands
from utils.generate.reply import Reply
from utils.generate.requests_log import RequestsLog
from utils.generate.starter import Starter
from utils.generate.state import State
from utils.generate.teacher.process import offline_teacher
from utils.generate.write import write_failures, write_outputs
from utils.pipeline.errors import LockstepError, StageError
from utils.pipeline.workspace import Workspace

LOOK_SECONDS = 0.05
Log = Callable[..., None]
Stopping = Callable[[], bool]


@dataclass(frozen=True)
class Generated:
    """What a run made: metrics for the manifest; usage of all replies ever paid for; calls of this run."""

    metrics: dict
    usage: dict
    calls_made: int


def generate(
    config: GenerateConfig, folder: Path, workspace: Workspace, log: Log, stopping: Stopping
) -> Generated | None:
    """
    Fill every dataset and write the outputs into `folder`; None when `stopping` became true.

    StageError when counts stay short, the budget is reached or a provider is gone; ConfigError for a missing
    key or a file that does not fit. The journal keeps everything for the next run.
    """
    keys = api_keys(config.providers, workspace.root)
    given = Given.read(config, workspace)
    budget = Budget(config.budget, config.models)
    history = History(stands)
    began = time.monotonic()
    journal = Journal(folder / CARRIED, config.journal, visit=history.read)
    try:
        _charge(budget, config, history)
        identity = identity_of(config, given, workspace, epoch_after(history, journal))
        if history.identity != identity:
            journal.note_config(config_line(config, identity))
        history.turn_to(identity)
        desks = open_desks(config, given, journal, history)
        _tell(journal, history, time.monotonic() - began, log)
        with _endpoints(config) as addresses:
            run = _Run(config, given, journal, desks, budget, log, stopping)
            if not history.has_answers:
                run.look = partial(preflight, config, keys, addresses, log, stopping)
            try:
                finished = run_loop(run.finish(keys, addresses, folder))
            finally:
                write_failures(run.states.values(), journal, folder)
        if not finished:
            return None
        metrics = write_outputs(config, run.states, journal, folder)
        return Generated(metrics, budget.table(), run.calls_made)
    finally:
        journal.close()


def _charge(budget: Budget, config: GenerateConfig, history: History) -> None:
    """What was paid for in earlier runs counts, as far as the config still knows the model."""
    for (model, step), (calls, prompt_tokens, completion_tokens) in history.paid.items():
        if model in config.models:
            tokens = Reply("", "", "", prompt_tokens, completion_tokens)
            budget.charge(config.models[model].provider, model, step, tokens, calls)


def _tell(journal: Journal, history: History, seconds: float, log: Log) -> None:
    """Say what the journal holds and how long it took until the run could go on with it."""
    if journal.num_replies:
        rows = sum(state.rows for state in history.states.values())
        text = f"{journal.num_replies:,} replies are already paid for, {rows:,} rows are decided"
        if journal.damaged:
            text += f"; {journal.damaged:,} damaged lines are made again"
        if history.dropped:
            text += f"; {history.dropped:,} decisions of another config are made anew"
        counts = {"replies": journal.num_replies, "rows": rows, "damaged": journal.damaged}
        log("journal", text, **counts, seconds=round(seconds, 3))


@contextmanager
def _endpoints(config: GenerateConfig) -> Iterator[dict[str, str]]:
    """Base URL of every provider; offline teachers live as long as the block."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(offline_teacher(config.seed, provider.faults))
            if provider.kind == "offline-teacher"
            else provider.base_url
            for name, provider in config.providers.items()
        }


class _Run:
    """
    One event loop's worth of work. `look` is the preflight: lists are asked for while it is under way,
    answers only after it, and what it refuses ends the run.
    """

    def __init__(
        self,
        config: GenerateConfig,
        given: Given,
        journal: Journal,
        desks: dict[str, Desk],
        budget: Budget,
        log: Log,
        stopping: Stopping,
    ) -> None:
        self._config, self._given, self._journal = config, given, journal
        self._budget, self._log, self._stopping = budget, log, stopping
        self.desks = desks
        self.calls_made = 0
        self.look: Callable[[], dict[str, Reply]] | None = None
        self._refused = False
        self._fatal: BaseException | None = None

    @property
    def states(self) -> dict[str, State]:
        return {name: desk.state for name, desk in self.desks.items()}

    async def finish(self, keys: dict[str, Key], addresses: dict[str, str], folder: Path) -> bool:
        """Fill the datasets; False when a stop was asked for."""
        self._closing = asyncio.Event()
        with ExitStack() as stack:
            attempts = None
            if self._config.journal.log_requests:
                attempts = RequestsLog(folder / "log" / "requests.jsonl")
                stack.callback(attempts.close)
            heard = attempts.attempt if attempts else None
            opened = open_clients(self._config, keys, addresses, self._closing, self._log, heard)
            async with opened as clients:
                looked = asyncio.Event()
                calls = Calls(self._config, clients, self._journal, self._budget.reached, self._paid, looked)
                looking = asyncio.create_task(self._look(looked))
                datasets = self._datasets(calls)
                progress = Progress(datasets, clients, self._budget, self._log)
                stack.callback(progress.close)
                ends = await self._fill(datasets, calls, progress)
                await looking
        self.calls_made = calls.made
        return self._judge_ends(ends, datasets)

    def _datasets(self, calls: Calls) -> list[Dataset]:
        return [
            Dataset(
                self._config,
                name,
                calls,
                self.desks[name],
                Starter(2 * self._config.in_flight_of(name), self._end),
                self._given.topics,
                self._given.prompts,
            )
            for name in self._config.datasets
        ]

    async def _fill(
        self, datasets: list[Dataset], calls: Calls, progress: Progress
    ) -> list[BaseException | None]:
        """How each dataset ended; Draining for one that was still under way when the run had to end."""
        watch = asyncio.create_task(self._watch(progress))
        fills = [asyncio.create_task(dataset.fill()) for dataset in datasets]
        closing = asyncio.create_task(self._closing.wait())
        try:
            await asyncio.wait(
                [asyncio.gather(*fills, return_exceptions=True), closing], return_when="FIRST_COMPLETED"
            )
            self._closing.set()
            if not self._refused:
                await self._drain(fills, calls)
        finally:
            for task in (watch, closing, *fills):
                task.cancel()
            ends = await asyncio.gather(*fills, return_exceptions=True)
            for dataset in datasets:
                await dataset.leave()
        return [Draining() if isinstance(end, asyncio.CancelledError) else end for end in ends]

    async def _look(self, looked: asyncio.Event) -> None:
        """The preflight, in a thread; the accounts are this thread's."""
        try:
            if self.look:
                replies = await asyncio.to_thread(self.look)
                note_preflight(replies, self._config.models, self._journal, self._budget)
        except Draining:
            self._closing.set()
        except LockstepError as error:
            self._refused, self._fatal = True, error
            self._closing.set()
        finally:
            looked.set()

    def _end(self, error: BaseException) -> None:
        """An error that no level can handle ends the run; calls in flight may finish."""
        self._fatal = self._fatal or error
        self._closing.set()

    def _paid(self, model: str, step: str, reply: Reply) -> None:
        self._budget.charge(self._config.models[model].provider, model, step, reply)
        self._close_when_spent()

    def _close_when_spent(self) -> None:
        """No call goes out once the budget is reached, also none that waits for its turn."""
        if self._budget.reached():
            self._closing.set()

    async def _drain(self, fills: list[asyncio.Task], calls: Calls) -> None:
        """Let calls in flight finish, which are paid for, and what they bring be decided."""
        until = time.monotonic() + self._config.journal.drain_seconds
        while (calls.under_way or not all(fill.done() for fill in fills)) and time.monotonic() < until:
            await asyncio.sleep(LOOK_SECONDS)

    async def _watch(self, progress: Progress) -> None:
        """Notice a request to stop; say now and then how far the run is."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self._stopping() and not self._closing.is_set():
                self._log("stopping", "calls in flight may finish; no new ones start")
                self._closing.set()
            self._close_when_spent()
            progress.tell()

    def _judge_ends(self, ends: list[BaseException | None], datasets: list[Dataset]) -> bool:
        """True when every dataset is full, False for a stop; anything else is raised."""
        if self._fatal:
            raise self._fatal
        errors = [end for end in ends if end is not None and not isinstance(end, Draining)]
        for error in errors:
            if not isinstance(error, StageError):
                raise error
        if self._stopping():
            return False
        if errors:
            raise StageError("\n  ".join(map(str, errors)), fix=errors[0].fix)
        if any(isinstance(end, Draining) for end in ends):
            counts = ", ".join(f"{d.name} {d.state.rows:,} of {d.num_rows:,} rows" for d in datasets)
            raise StageError(
                f"budget reached: {counts} ({self._budget.reached()})",
                fix="raise the budget in the config; the same command then continues, nothing is paid twice",
            )
        return True
