"""
Reading: the blocks of all sources through the workers into the segments, in waves when there is a budget.

A wave says up to which block each source is read. It is planned from committed counters alone and committed
before it starts, so the rows that are read depend neither on timing nor on interruptions.

    >>> reader = Reader(config, stage, executor, segments)
    >>> documents, duplicates = read_everything(reader, Budget.of(config))
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from utils.config.corpus import CorpusConfig
from utils.corpus.blocks import Tokenizer
from utils.corpus.budget import Budget
from utils.corpus.candidates import DedupSettings
from utils.corpus.documents import Documents
from utils.corpus.duplicates import Duplicates, find_duplicates
from utils.corpus.executor import Workers, stoppable_map
from utils.corpus.intake import Intake, check_losses
from utils.corpus.packed import BlockTask, PackedBlock, pack_block
from utils.corpus.segments import Segments
from utils.corpus.select import supply_of
from utils.corpus.sources import Cursor
from utils.pipeline.stage import Stage


@dataclass(frozen=True)
class _SourceTask:
    source: int
    task: BlockTask

    def __str__(self) -> str:
        return str(self.task)


def _work(task: _SourceTask) -> tuple[int, PackedBlock]:
    return task.source, pack_block(task.task)


class Reader:
    """Reads the sources of a run, as far as it is told, and finds duplicates among what it has read."""

    def __init__(
        self,
        config: CorpusConfig,
        stage: Stage,
        executor: Workers,
        segments: Segments,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self._config, self._stage, self._executor, self.segments = config, stage, executor, segments
        self.intake = Intake(config, stage, tokenizer)
        self._opened: dict[int, Iterator[BlockTask]] = {}

    def read(self, until: list[int] | None = None) -> None:
        """Commit the blocks of every source that are not committed yet, up to these numbers (None: all)."""
        before = -1
        for source, block in stoppable_map(self._executor, self._stage, _work, self._tasks(until)):
            if until is None and before not in (-1, source):
                self.check_losses(before)
            self.segments.commit(source, block)
            before = source

    def duplicates(self) -> tuple[Documents, Duplicates]:
        """Find the duplicates among everything that is committed."""
        dedup = self._config.deduplicate
        near = DedupSettings(dedup.bands, dedup.rows, dedup.similarity) if dedup.near else None
        documents = Documents.of(self.segments)
        return documents, find_duplicates(documents, near, self._executor, self._stage)

    def check_losses(self, number: int) -> None:
        state = self.segments.sources[number]
        check_losses(self._config.sources[number], state.read, state.removed)

    def _tasks(self, until: list[int] | None) -> Iterator[_SourceTask]:
        for number in range(len(self._config.sources)):
            done = self.segments.sources[number].blocks
            count = None if until is None else max(0, until[number] - done)
            if count != 0:
                yield from (_SourceTask(number, task) for task in islice(self._source(number), count))

    def _source(self, number: int) -> Iterator[BlockTask]:
        """The blocks of a source; a later wave goes on where the one before ended."""
        if number not in self._opened:
            self._opened[number] = self._open(number)
        return self._opened[number]

    def _open(self, number: int) -> Iterator[BlockTask]:
        source, start = self._config.sources[number], self.segments.cursor(number)
        if start != Cursor():
            self._stage.log("resuming", source=source.name, file=start.file, row=start.row)
        settings, blocks = self.intake.open(source, start)
        for block in blocks:
            yield BlockTask(settings, block, self._config.keep_removed == "text")


def read_everything(reader: Reader, budget: Budget) -> tuple[Documents, Duplicates]:
    """Read all that is needed and return the documents with the duplicates among them."""
    numbers, found = range(len(reader.segments.sources)), None
    if not budget.total:
        reader.read()
    while budget.total and not found:
        reader.read(reader.segments.waves[-1] if reader.segments.waves else [0] * len(numbers))
        for number in numbers:
            if reader.segments.ended(number):
                reader.check_losses(number)
        found = _next_wave(reader, budget)
    for number in numbers:
        reader.check_losses(number)
    return found or reader.duplicates()


def _next_wave(reader: Reader, budget: Budget) -> tuple[Documents, Duplicates] | None:
    """
    Commit the next wave, judging by what was read, and only when that is enough, by what is no duplicate;
    returns the outcome when that is enough too.
    """
    segments = reader.segments
    if _planned(segments, budget, segments.amounts(budget.exact), "before deduplication"):
        return None
    documents, duplicates = reader.duplicates()
    supply = supply_of(documents, duplicates.kept(len(documents)), budget)
    if _planned(segments, budget, supply, "after deduplication"):
        return None
    return documents, duplicates


def _planned(segments: Segments, budget: Budget, supply: list[int], after: str) -> bool:
    ended = [segments.ended(number) for number in range(len(supply))]
    budget.check(supply, ended, after)
    shares = budget.shares([have if end else None for have, end in zip(supply, ended, strict=True)])
    blocks = [state.blocks for state in segments.sources]
    needed = [
        0 if end else budget.blocks_needed(share, have, done)
        for end, share, have, done in zip(ended, shares, supply, blocks, strict=True)
    ]
    if not any(needed):
        return False
    segments.commit_wave([done + more for done, more in zip(blocks, needed, strict=True)])
    return True
