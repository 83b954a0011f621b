"""
A generation that lies in a folder, finished or not, as its journal tells it.

    with Recorded.open(Path("data/demo/generated.partial")) as recorded:
        recorded.states["chat"].rows                 # accepted so far
        for row in recorded.rows("chat"): ...        # in the shape that the config asks for

Reads only, also while a run is writing; nothing is cut off and nothing is locked.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from utils.config.generate import GenerateConfig
from utils.generate.given import Given
from utils.generate.history import History
from utils.generate.journal import CARRIED, Entry, JournalReader
from utils.generate.state import State
from utils.generate.write import dataset_rows, failures
from utils.pipeline.config import semantic_view
from utils.pipeline.errors import UpstreamError
from utils.pipeline.seal import partial_of
from utils.pipeline.workspace import Workspace


def identity_of(config: GenerateConfig, given: Given, workspace: Workspace, epoch: int = 0) -> dict:
    """What decisions depend on beside the replies: the semantic config, what its files hold, the epoch."""
    identity = {"semantic": semantic_view(config, workspace), "files": given.digests(), "epoch": epoch}
    return json.loads(json.dumps(identity))


def stands(before: Mapping, after: Mapping) -> bool:
    """Whether decisions made under one identity stand under another, which only asks for more."""
    if (before["files"], before["epoch"]) != (after["files"], after["epoch"]):
        return False
    return GenerateConfig.only_adds(before["semantic"], after["semantic"])


def epoch_after(history: History, journal: JournalReader) -> int:
    """The epoch of decisions: a new one, in which all are made again, when an accepted row lost a reply."""
    epoch = history.identity["epoch"] if history.identity else 0
    if not journal.damaged:
        return epoch
    offsets = (offset for state in history.states.values() for s in state.subtopics for offset in s.rows)
    records = (journal.read(offset).record() for offset in offsets)
    named = (record[side] for record in records for side in ("chosen", "rejected") if record[side])
    return epoch + (not all(map(journal.knows, named)))


def config_line(config: GenerateConfig, identity: Mapping) -> dict:
    """What the journal says of the config of a run; it holds names of keys, never keys."""
    return {"identity": identity, "config": config.model_dump(mode="json")}


def still_standing(config: GenerateConfig, given: Given, workspace: Workspace) -> dict[str, State]:
    """
    What a run of this config would find decided, by dataset: in the unfinished folder of its output, or in
    the finished one that it would carry on from; {} when nothing is there or nothing of it stands.
    """
    output = workspace.path(config.output)
    path = next((p for f in (partial_of(output), output) if (p := f / CARRIED).is_file()), None)
    if path is None:
        return {}
    history = History(stands)
    journal = JournalReader(path, history.read)
    history.turn_to(identity_of(config, given, workspace, epoch_after(history, journal)))
    journal.close()
    return history.states


@dataclass
class Recorded:
    """
    `paid` counts calls, prompt and completion tokens of all replies by model and step, whether a decision was
    made of them or not.
    """

    config: GenerateConfig
    states: dict[str, State]
    paid: dict[tuple[str, str], list[int]]
    journal: JournalReader

    @property
    def usage(self) -> dict[str, Counter[str]]:
        """The same by `model.step` and by name: calls, prompt_tokens, completion_tokens."""
        names = ("calls", "prompt_tokens", "completion_tokens")
        return {
            f"{model}.{step}": Counter(dict(zip(names, counts, strict=True)))
            for (model, step), counts in self.paid.items()
        }

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the journal in a folder. UpstreamError when there is none."""
        path = folder / CARRIED
        reading = _Reading()
        if path.is_file():
            journal = JournalReader(path, reading.read)
        if not path.is_file() or reading.config is None:
            raise UpstreamError(f"{folder} holds no generation: there is no {CARRIED} with a config")
        config = GenerateConfig.model_validate(reading.config)
        states = {name: reading.history.states.get(name) or State(name) for name in config.datasets}
        return cls(config, states, reading.history.paid, journal)

    def rows(self, dataset: str) -> Iterator[dict]:
        """The rows accepted so far, in level order."""
        return dataset_rows(self.config, self.states[dataset], self.journal)

    def failures(self, dataset: str) -> Iterator[dict]:
        """What was not accepted so far, and why."""
        return failures(self.states[dataset], self.journal)

    def close(self) -> None:
        self.journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Reading:
    """Sees a whole journal; the last config is the one that counts."""

    def __init__(self) -> None:
        self.config: dict | None = None
        self.history = History(stands)

    def read(self, entry: Entry) -> None:
        self.history.read(entry)
        if entry.kind == "config":
            self.config = entry.record()["config"]
