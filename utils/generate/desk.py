"""
Where decisions of one dataset are made: written to the journal, summed in the state, known to the next.

    desk = Desk(journal, state, known)
    desk.decide("closed", {"subtopic": 3})
    await desk.change()          # until the next decision, or anything else that others wait for
"""

import asyncio

from utils.config.generate import GenerateConfig
from utils.generate.given import Given, known_from
from utils.generate.history import LEVELS, History, sketch_record
from utils.generate.journal import Journal
from utils.generate.similarity import Known, Sketch
from utils.generate.state import State


class Desk:
    """`known` holds what was accepted at the levels subtopics, prompts and rows."""

    def __init__(self, journal: Journal, state: State, known: dict[str, Known]) -> None:
        self.journal, self.state, self.known = journal, state, known
        self._changed = asyncio.Event()

    def decide(self, kind: str, record: dict, sketches: list[Sketch] | None = None) -> None:
        """Make a decision: it stands as soon as its line is written."""
        line = record if sketches is None else record | {"sketches": sketch_record(sketches)}
        offset = self.journal.decide(kind, self.state.name, self.state.decided, line)
        self.state.apply(kind, record, offset)

    def changed(self) -> None:
        """Wake everybody who waits for a change."""
        self._changed.set()
        self._changed.clear()

    async def change(self) -> None:
        await self._changed.wait()


def open_desks(config: GenerateConfig, given: Given, journal: Journal, history: History) -> dict[str, Desk]:
    """A desk for each dataset, with everything that the journal knows; empties `history.sketches`."""
    desks = {}
    for name, spec in config.datasets.items():
        known = {}
        for level in LEVELS:
            is_answer_with_prompt = level == "rows" and spec.mode != "text"  # no line of a file is like those
            excluded = [] if is_answer_with_prompt else given.excluded
            known[level] = known_from(getattr(config.duplicates, level), excluded)
            if sketches := history.sketches.pop((name, level), None):
                known[level].load(sketches.keys, bytes(sketches.signatures))
        desks[name] = Desk(journal, history.states.get(name) or State(name), known)
    return desks
