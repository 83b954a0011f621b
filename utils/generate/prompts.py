"""
The second level: each subtopic's turns, whose prompts are asked for, admitted in level order, and made rows.

Replies are used as they come: when a list arrives before its turn to be admitted, rows of the prompts that
look new start already. What is admitted is decided in level order alone, so neither timing nor a kill changes
it. Of the admitted prompts as many are made as rows lack; one that fails is replaced at once by the next.

    level = PromptLevel(config, desk, lists, rows, starter, given_prompts=None)
    level.open(0)
    await level.result(0)        # what became of the next prompt of subtopic 0
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from utils.config.generate import GenerateConfig
from utils.generate.desk import Desk
from utils.generate.given import PromptsFile
from utils.generate.lists import Ask, Chunk, ListMaker, Offer, chunk_sizes, excluded
from utils.generate.rows import Failure, Made, RowMaker
from utils.generate.similarity import sketch_of
from utils.generate.starter import Starter
from utils.generate.state import Subtopic, Turn


@dataclass(slots=True)
class _Start:
    """
    A prompt that is being made a row: `counted` while it is among those that its turn relies on, `missed`
    once its turn knows that it failed.
    """

    result: asyncio.Future[Made | Failure]
    counted: bool = False
    missed: bool = False

    @property
    def failed(self) -> bool:
        done = self.result.done() and not self.result.cancelled() and not self.result.exception()
        return done and isinstance(self.result.result(), Failure)


@dataclass(slots=True)
class _Work:
    """
    What is under way for a subtopic's turn: its chunks by place, its starts by prompt. `cursor` is the first
    admitted prompt that has not started, `failed` counts starts before it that are known to have failed.
    """

    number: int
    turn: Turn
    sizes: list[int]
    cursor: int
    chunks: dict[int, asyncio.Future[Chunk]] = field(default_factory=dict)
    starts: dict[str, _Start] = field(default_factory=dict)
    failed: int = 0


class PromptLevel:
    """`topics_done` says whether level 0 may still get subtopics."""

    def __init__(
        self,
        config: GenerateConfig,
        desk: Desk,
        lists: ListMaker | None,
        rows: RowMaker,
        starter: Starter,
        given: PromptsFile | None,
        topics_done: Callable[[], bool],
    ) -> None:
        self._refill, self._desk, self._state = config.refill, desk, desk.state
        self._lists, self._rows, self._starter = lists, rows, starter
        self._given, self._topics_done = given, topics_done
        self._works: dict[int, _Work] = {}
        self._awaited: asyncio.Future[Chunk] | None = None
        self._hoped: set[int] = set()  # keys of prompts that started before they were admitted
        self.made = 0

    def resume(self) -> None:
        """Take up the turns that were open when the journal ended."""
        state = self._state
        for number in [*state.order[state.position :], *state.next_order]:
            self.open(number)

    def open(self, number: int) -> None:
        """Start what a subtopic's turn needs: its list, or rows from its reserve."""
        subtopic = self._state.subtopics[number]
        turn = subtopic.turn
        if turn is None:
            return
        sizes = []
        if turn.lacking and not self._given:
            sizes = chunk_sizes(turn.lacking, self._refill, turn.number > 0)
        work = self._works[number] = _Work(number, turn, sizes, subtopic.used)
        for index in range(turn.chunks, len(sizes)):
            work.chunks[index] = self._ask(work, subtopic, index)
        self._advance(work)

    def all_admitted(self, number: int) -> bool:
        """Whether every chunk of a subtopic's turn was admitted."""
        work = self._works[number]
        if self._given:
            subtopic = self._state.subtopics[number]
            return subtopic.lack <= 0 or subtopic.blocks == self._given.num_blocks
        return work.turn.chunks >= len(work.sizes)

    async def result(self, number: int) -> Made | Failure:
        """What became of the first prompt in a subtopic's reserve."""
        subtopic = self._state.subtopics[number]
        return await self._works[number].starts[subtopic.prompts[subtopic.used]].result

    def decided(self, number: int, prompt: str) -> None:
        """The first prompt of the reserve was decided: start the next if rows are still missing."""
        work = self._works[number]
        start = work.starts.pop(prompt)
        start.counted = False
        work.failed -= start.missed
        self._advance(work)

    def close(self, number: int) -> None:
        """A subtopic's turn is over; take up its next one, if there is one."""
        del self._works[number]
        turn = self._state.subtopics[number].turn
        if turn and turn.level > self._state.level:
            self.open(number)

    async def admit(self) -> None:
        """Admit the chunks of all turns in level order, for ever."""
        level, place = self._state.level, self._state.position
        while True:
            members = self._state.members(level)
            if level < self._state.level:
                level, place = level + 1, 0
            elif place < len(members):
                await self._admit_turn(members[place], level)
                place += 1
            elif level == self._state.level and self._topics_done():
                level, place = level + 1, 0
            else:
                await self._desk.change()

    # asking and admitting

    def _ask(self, work: _Work, subtopic: Subtopic, index: int) -> asyncio.Future[Chunk]:
        assert self._lists is not None
        lists, turn = self._lists, work.turn

        async def ask() -> Chunk:
            known = subtopic.known[: turn.num_known]
            left_out = excluded(known, subtopic.name, self._refill.max_excluded, index + turn.number)
            wanted = Ask(work.sizes[index], turn.level, index, left_out, turn.number > 0)
            return await lists.ask("prompts", subtopic.name, wanted)

        future = self._starter.list(ask, weight=work.sizes[index])
        future.add_done_callback(lambda arrived: self._arrived(work, index, arrived))
        return future

    def _arrived(self, work: _Work, index: int, future: asyncio.Future[Chunk]) -> None:
        """Start rows of a list that is not yet admitted, as far as its prompts will be needed for sure."""
        if future is self._awaited or future.cancelled() or future.exception():
            return
        subtopic = self._state.subtopics[work.number]
        place = subtopic.reserve + sum(work.sizes[work.turn.chunks : index])
        known = self._desk.known["prompts"]
        for offer in future.result().offers:
            if place >= subtopic.lack + work.failed:
                return
            if offer.sketch.key not in self._hoped and not known.holds(offer.sketch):
                self._hoped.add(offer.sketch.key)
                work.starts[offer.text] = self._start(work, offer.text, subtopic.name)
                place += 1

    async def _admit_turn(self, number: int, level: int) -> None:
        turn = self._state.subtopics[number].turn
        if self._given or turn is None or turn.level != level:
            return
        work = self._works[number]
        while work.turn.chunks < len(work.sizes):
            self._awaited = work.chunks.pop(work.turn.chunks)
            self._admit(work, await self._awaited)
            self._advance(work)

    def _admit(self, work: _Work, chunk: Chunk) -> None:
        """Decide which entries of a chunk become prompts."""
        known = self._desk.known["prompts"]
        new: list[Offer] = []
        dropped: list[str] = []
        for offer in chunk.offers:
            self._hoped.discard(offer.sketch.key)
            if known.holds(offer.sketch):
                dropped.append(offer.text)
                continue
            known.add(offer.sketch)
            new.append(offer)
        subtopic = self._state.subtopics[work.number]
        record = chunk.record(subtopic.name) | {"subtopic": work.number}
        record |= {"prompts": [offer.text for offer in new], "duplicates": len(dropped)}
        if self._given:
            record["labels"] = [offer.label for offer in new]
        else:
            record["dropped"] = dropped
        self._desk.decide("prompts", record, [offer.sketch for offer in new])
        self._desk.changed()

    def _read_block(self, work: _Work, subtopic: Subtopic) -> bool:
        """Admit the next block of a prompts file, if there is one and rows run low."""
        if self._given is None or subtopic.blocks == self._given.num_blocks or not self._starter.has_room():
            return False
        prompts = self._given.block(subtopic.blocks)
        self._admit(work, Chunk([Offer(p.text, sketch_of(p.text), p.subtopic) for p in prompts]))
        return True

    # starting rows

    def _advance(self, work: _Work) -> None:
        """Start admitted prompts until as many run or stand as rows lack."""
        subtopic = self._state.subtopics[work.number]
        while work.cursor < subtopic.used + subtopic.lack + work.failed:
            if work.cursor == len(subtopic.prompts) and not self._read_block(work, subtopic):
                return
            if work.cursor < len(subtopic.prompts):
                self._count_next(work, subtopic)

    def _count_next(self, work: _Work, subtopic: Subtopic) -> None:
        prompt, label = subtopic.prompts[work.cursor], subtopic.label(work.cursor)
        work.cursor += 1
        start = work.starts.get(prompt)
        if start is None:
            start = work.starts[prompt] = self._start(work, prompt, label)
        start.counted = True
        self._notice(work, start)

    def _notice(self, work: _Work, start: _Start) -> None:
        """Count a failure that another prompt must make good for, once."""
        if start.counted and start.failed and not start.missed:
            start.missed = True
            work.failed += 1

    def _start(self, work: _Work, prompt: str, label: str) -> _Start:
        rows, tries = self._rows, self._state.tries
        start = _Start(self._starter.row(lambda: rows.make(label, prompt, tries)))
        start.result.add_done_callback(lambda done: self._ended(work, start))
        return start

    def _ended(self, work: _Work, start: _Start) -> None:
        if start.result.cancelled() or start.result.exception():
            return
        self.made += not start.failed
        if self._works.get(work.number) is work:
            self._notice(work, start)
            self._advance(work)
