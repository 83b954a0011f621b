"""Parts that generation tests share: the engine over a model that is a function, whole runs in a folder."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from utils.config.generate import GenerateConfig
from utils.generate.calls import Calls
from utils.generate.dataset import Dataset
from utils.generate.desk import open_desks
from utils.generate.errors import CallFailed
from utils.generate.given import Given
from utils.generate.history import History
from utils.generate.journal import CARRIED, Journal, JournalReader
from utils.generate.recorded import config_line, epoch_after, identity_of, stands
from utils.generate.reply import Reply
from utils.generate.run import Generated, generate
from utils.generate.starter import Starter
from utils.generate.state import State
from utils.generate.write import dataset_rows, failures
from utils.pipeline.workspace import REPOSITORY, Workspace

DEMO = REPOSITORY.path("config/demo/10_generate.json")
STEPS = ("subtopics", "prompts", "chosen", "rejected")


def small_document(**rows: int) -> dict:
    """The demo config with other row counts; datasets that are not named are left out."""
    document = _without_comments(json.loads(DEMO.read_text()))
    document["datasets"] = {
        name: document["datasets"][name] | {"rows": count, "num_subtopics": min(count, 8)}
        for name, count in rows.items()
    }
    used = {name for spec in document["datasets"].values() for name in spec.get("templates", {}).values()}
    document["templates"] = {name: text for name, text in document["templates"].items() if name in used}
    return document


def _without_comments(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_comments(item) for key, item in value.items() if not key.startswith("_")}
    return value


@dataclass
class Session:
    """Runs a config in a folder; `events` holds what it logged."""

    folder: Path
    events: list[tuple[str, str]] = field(default_factory=list)
    workspace: Workspace = REPOSITORY

    @property
    def journal(self) -> Path:
        return self.folder / CARRIED

    def run(self, document: dict, stopping: Callable[[], bool] = lambda: False) -> Generated | None:
        return self.run_config(GenerateConfig.model_validate(document), stopping)

    def run_config(
        self, config: GenerateConfig, stopping: Callable[[], bool] = lambda: False
    ) -> Generated | None:
        self.folder.mkdir(parents=True, exist_ok=True)
        return generate(config, self.folder, self.workspace, self._log, stopping)

    def _log(self, event: str, text: str = "", **_: object) -> None:
        self.events.append((event, text))

    def rows(self, dataset: str) -> list[dict]:
        lines = (self.folder / dataset / "dataset.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def outputs(self) -> dict[str, bytes]:
        """Every output file by path, logs left out."""
        found = (path for path in sorted(self.folder.rglob("*")) if path.is_file())
        paths = {path.relative_to(self.folder).as_posix(): path for path in found}
        return {name: path.read_bytes() for name, path in paths.items() if not name.startswith("log/")}


# the engine over a function


@dataclass(frozen=True)
class Asked:
    """What the test templates put into a request."""

    step: str
    count: int
    subtopic: str
    prompt: str
    index: int
    excluded: tuple[str, ...]
    is_again: bool


Model = Callable[[Asked], str]


def config(mode: str = "sft", rows: int = 20, num_subtopics: int = 4, **sections: object) -> GenerateConfig:
    """A config of one dataset, `d`, whose templates say plainly what is asked."""
    fields = "{{ count }}|{{ subtopic }}|{{ prompt }}|{{ index }}|{{ exclude | join('/') }}"
    steps = [step for step in STEPS if step != "rejected" or mode in ("dpo", "kto", "mo_dpo")]
    dataset = {"mode": mode, "rows": rows, "num_subtopics": num_subtopics}
    if "topics_file" in sections:
        steps.remove("subtopics")
    dataset |= {"templates": {step: step for step in steps}}
    document = {
        "output": "x",
        "main_topic": "animals",
        "datasets": {"d": dataset | sections.pop("dataset", {})},
        "providers": {"p": {"kind": "offline-teacher"}},
        "models": {name: {"provider": "p", "model": name} for name in ("main", "rejected")},
        "templates": {step: {"user": f"{step}|{fields}"} for step in steps},
        "duplicates": {"subtopics": 1, "prompts": 1, "rows": 1},
    }
    return GenerateConfig.model_validate(document | sections)


class FakeClient:
    """Stands for a provider: `model` answers, after a random time; "!reason" gives the call up."""

    last_failure = ""

    def __init__(self, model: Model, seed: int = 0, seconds: float = 0.002) -> None:
        self._model, self._rng, self._seconds = model, random.Random(seed), seconds
        self.asked: Counter[str] = Counter()
        self.bodies: Counter[str] = Counter()
        self.in_flight = self.most_in_flight = 0

    async def complete(self, body: dict, model: object, *, estimate_tokens: int) -> Reply:
        asked = read_asked(body["messages"])
        self.asked[asked.step] += 1
        self.bodies[json.dumps(body, sort_keys=True)] += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(self._rng.random() * self._seconds)
        self.in_flight -= 1
        text = self._model(asked)
        if text.startswith("!"):
            raise CallFailed(text[1:], "seen", 1)
        return Reply(text, "", "length" if text == "cut" else "stop", 3, 5)


def read_asked(messages: list[dict]) -> Asked:
    step, count, subtopic, prompt, index, excluded = messages[0]["content"].split("|")
    left_out = tuple(entry for entry in excluded.split("/") if entry)
    return Asked(step, int(count), subtopic, prompt, int(index), left_out, len(messages) > 1)


def plain_model(asked: Asked) -> str:
    """Offers as many entries as asked for, others in each call; answers anything."""
    if asked.step in ("subtopics", "prompts"):
        return json.dumps([f"{asked.subtopic or 'topic'} {asked.index}.{n}" for n in range(asked.count)])
    return f"{asked.step} {asked.prompt} {asked.index}"


@dataclass
class Engine:
    """Fills dataset `d` of a config in a folder, with the real journal."""

    folder: Path
    workspace: Workspace = REPOSITORY

    def fill(
        self,
        configured: GenerateConfig,
        model: Model = plain_model,
        seed: int = 0,
        seconds: float = 0.002,
        stop_after_lines: int = 0,
    ) -> FakeClient:
        """Run until the dataset is full; with `stop_after_lines`, until the journal has grown by so many."""
        given = Given.read(configured, self.workspace)
        history = History(stands)
        journal = Journal(self.folder / CARRIED, configured.journal, history.read)
        identity = identity_of(configured, given, self.workspace, epoch_after(history, journal))
        if history.identity != identity:
            journal.note_config(config_line(configured, identity))
        history.turn_to(identity)
        client = FakeClient(model, seed, seconds)
        desk = open_desks(configured, given, journal, history)["d"]
        if stop_after_lines:
            _die_after(journal, stop_after_lines)

        async def run() -> None:
            calls = Calls(configured, {"p": client}, journal)
            starter = Starter(64, lambda error: None)
            dataset = Dataset(configured, "d", calls, desk, starter, given.topics, given.prompts)
            try:
                await dataset.fill()
            finally:
                await dataset.leave()

        try:
            asyncio.run(run())
        except Killed:
            pass
        finally:
            journal.close()
        return client

    def read(self, configured: GenerateConfig) -> tuple[State, JournalReader]:
        """The state that the journal tells of."""
        history = History(stands)
        journal = JournalReader(self.folder / CARRIED, history.read)
        return history.states["d"], journal

    def rows(self, configured: GenerateConfig) -> list[dict]:
        state, journal = self.read(configured)
        return list(dataset_rows(configured, state, journal))

    def failures(self, configured: GenerateConfig) -> list[dict]:
        state, journal = self.read(configured)
        return list(failures(state, journal))


class Killed(BaseException):
    """Stands for kill -9: nothing after it is written."""


def _die_after(journal: Journal, lines: int) -> None:
    left, append = [lines], journal._append

    def dying(line: bytes) -> int:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        return append(line)

    journal._append = dying
