"""
Lists of subtopics and prompts: one call gives one chunk, with what is known left out.

    chunk = await ListMaker(config, "chat", calls).ask("prompts", "animals", ask)
    [offer.text for offer in chunk.offers]
"""

from dataclasses import dataclass, field

from utils.config.generate import GenerateConfig, RefillSpec
from utils.generate.calls import Calls, Request, used_calls
from utils.generate.errors import CallFailed
from utils.generate.parse import parse_list
from utils.generate.similarity import Sketch, sketch_of
from utils.generate.templates import Renderer
from utils.generate.validate import normalised, words

MOST_CHUNKS = 100_000
"""More calls than one list is ever cut into, so that round and chunk make one number."""
LONGEST_ENTRY_CHARACTERS = 2000
LEAST_AGAIN = 10
"""Fewest entries that are asked for once some are known: asking for one brings what is known."""
EXCERPT_CHARACTERS = 300
SCHEMA = {
    "type": "object",
    "properties": {"items": {"type": "array", "items": {"type": "string"}}},
    "required": ["items"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Ask:
    """One chunk of a list: how many entries, in which round (or level) and place, what to leave out."""

    count: int
    round: int
    index: int
    exclude: list[str]
    is_retry: bool


@dataclass(frozen=True, slots=True)
class Offer:
    """An entry that a model or a file offered; a file of prompts names a subtopic as `label`."""

    text: str
    sketch: Sketch
    label: str = ""


@dataclass(slots=True)
class Chunk:
    """What one call gave; `reason` says why it gave nothing."""

    offers: list[Offer] = field(default_factory=list)
    too_long: int = 0
    reason: str = ""
    excerpt: str = ""
    attempts: int = 0
    used: dict[str, list[int]] = field(default_factory=dict)

    def record(self, unit: str) -> dict:
        """The part of a decision that both levels share."""
        record: dict[str, object] = {"used": self.used}
        if self.too_long:
            record["too_long"] = self.too_long
        if self.reason:
            told = {"reason": self.reason, "excerpt": self.excerpt, "attempts": self.attempts}
            record |= {"unit": unit} | told
        return record


class ListMaker:
    """Asks for the lists of one dataset."""

    def __init__(self, config: GenerateConfig, dataset: str, calls: Calls) -> None:
        self._name, self._model = dataset, config.datasets[dataset].main_model
        self._renderer = Renderer(config, dataset)
        self._calls = calls

    async def ask(self, step: str, subtopic: str, ask: Ask) -> Chunk:
        """The entries of one chunk, in the order of the answer; asked again once if there are none."""
        number = MOST_CHUNKS * ask.round + ask.index
        messages = self._renderer.messages(
            step,
            subtopic=subtopic,
            count=ask.count,
            exclude=ask.exclude,
            is_retry=ask.is_retry,
            index=number,
        )
        with used_calls() as used:
            chunk = await self._entries(step, f"{subtopic}\n{number}", number, messages)
        chunk.used = used.record()
        return chunk

    async def _entries(self, step: str, unit: str, number: int, messages: list[dict[str, str]]) -> Chunk:
        said = ""
        try:
            for _ in range(2):
                request = Request(self._name, step, self._model, messages, unit, number, SCHEMA)
                reply = await self._calls.ask(request)
                said = reply.content
                if entries := parse_list(said, is_cut=reply.finish_reason == "length"):
                    return _chunk(entries)
                messages = [*messages, *_again(said)]
        except CallFailed as failure:
            return Chunk(reason=failure.reason, excerpt=failure.excerpt, attempts=failure.attempts)
        return Chunk(reason="no_list", excerpt=said[:EXCERPT_CHARACTERS], attempts=2)


def _chunk(entries: list[str]) -> Chunk:
    fitting = [entry for entry in entries if len(entry) <= LONGEST_ENTRY_CHARACTERS]
    return Chunk([Offer(entry, sketch_of(entry)) for entry in fitting], len(entries) - len(fitting))


def _again(said: str) -> list[dict[str, str]]:
    wrong = "That holds no JSON list of strings. Answer with the list alone."
    return [{"role": "assistant", "content": said}, {"role": "user", "content": wrong}]


def chunk_sizes(lacking: int, refill: RefillSpec, again: bool) -> list[int]:
    """
    Even chunks for what lacks and the buffer on top; who asks `again` expects repetitions, and asks for
    more.
    """
    count = lacking + round(lacking * refill.over_generation_buffer)
    if again and lacking:
        count = max(count, min(LEAST_AGAIN, refill.entries_per_call))
    chunks = -(-count // refill.entries_per_call)
    return [count // chunks + (index < count % chunks) for index in range(chunks)]


def excluded(known: list[str], subject: str, most: int, share: int) -> list[str]:
    """
    Up to `most` known entries to leave out: those most like the subject, by words in common over all words.
    Each further `share` (of chunks that run at the same time, and of later turns) has the next ones.
    """
    if len(known) <= most or not most:
        return known[:most]
    wanted = set(words(normalised(subject)))

    def likeness(position: int) -> float:
        found = set(words(normalised(known[position])))
        return len(found & wanted) / max(1, len(found | wanted))

    ranked = sorted(range(len(known)), key=likeness, reverse=True)
    first = share % -(-len(known) // most) * most
    return [known[ranked[place % len(known)]] for place in range(first, first + most)]
