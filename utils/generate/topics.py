"""
The first level: subtopics, asked for in rounds until there are as many as the dataset needs, or given.

Chunks of a round are asked at the same time and decided in chunk order; each accepted subtopic starts its
prompts at once.

    level = TopicLevel(config, desk, lists, starter, given_topics=[], opened=prompts.open)
    await level.fill()
"""

import asyncio
from collections.abc import Callable

from utils.config.generate import GenerateConfig
from utils.generate.desk import Desk
from utils.generate.lists import Ask, Chunk, ListMaker, Offer, chunk_sizes, excluded
from utils.generate.similarity import sketch_of
from utils.generate.starter import Starter


class TopicLevel:
    """Fills up the subtopics of one dataset."""

    def __init__(
        self,
        config: GenerateConfig,
        desk: Desk,
        lists: ListMaker | None,
        starter: Starter,
        given: list[str],
        opened: Callable[[int], None],
    ) -> None:
        self._config, self._desk, self._state = config, desk, desk.state
        self._lists, self._starter = lists, starter
        self._given, self._opened = given, opened

    async def fill(self) -> None:
        """Accept subtopics until there are enough, or none come any more."""
        while not self.done:
            if self._given:
                new = self._given[len(self._state.subtopics) :]
                self._accept(Chunk([Offer(text, sketch_of(text)) for text in new]), last=True)
                break
            await self._round()
        self._desk.changed()

    @property
    def done(self) -> bool:
        """Whether no more subtopics come: all are there, or `max_refill_rounds` brought nothing new."""
        return not self._lacking or self.gave_up

    @property
    def _lacking(self) -> int:
        return self._state.num_subtopics - len(self._state.subtopics)

    @property
    def gave_up(self) -> bool:
        """Whether rounds brought nothing new too often."""
        return self._state.idle_rounds > self._config.refill.max_refill_rounds

    async def _round(self) -> None:
        round = self._state.round
        assert round is not None
        sizes = chunk_sizes(round.lacking, self._config.refill, round.number > 0)
        chunks: list[asyncio.Future[Chunk]] = []
        for index in range(round.chunks, len(sizes)):
            chunks.append(self._start(round.number, round.num_known, index, sizes))
        for index, chunk in zip(range(round.chunks, len(sizes)), chunks, strict=True):
            self._accept(await chunk, last=index == len(sizes) - 1)
            if not self._lacking:
                return

    def _start(self, round: int, num_known: int, index: int, sizes: list[int]) -> asyncio.Future[Chunk]:
        assert self._lists is not None
        known = [subtopic.name for subtopic in self._state.subtopics[:num_known]]
        most = self._config.refill.max_excluded
        left_out = excluded(known, self._config.main_topic, most, index + round)
        ask = Ask(sizes[index], round, index, left_out, is_retry=round > 0)
        lists = self._lists
        return self._starter.list(lambda: lists.ask("subtopics", "", ask), weight=sizes[index])

    def _accept(self, chunk: Chunk, last: bool) -> None:
        lacking, known = self._lacking, self._desk.known["subtopics"]
        new: list[Offer] = []
        duplicates = 0
        for offer in chunk.offers:
            if len(new) == lacking:
                break
            if known.holds(offer.sketch):
                duplicates += 1
                continue
            known.add(offer.sketch)
            new.append(offer)
        first = len(self._state.subtopics)
        record = chunk.record(self._config.main_topic) | {"names": [offer.text for offer in new]}
        record |= {"duplicates": duplicates, "last": last}
        self._desk.decide("subtopics", record, [offer.sketch for offer in new])
        for number in range(first, len(self._state.subtopics)):
            self._opened(number)
        self._desk.changed()
