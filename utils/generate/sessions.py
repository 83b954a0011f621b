"""
Generations and transforms below `data/`, finished or not: how far each is, what it cost, how it goes on.

    for folder in find_sessions(REPOSITORY):
        session = read_session(folder, REPOSITORY)
        session.datasets, session.tokens, session.cost, session.command

Everything is read from the journal, the state of the build folder and the manifest; nothing is written.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from utils.config.providers import ModelSpec
from utils.generate.budget import price
from utils.generate.journal import CARRIED, Scan
from utils.generate.recorded import Recorded
from utils.generate.transform import FAILURES
from utils.pipeline.errors import ConfigError, UpstreamError
from utils.pipeline.manifest import read_manifest
from utils.pipeline.refusal import build_command
from utils.pipeline.seal import partial_of, read_state
from utils.pipeline.workspace import TOOLS, Workspace


@dataclass(frozen=True)
class DatasetProgress:
    """
    Rows of a dataset, of `wanted` (for a transform: rows of its sources), and what was not accepted by
    reason.
    """

    name: str
    mode: str
    rows: int
    wanted: int
    reasons: dict[str, int]

    @property
    def missing(self) -> int:
        return max(0, self.wanted - self.rows)


@dataclass(frozen=True)
class Session:
    """One folder. `usage` counts paid replies by `model.step`; `written` is when the journal last grew."""

    folder: Path
    stage: str
    config_path: str
    finished: bool
    started: str
    ended: str
    written: str
    datasets: list[DatasetProgress]
    usage: dict[str, Counter]
    costs: dict[str, float]

    @property
    def is_transform(self) -> bool:
        """Whether its rows come from those of others, one for one."""
        return self.stage in TOOLS

    @property
    def command(self) -> str:
        """What continues it, or does nothing where it is finished and up to date."""
        return build_command(self.stage, self.config_path)

    @property
    def tokens(self) -> int:
        return sum(counts["prompt_tokens"] + counts["completion_tokens"] for counts in self.usage.values())

    @property
    def cost(self) -> float:
        return sum(self.costs.values())


def find_sessions(workspace: Workspace) -> list[Path]:
    """Folders with a journal: `data/<profile>/<artifact>`, and the same with `.partial`."""
    return sorted(path.parents[1] for path in workspace.path("data").glob(f"*/*/{CARRIED}"))


def session_folder(path: Path, workspace: Workspace) -> Path:
    """The folder that is meant: the unfinished one where there is no other. ConfigError if there is none."""
    folder = workspace.path(path.absolute())
    for candidate in (folder, partial_of(folder)):
        if (candidate / CARRIED).is_file():
            return candidate
    raise ConfigError(
        f"{workspace.relative(folder)} holds no generation: there is no {CARRIED}",
        fix="python tools/generation.py list",
    )


def read_session(folder: Path, workspace: Workspace) -> Session:
    """How far a folder is. ConfigError if nobody can tell what wrote it."""
    written = datetime.fromtimestamp((folder / CARRIED).stat().st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    stage, config_path, started, ended, finished = _origin(folder, workspace)
    datasets, usage, models = _read_transform(folder) if stage in TOOLS else _read_generation(folder)
    costs = {name: _cost(name, counts, models) for name, counts in usage.items()}
    return Session(folder, stage, config_path, finished, started, ended, written, datasets, usage, costs)


def _origin(folder: Path, workspace: Workspace) -> tuple[str, str, str, str, bool]:
    """Stage, config, when it was started, how it ended, whether it is finished."""
    manifest = read_manifest(folder)[0]
    if manifest is not None:
        run = manifest.run
        return manifest.stage, manifest.config.path, run.started, f"finished {run.finished}", True
    state = read_state(folder)
    if state is None or "config" not in state:
        name = workspace.relative(folder)
        raise ConfigError(f"{name} does not say what it is of", fix="run its stage with its config again")
    ended = "running, or killed"
    if "ended" in state:
        ended = f"{state['ended']}, exit {state['exit_code']}"
    return state["stage"], state["config"], state["started"], ended, False


def _read_generation(folder: Path) -> tuple[list[DatasetProgress], dict, Mapping[str, ModelSpec]]:
    with Recorded.open(folder) as recorded:
        datasets = [
            DatasetProgress(
                name,
                spec.mode,
                recorded.states[name].rows,
                spec.num_rows or sum(recorded.states[name].quotas),
                {reason: count for reason, count in recorded.states[name].reasons.most_common() if count},
            )
            for name, spec in recorded.config.datasets.items()
        ]
        return datasets, recorded.usage, recorded.config.models


def _read_transform(folder: Path) -> tuple[list[DatasetProgress], dict, Mapping[str, ModelSpec]]:
    """Rows are those of the last pass, which starts at the first row each time."""
    usage: dict[str, Counter] = {}
    noted: dict = {}
    for entry in Scan(folder / CARRIED):
        if entry.kind == "config":
            noted = entry.record()
        elif entry.kind == "reply":
            _, model, step, prompt_tokens, completion_tokens = entry.fields
            counts = usage.setdefault(f"{model}.{step}", Counter())
            counts.update(calls=1, prompt_tokens=int(prompt_tokens), completion_tokens=int(completion_tokens))
    if not noted:
        raise UpstreamError(f"{folder} holds no transform: its journal names no config")
    config, name = noted["config"], noted["config"]["dataset"]
    rows = sum(1 for _ in _lines(folder / name / "dataset.jsonl"))
    reasons = Counter(json.loads(line)["reason"] for line in _lines(folder / FAILURES))
    models = {key: ModelSpec.model_validate(model) for key, model in config["models"].items()}
    wanted = noted.get("source_rows", 0)  # journals of an earlier version do not say it
    return [DatasetProgress(name, "dpo", rows, wanted, dict(reasons.most_common()))], usage, models


def _cost(name: str, counts: Counter, models: Mapping[str, ModelSpec]) -> float:
    """By the prices of the last config; a model that it no longer knows costs nothing."""
    model = models.get(name.split(".")[0])
    return price(model, counts["prompt_tokens"], counts["completion_tokens"]) if model else 0.0


def rows_of(session: Session, dataset: str) -> Iterator[dict]:
    """What exists so far of a dataset, in the shape and order of the finished file."""
    if session.is_transform:
        yield from map(json.loads, _lines(session.folder / dataset / "dataset.jsonl"))
        return
    with Recorded.open(session.folder) as recorded:
        yield from recorded.rows(dataset)


def _lines(path: Path) -> Iterator[str]:
    """The whole lines of a file that may be in the making."""
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            yield from (line for line in file if line.endswith("\n"))


def ago(stamp: str, now: float | None = None) -> str:
    """How long ago a UTC time stamp was, in its largest unit: "3 min"."""
    moment = datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
    seconds = max(0.0, (time.time() if now is None else now) - moment)
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    return next((f"{seconds // size:.0f} {name}" for name, size in units if seconds >= size), "0 s")
