"""
What the journal says when a run starts: which decisions still stand, what is known, what was spent.

Replies stand under any config. Decisions stand until a `config` line that does more than ask for more, and
while their numbers follow each other: behind a damaged one, they are made again.

    history = History(stands)
    journal = Journal(path, spec, visit=history.read)
    history.states["chat"].rows
"""

from array import array
from base64 import b64encode
from binascii import a2b_base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from utils.generate.journal import Entry
from utils.generate.similarity import Sketch
from utils.generate.state import State

LEVELS = ("subtopics", "prompts", "rows")
_LEVEL_OF = {"subtopics": "subtopics", "prompts": "prompts", "row": "rows"}


@dataclass
class Sketches:
    """Keys and joined signatures of what was accepted at one level."""

    keys: array = field(default_factory=lambda: array("Q"))
    signatures: bytearray = field(default_factory=bytearray)

    def add(self, key: int, signature: str) -> None:
        self.keys.append(key)
        self.signatures += a2b_base64(signature)


class History:
    """
    Sees the lines of a journal in order. `stands(before, after)` says whether decisions made under one
    identity (semantic config, digests of files) stand under another. `paid` sums calls, prompt and completion
    tokens of all replies by model and step.
    """

    def __init__(self, stands: Callable[[Mapping, Mapping], bool]) -> None:
        self._stands = stands
        self.identity: Mapping | None = None
        self.paid: dict[tuple[str, str], list[int]] = {}
        self.dropped = 0
        self._forget()

    def _forget(self) -> None:
        self.states: dict[str, State] = {}
        self.sketches: dict[tuple[str, str], Sketches] = {}

    @property
    def has_answers(self) -> bool:
        """Whether anything was paid for but test calls."""
        return any(step != "preflight" for _, step in self.paid)

    def read(self, entry: Entry) -> None:
        """Take in one line."""
        if entry.kind == "reply":
            _, model, step, prompt_tokens, completion_tokens = entry.fields
            counts = self.paid.setdefault((model, step), [0, 0, 0])
            counts[0] += 1
            counts[1] += int(prompt_tokens)
            counts[2] += int(completion_tokens)
        elif entry.kind == "config":
            self.turn_to(entry.record()["identity"])
        else:
            self._decision(entry)

    def turn_to(self, identity: Mapping) -> None:
        """Drop the decisions so far unless they stand under this identity."""
        if self.identity is not None and not self._stands(self.identity, identity):
            self.dropped += sum(state.decided for state in self.states.values())
            self._forget()
        self.identity = identity

    def _decision(self, entry: Entry) -> None:
        dataset, number = entry.fields
        state = self.states.get(dataset)
        if state is None:
            state = self.states[dataset] = State(dataset)
        if int(number) != state.decided:
            return
        record = entry.record()
        if level := _LEVEL_OF.get(entry.kind):
            sketches = self.sketches.get((dataset, level))
            if sketches is None:
                sketches = self.sketches[dataset, level] = Sketches()
            for key, signature in record.pop("sketches"):
                sketches.add(key, signature)
        state.apply(entry.kind, record, entry.offset)


def sketch_record(sketches: list[Sketch]) -> list[tuple[int, str]]:
    """The part of a decision that lets a later run know duplicates without reading texts again."""
    return [(sketch.key, b64encode(sketch.signature).decode("ascii")) for sketch in sketches]
