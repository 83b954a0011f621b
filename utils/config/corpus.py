"""
Config of stage 20: where text comes from, what is removed from it, how it is split.

    {"output": "data/demo/corpus", "inputs": {"generated": "data/demo/generated"},
     "sources": [{"name": "books", "kind": "local", "paths": ["data/raw/corpus/*"], "preset": "prose"},
                 {"name": "stories", "kind": "generated", "dataset": "stories", "preset": "short"}]}
"""

import importlib.metadata
import sys
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from utils.config.shared import ExecutorConfig
from utils.pipeline.config import InputFolder, OutputFolder, Runtime, Section, StageConfig
from utils.pipeline.external import ExternalSource
from utils.pipeline.hashing import sha256_hex
from utils.pipeline.workspace import Workspace

Preset = Literal["web", "prose", "short"]
RuleName = Literal[
    "too_few_words", "too_many_words", "word_length", "alphabetic_words",
    "repeated_lines", "repeated_line_characters", "top_2gram", "top_3gram", "top_4gram",
    "repeated_5gram", "repeated_6gram", "repeated_7gram", "repeated_8gram", "repeated_9gram",
    "repeated_10gram",
]  # fmt: skip
RULE_NAMES: tuple[str, ...] = get_args(RuleName)


class FieldMapping(Section):
    """Which fields of a row hold what; a name may be a dotted path (`answer.text`)."""

    text: str | list[str] = "text"
    """Field of the text, or several that are joined with a blank line."""
    group: str = ""
    """
    Documents with equal values stay on one side of the split (chapters of a book); "" makes each its own
    group.
    """
    id: str = ""
    """Field kept as `meta.id`, so that a document can be traced to its row."""
    optional: list[Literal["group", "id"]] = []
    """Mapped fields that a source may lack altogether, as in a folder that mixes jsonl and txt."""


class SourceSection(Section):
    """What all kinds of sources share."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """Name of the source in shards, stats and cards."""
    preset: Preset = "prose"
    """Thresholds of the quality rules: `web`, `prose` or `short` (texts of a few sentences)."""
    rules: dict[RuleName, float | tuple[float, float] | Literal["off"]] = {}
    """Thresholds that replace those of the preset: a number (a pair for word_length), or "off"."""
    max_removed_fraction: float = Field(default=0.95, gt=0, le=1)
    """
    Fail when more than this share of the rows is removed before deduplication: the mapping is probably wrong.
    """


class LocalSource(SourceSection):
    """Files: .jsonl .json .csv .parquet .txt .md, each plain, .gz or .zst."""

    kind: Literal["local"]
    """Files on this machine."""
    paths: list[str] = Field(min_length=1)
    """Globs relative to the repository root; their matches are read in byte order of their paths."""
    fields: FieldMapping = FieldMapping()
    """Field mapping of jsonl, json, csv and parquet rows."""
    split_on: str = ""
    """
    Cut .txt and .md files into documents at this literal (for example "<|endoftext|>"); "" = one per file.
    """


class GeneratedSource(SourceSection):
    """Text rows of a stage-10 artifact, the input `generated`."""

    kind: Literal["generated"]
    """A dataset written by stage 10."""
    dataset: str = "stories"
    """Name of the dataset in that artifact; its mode must be `text`."""


class DocstringSource(SourceSection):
    """Docstrings of installed Python packages: real English without a network, different on every machine."""

    kind: Literal["docstrings"]
    """Installed Python code."""
    packages: list[str] = []
    """
    Top-level packages of the standard library or site-packages, such as "json"; [] = everything installed.
    """


AnySource = Annotated[LocalSource | GeneratedSource | DocstringSource, Field(discriminator="kind")]


class CorpusInputs(Section):
    """What stage 20 reads."""

    generated: InputFolder = ""
    """Artifact of stage 10; "" when no source is generated."""


class DeduplicateConfig(Section):
    """Exact duplicates always go; near duplicates by MinHash candidates, each verified."""

    near: bool = True
    """Look for near duplicates."""
    ngram_words: int = Field(default=5, ge=1, le=20)
    """Words per n-gram. Documents with fewer words are compared exactly only."""
    similarity: float = Field(default=0.8, gt=0, le=1)
    """Remove a document whose n-gram set has at least this Jaccard similarity with a kept earlier one."""
    bands: int = Field(default=20, ge=1)
    """Bands of the signature; two documents that are equal in one become a candidate pair."""
    rows: int = Field(default=6, ge=1)
    """Values per band."""
    seed: int = 1
    """Seed of the permutations."""


class SplitConfig(Section):
    """Train and validation, decided by a hash: neighbours, order and other sources cannot move a document."""

    val_fraction: float = Field(default=0.02, gt=0, lt=1)
    """Share of groups that go to validation."""
    by: Literal["group", "document"] = "group"
    """`group` keeps the documents of a group together; `document` ignores groups."""
    min_val_documents: int = Field(default=8, ge=1)
    """Fail with fewer validation documents than this."""


class ShardConfig(Section):
    """Size of the output files."""

    target_mebibytes: int = Field(default=64, ge=1)
    """A shard closes at this much uncompressed data."""


class CorpusConfig(StageConfig):
    """Stage 20."""

    stage: ClassVar[str] = "20_prepare_corpus"
    stage_version: ClassVar[int] = 1
    determinism: ClassVar[str] = "bitwise"

    output: OutputFolder
    """Folder of the corpus."""
    inputs: CorpusInputs = CorpusInputs()
    """Artifacts that sources are read from."""
    seed: int = 0
    """Seed of the split and of the output order."""
    sources: list[AnySource] = Field(min_length=1)
    """Sources in order of trust: of two duplicates the one of the earlier source stays."""
    keep_removed: Literal["text", "ids"] = "text"
    """Whether `removed/` holds the texts that were removed, or only their ids and reasons."""
    deduplicate: DeduplicateConfig = DeduplicateConfig()
    """Duplicate removal, across all sources."""
    split: SplitConfig = SplitConfig()
    """Validation split."""
    shards: ShardConfig = ShardConfig()
    """Output files."""
    executor: Runtime[ExecutorConfig] = ExecutorConfig()
    """Where blocks are processed."""

    @model_validator(mode="after")
    def _consistent(self) -> "CorpusConfig":
        names = [source.name for source in self.sources]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f'two sources are called "{doubled[0]}"')
        if any(source.kind == "generated" for source in self.sources) and not self.inputs.generated:
            raise ValueError('a source of kind "generated" needs "inputs.generated", the folder of stage 10')
        return self

    def external_sources(self, workspace: Workspace) -> list[ExternalSource]:
        """External data: local files, and the identity of installed code."""
        external = []
        for source in self.sources:
            if source.kind == "local":
                external.append(ExternalSource.local(source.name, source.paths, workspace))
            if source.kind == "docstrings":
                parts = installed_code(source.packages)
                label = ", ".join(source.packages) or "all"
                external.append(ExternalSource.of_parts(source.name, "docstrings", label, parts))
        return external


def installed_code(packages: list[str]) -> list:
    """
    Return what identifies installed code: the Python version, and name, version, RECORD digest per
    distribution.
    """
    if packages and set(packages) <= sys.stdlib_module_names:
        return [sys.version.split()[0], []]
    owners = importlib.metadata.packages_distributions()
    wanted = {name for package in packages for name in owners.get(package, [])}
    versions = []
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if not packages or name in wanted:
            versions.append(
                [name, distribution.version, sha256_hex((distribution.read_text("RECORD") or "").encode())]
            )
    return [sys.version.split()[0], sorted(versions)]
