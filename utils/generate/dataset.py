"""
One dataset, filled to its exact count: subtopics, then prompts and rows side by side, in rounds.

Calls run at the same time; decisions are made in level order (subtopic, prompt). So what is accepted depends
on the replies alone, never on which came first, and a run that was killed and continued ends with the same
rows.

    rows = await Dataset(config, "chat", calls).fill()
"""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field

from utils.config.generate import GenerateConfig
from utils.generate.calls import Calls
from utils.generate.lists import ListMaker
from utils.generate.rows import Failure, Prompt, Row, RowMaker, row_content
from utils.generate.validate import normalised
from utils.pipeline.errors import StageError

LONGEST_ENTRY_CHARACTERS = 2000


@dataclass
class Subtopic:
    """One subtopic: what it was dealt, what it has, and how often in a row it was asked in vain."""

    name: str
    quota: int
    rows: list[Row] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    reserve: list[Prompt] = field(default_factory=list)
    dry_turns: int = 0

    @property
    def exhausted(self) -> bool:
        """Asked twice, and nothing new came."""
        return self.dry_turns >= 2


class Dataset:
    """The state of one dataset while it fills."""

    def __init__(self, config: GenerateConfig, name: str, calls: Calls) -> None:
        self.name = name
        self.spec = config.datasets[name]
        self._refill = config.refill
        self._lists = ListMaker(config, name, calls)
        self._rows = RowMaker(config, name, calls)
        self._known_prompts: set[str] = set()
        self._known_rows: set[str] = set()
        self._tasks: set[asyncio.Task] = set()
        self.subtopics: list[Subtopic] = []
        self.failures: list[Failure] = []
        self.duplicate_prompts = 0
        self._made = 0

    @property
    def rows(self) -> list[Row]:
        """Accepted rows in level order."""
        return [row for subtopic in self.subtopics for row in subtopic.rows]

    @property
    def missing(self) -> int:
        return self.spec.rows - sum(len(subtopic.rows) for subtopic in self.subtopics)

    @property
    def finished(self) -> int:
        """Rows made so far, whether their turn to be accepted has come or not; for progress only."""
        return self._made

    async def leave(self) -> None:
        """Give up what is still under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def reasons(self) -> Counter[str]:
        """Why units were not accepted, by reason."""
        failed_lists = Counter(f"list_{failure.reason}" for failure in self._lists.failed)
        duplicates = Counter(duplicate_prompt=self.duplicate_prompts)
        return Counter(failure.reason for failure in self.failures) + duplicates + failed_lists

    async def fill(self) -> list[Row]:
        """Exactly `rows` rows. StageError names what is missing and why; everything accepted is kept."""
        await self._fill_subtopics()
        turn, idle_rounds = 0, 0
        while self.missing and idle_rounds <= self._refill.max_refill_rounds:
            before = self.missing
            wanted = self._wanted()
            if not wanted:
                break
            await self._round(wanted, turn)
            idle_rounds = 0 if self.missing < before else idle_rounds + 1
            turn += 1
        if self.missing:
            raise self._short(f"{self.spec.rows - self.missing:,} of {self.spec.rows:,} rows")
        return self.rows

    async def _fill_subtopics(self) -> None:
        names: dict[str, str] = {}
        wanted, idle_rounds, turn = self.spec.num_subtopics, 0, 0
        while len(names) < wanted and idle_rounds <= self._refill.max_refill_rounds:
            count = self._with_buffer(wanted - len(names))
            entries = await self._lists.ask("subtopics", count, list(names.values()), "", turn)
            before = len(names)
            for entry in entries:
                if len(names) < wanted and len(entry) <= LONGEST_ENTRY_CHARACTERS:
                    names.setdefault(normalised(entry), entry)
            idle_rounds = 0 if len(names) > before else idle_rounds + 1
            turn += 1
        if len(names) < wanted:
            raise self._short(f"{len(names):,} of {wanted:,} subtopics")
        each, rest = divmod(self.spec.rows, wanted)
        self.subtopics = [Subtopic(name, each + (i < rest)) for i, name in enumerate(names.values())]

    def _wanted(self) -> list[tuple[Subtopic, int]]:
        """How many rows each subtopic is asked for; what an exhausted one lacks is dealt to the others."""
        able = [subtopic for subtopic in self.subtopics if subtopic.reserve or not subtopic.exhausted]
        own = [max(0, subtopic.quota - len(subtopic.rows)) for subtopic in able]
        orphans = self.missing - sum(own)
        if not able:
            return []
        each, rest = divmod(max(0, orphans), len(able))
        asked = [lack + each + (i < rest) for i, lack in enumerate(own)]
        return [(subtopic, count) for subtopic, count in zip(able, asked, strict=True) if count]

    async def _round(self, wanted: list[tuple[Subtopic, int]], turn: int) -> None:
        """Ask for prompts everywhere at once; a subtopic's rows start when its prompts are admitted."""
        asked = [self._start(self._more_prompts(subtopic, count, turn)) for subtopic, count in wanted]
        making: list[tuple[Subtopic, asyncio.Task]] = []
        for (subtopic, count), task in zip(wanted, asked, strict=True):
            self._admit(subtopic, await task, count)
            prompts, subtopic.reserve = subtopic.reserve[:count], subtopic.reserve[count:]
            making += [(subtopic, self._start(self._make(prompt))) for prompt in prompts]
        for subtopic, task in making:
            self._accept(subtopic, await task)

    async def _make(self, prompt: Prompt) -> Row | Failure:
        made = await self._rows.make(prompt)
        self._made += isinstance(made, Row)
        return made

    def _start(self, work: Coroutine) -> asyncio.Task:
        """A task that the dataset holds on to until it is done."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._let_go)
        return task

    def _let_go(self, task: asyncio.Task) -> None:
        """Forget a task; its exception counts as seen, since the first one to be awaited ends the run."""
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()

    async def _more_prompts(self, subtopic: Subtopic, count: int, turn: int) -> list[str]:
        lacking = count - len(subtopic.reserve)
        if lacking <= 0 or subtopic.exhausted:
            return []
        return await self._lists.ask(
            "prompts", self._with_buffer(lacking), subtopic.prompts, subtopic.name, turn
        )

    def _admit(self, subtopic: Subtopic, entries: list[str], count: int) -> None:
        """Put new prompts into the reserve, in the order in which they were offered."""
        lacking = count - len(subtopic.reserve)
        fresh = 0
        for entry in entries:
            key = normalised(entry)
            if len(entry) > LONGEST_ENTRY_CHARACTERS or key in self._known_prompts:
                self.duplicate_prompts += key in self._known_prompts
                continue
            self._known_prompts.add(key)
            subtopic.prompts.append(entry)
            subtopic.reserve.append(Prompt(subtopic.name, entry))
            fresh += 1
        if lacking > 0:
            subtopic.dry_turns = 0 if fresh else subtopic.dry_turns + 1

    def _accept(self, subtopic: Subtopic, made: Row | Failure) -> None:
        if isinstance(made, Failure):
            self.failures.append(made)
            return
        content = row_content(made, self.spec.mode)
        if content in self._known_rows:
            self.failures.append(Failure(self.name, made.prompt.text, "duplicate_row", made.chosen[:300], 1))
            return
        self._known_rows.add(content)
        subtopic.rows.append(made)

    def _with_buffer(self, count: int) -> int:
        return count + round(count * self._refill.over_generation_buffer)

    def _short(self, state: str) -> StageError:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(self.reasons().items()))
        return StageError(
            f'dataset "{self.name}" stopped at {state}; not accepted: {reasons or "nothing"}',
            fix="ask for fewer rows or more subtopics, or rerun: no reply so far is paid for again",
        )
