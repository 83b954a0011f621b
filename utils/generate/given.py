"""
Subtopics, prompts and texts to leave out that a user gives in files, instead of a model.

    given = Given.read(config, workspace)
    given.topics            # ["animals", "weather"], without repetitions
    given.digests()         # what the files held; a changed file is another config

A prompts file is read block by block, so its texts are never all in memory.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from utils.config.generate import GenerateConfig
from utils.generate.given_lines import LinesFile
from utils.generate.similarity import Known, Sketch, sketch_of
from utils.pipeline.errors import ConfigError
from utils.pipeline.hashing import hash_files
from utils.pipeline.workspace import Workspace

PROMPTS_PER_BLOCK = 200


@dataclass(frozen=True)
class GivenPrompt:
    """One prompt of a file and the subtopic that it names, "" for none."""

    text: str
    subtopic: str


class PromptsFile:
    """
    The prompts of a file in order; only places of lines are kept. ConfigError for a line that is none.
    """

    def __init__(self, path: Path) -> None:
        self._file = LinesFile(path, "prompt")
        self._blocks: list[tuple[int, int]] = []
        self.num_prompts = 0
        for line in self._file:
            if self.num_prompts % PROMPTS_PER_BLOCK == 0:
                self._blocks.append((line.offset, line.number))
            self.num_prompts += 1
        if not self.num_prompts:
            raise ConfigError(f"{path}: holds no prompt")

    @property
    def num_blocks(self) -> int:
        return len(self._blocks)

    def block(self, number: int) -> list[GivenPrompt]:
        """Prompts `number * PROMPTS_PER_BLOCK` and following."""
        lines = islice(self._file.from_place(*self._blocks[number]), PROMPTS_PER_BLOCK)
        return [GivenPrompt(line.record["prompt"], line.record.get("subtopic", "")) for line in lines]


@dataclass(frozen=True)
class Given:
    """What files give a run; empty where the config names none."""

    topics: list[str] = field(default_factory=list)
    prompts: PromptsFile | None = None
    excluded: list[Sketch] = field(default_factory=list)
    paths: dict[str, Path] = field(default_factory=dict)

    @classmethod
    def read(cls, config: GenerateConfig, workspace: Workspace) -> "Given":
        """Read the files that a config names. ConfigError names the file and the line that is wrong."""
        named = {
            "topics": config.topics_file,
            "prompts": config.prompts_file,
            "excluded": config.duplicates.exclude_file,
        }
        paths = {name: workspace.path(path) for name, path in named.items() if path}
        excluded = (
            [sketch_of(text) for text in _texts(paths["excluded"], "text")] if "excluded" in paths else []
        )
        topics = []
        if "topics" in paths:
            topics = _distinct(_texts(paths["topics"], "subtopic"), config.duplicates.subtopics, excluded)
            _check_topics(config, len(topics))
        prompts = PromptsFile(paths["prompts"]) if "prompts" in paths else None
        if prompts:
            _check_prompts(config, prompts.num_prompts)
        return cls(topics, prompts, excluded, paths)

    def digests(self) -> dict[str, str]:
        """SHA-256 of each file by role."""
        found = hash_files(self.paths.values())
        return {role: found[path].sha256 for role, path in sorted(self.paths.items())}


def known_from(threshold: float, excluded: list[Sketch]) -> Known:
    """What a level must not repeat before anything was accepted."""
    known = Known(threshold)
    known.load([sketch.key for sketch in excluded], b"".join(sketch.signature for sketch in excluded))
    return known


def _distinct(texts: Iterable[str], threshold: float, excluded: list[Sketch]) -> list[str]:
    known, found = known_from(threshold, excluded), []
    for text in texts:
        sketch = sketch_of(text)
        if not known.holds(sketch):
            known.add(sketch)
            found.append(text)
    return found


def _check_topics(config: GenerateConfig, count: int) -> None:
    """ConfigError when a topics file does not fit the datasets."""
    if not count:
        raise ConfigError(f"{config.topics_file}: holds no subtopic that may be used")
    for name, spec in config.datasets.items():
        if spec.num_subtopics > count:
            raise ConfigError(
                f"datasets.{name}.num_subtopics: {spec.num_subtopics:,} are wanted, and {config.topics_file} "
                f"has {count:,} different ones",
                fix="add some to the file, or leave num_subtopics out to use all",
            )
        rows = spec.num_rows or spec.num_prompts_per_subtopic * count
        for key, value in (("max_subtopics", spec.subtopics_for(count)), ("max_rows", rows)):
            if value > (most := getattr(config.limits, key)):
                raise ConfigError(
                    f"datasets.{name}: {value:,} by {config.topics_file} is more than limits.{key} = "
                    f"{most:,}",
                    fix=f"raise limits.{key} to mean it",
                )


def _check_prompts(config: GenerateConfig, count: int) -> None:
    """ConfigError when a dataset wants more rows than a file has prompts."""
    for name, spec in config.datasets.items():
        if spec.rows > count:
            raise ConfigError(
                f"datasets.{name}.rows: {spec.rows:,} are wanted, and {config.prompts_file} has {count:,} "
                "prompts",
                fix="add some to the file, or ask for fewer rows",
            )


def _texts(path: Path, key: str) -> Iterator[str]:
    with LinesFile(path, key) as file:
        for line in file:
            yield line.record[key]
