"""
One dataset, filled to its exact count: three levels at the same time, decided in level order.

    dataset = Dataset(config, "chat", calls, desk, starter, topics=[], prompts=None)
    await dataset.fill()            # StageError names what is missing and why; everything accepted is kept

Subtopics start their prompts at once, prompts their rows at once. Whether a row is accepted is decided in the
order of level, subtopic and prompt, so it depends on the replies alone.
"""

import asyncio

from utils.config.generate import GenerateConfig
from utils.generate.calls import Calls
from utils.generate.desk import Desk
from utils.generate.given import PromptsFile
from utils.generate.lists import ListMaker
from utils.generate.prompts import PromptLevel
from utils.generate.rows import EXCERPT_CHARACTERS, Failure, Made, RowMaker
from utils.generate.starter import Starter
from utils.generate.state import deal
from utils.generate.topics import TopicLevel
from utils.pipeline.errors import StageError


class Dataset:
    """The filling of one dataset."""

    def __init__(
        self,
        config: GenerateConfig,
        name: str,
        calls: Calls,
        desk: Desk,
        starter: Starter,
        topics: list[str],
        prompts: PromptsFile | None,
    ) -> None:
        self.name, self.spec, self.state = name, config.datasets[name], desk.state
        self._desk, self._starter = desk, starter
        self._most_idle = config.refill.max_refill_rounds
        lists = None if prompts else ListMaker(config, name, calls)
        rows = RowMaker(config, name, calls)
        self.prompts = PromptLevel(config, desk, lists, rows, starter, prompts, lambda: self._topics.done)
        self._prompts_are_given = prompts is not None
        given = [""] if prompts else topics
        self._topics = TopicLevel(config, desk, lists, starter, given, self.prompts.open)
        self._num_given = len(given)
        self._at_start = self.state.rows

    @property
    def num_rows(self) -> int:
        """Units that the dataset must have."""
        return self.spec.num_rows or self._num_given * self.spec.num_prompts_per_subtopic

    @property
    def missing(self) -> int:
        return self.num_rows - self.state.rows

    @property
    def finished(self) -> int:
        """Rows made so far, whether their turn to be accepted has come or not; for progress only."""
        return min(self.num_rows, max(self.state.rows, self._at_start + self.prompts.made))

    async def leave(self) -> None:
        """Give up what is still under way."""
        await self._starter.leave()

    async def fill(self) -> None:
        """Accept rows until the count is reached. StageError when it cannot be."""
        if not self.missing:
            return
        work = [self._fill_levels(), self.prompts.admit(), self._starter.run()]
        tasks = [asyncio.create_task(part) for part in work]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _fill_levels(self) -> None:
        self.prompts.resume()
        if self.state.level < 0:
            self._deal()
        while True:
            topics = asyncio.create_task(self._topics.fill())
            try:
                await self._level(topics)
            finally:
                topics.cancel()
                await asyncio.gather(topics, return_exceptions=True)
            if not self.missing:
                return
            self._end_level()

    # levels

    async def _level(self, topics: asyncio.Task) -> None:
        """Decide the rows of every subtopic that has a turn in this level."""
        state = self.state
        while True:
            while state.position < len(state.order):
                await self._turn(state.order[state.position])
            if topics.done():
                topics.result()
                if state.position == len(state.order):
                    return
            else:
                change = asyncio.create_task(self._desk.change())
                await asyncio.wait([change, topics], return_when=asyncio.FIRST_COMPLETED)
                change.cancel()

    async def _turn(self, number: int) -> None:
        subtopic = self.state.subtopics[number]
        while True:
            if subtopic.lack > 0 and subtopic.reserve:
                self._decide_row(number, await self.prompts.result(number))
            elif self.prompts.all_admitted(number):
                break
            else:
                await self._desk.change()
        self._desk.decide("closed", {"subtopic": number})
        self.prompts.close(number)
        self._desk.changed()

    def _decide_row(self, number: int, made: Made | Failure) -> None:
        """Accept a row that no accepted one resembles."""
        subtopic, known = self.state.subtopics[number], self._desk.known["rows"]
        prompt, label = subtopic.prompts[subtopic.used], subtopic.label(subtopic.used)
        if isinstance(made, Made) and known.holds(made.sketch):
            made = Failure("duplicate_row", self._excerpt(made), 1, made.used)
        record: dict[str, object] = {"subtopic": number, "prompt": prompt, "used": made.used}
        if isinstance(made, Failure):
            told = {"reason": made.reason, "excerpt": made.excerpt, "attempts": made.attempts}
            self._desk.decide("failure", record | told | {"label": label})
        else:
            known.add(made.sketch)
            parts = {"label": label, "chosen": made.chosen, "rejected": made.rejected}
            self._desk.decide("row", record | parts | made.scores, [made.sketch])
        self.prompts.decided(number, prompt)

    def _excerpt(self, made: Made) -> str:
        reply = self._desk.journal.reply(made.chosen)
        assert reply is not None
        return reply.content[:EXCERPT_CHARACTERS]

    def _end_level(self) -> None:
        """Go on to the next level, deal what exhausted subtopics lack to others, or give up."""
        state = self.state
        if state.idle_at_end > self._most_idle:
            raise self._short()
        if state.next_order:
            self._desk.decide("level", {})
            self._desk.changed()
        elif self._lacks_subtopics and self._topics.gave_up:
            raise self._short()
        else:
            self._deal()

    def _deal(self) -> None:
        """Quotas for everybody who may still bring rows; StageError when that is nobody."""
        state = self.state
        wanted = max(self._wanted_subtopics(), len(state.subtopics))
        have = [len(subtopic.rows) for subtopic in state.subtopics]
        able = [not subtopic.exhausted for subtopic in state.subtopics]
        to_come = wanted - len(have)
        quotas = deal(have + [0] * to_come, able + [True] * to_come, self.num_rows)
        if sum(quotas) < self.num_rows:
            raise self._short()
        self._desk.decide("deal", {"rows": self.num_rows, "subtopics": wanted, "quotas": quotas})
        for number in state.order:
            self.prompts.open(number)
        self._desk.changed()

    def _wanted_subtopics(self) -> int:
        """As many as the config asks for; of a number that only follows from the rows, what there is."""
        if self._topics.gave_up and not self.spec.num_subtopics:
            return len(self.state.subtopics)
        return self.spec.subtopics_for(self._num_given)

    @property
    def _lacks_subtopics(self) -> bool:
        return bool(self.spec.num_subtopics) and len(self.state.subtopics) < self.spec.num_subtopics

    def _failed_prompts(self) -> list[tuple[str, str]]:
        """Prompts, with their labels, that failed since they were tried last."""
        state, journal = self.state, self._desk.journal
        records = (journal.read(offset).record() for offset in state.failures["row"][state.tried :])
        return [(record["prompt"], record["label"]) for record in records]

    def _short(self) -> StageError:
        state = self.state
        self._desk.decide("short", {"again": self._failed_prompts()} if self._prompts_are_given else {})
        counts = f"{state.rows:,} of {self.num_rows:,} rows"
        if self._lacks_subtopics:
            counts = f"{len(state.subtopics):,} of {self.spec.num_subtopics:,} subtopics and {counts}"
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted((+state.reasons).items()))
        more = "add prompts to the file" if self._prompts_are_given else "more subtopics"
        return StageError(
            f'dataset "{self.name}" stopped at {counts}; not accepted: {reasons or "nothing"}',
            fix=f"ask for fewer rows or {more}, or rerun: no reply so far is paid for again",
        )
