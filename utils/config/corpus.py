"""
Config of stage 20: where text comes from, what is removed from it, how it is split.

    {"output": "data/demo/corpus", "inputs": {"generated": "data/demo/generated"},
     "sources": [{"name": "books", "kind": "local", "paths": ["data/raw/corpus/*"], "preset": "prose"},
                 {"name": "stories", "kind": "generated", "dataset": "stories", "preset": "short"}]}
"""

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field, field_validator, model_validator

from utils.config.installed import installed_code
from utils.config.shared import ExecutorConfig
from utils.pipeline.config import InputFolder, OutputFolder, Runtime, Section, StageConfig
from utils.pipeline.external import ExternalSource
from utils.pipeline.workspace import Workspace

Preset = Literal["web", "prose", "short"]
RuleName = Literal[
    "too_few_words", "too_many_words", "word_length", "hash_ratio", "ellipsis_ratio", "bullet_lines",
    "ellipsis_lines", "alphabetic_words", "stop_words", "repeated_lines", "repeated_paragraphs",
    "repeated_line_characters", "repeated_paragraph_characters", "top_2gram", "top_3gram", "top_4gram",
    "repeated_5gram", "repeated_6gram", "repeated_7gram", "repeated_8gram", "repeated_9gram",
    "repeated_10gram", "line_rules", "lorem_ipsum", "curly_bracket", "too_few_sentences", "line_punctuation",
    "short_lines", "duplicate_line_characters", "newline_ratio",
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
    url: str = ""
    """Field kept as `meta.url`."""
    language: str = ""
    """Field kept as `meta.language`: recorded, not trusted."""
    keep: list[str] = []
    """Further fields kept in `meta` under their own names."""
    optional: list[Literal["group", "id", "url", "language"]] = []
    """Mapped fields that a source may lack altogether, as in a folder that mixes jsonl and txt."""


class SourceSection(Section):
    """What all kinds of sources share."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """Name of the source in shards, stats and cards."""
    weight: float = Field(default=1.0, gt=0)
    """Share of the budget, relative to the other sources; without a budget it must be 1."""
    licence: str = ""
    """Licence of the texts, for the data card."""
    preset: Preset = "prose"
    """Thresholds of the quality rules: `web`, `prose` or `short` (texts of a few sentences)."""
    rules: dict[RuleName, float | tuple[float, float] | Literal["off"]] = {}
    """
    Thresholds that replace those of the preset: a number (a pair for `word_length`), or "off". That of
    `line_rules` is the longest word, in characters, that a line may hold.
    """
    max_removed_fraction: float = Field(default=0.95, gt=0, le=1)
    """
    Fail when more than this share of the rows is removed before deduplication: the mapping is probably wrong.
    """

    @field_validator("rules")
    @classmethod
    def _pairs_where_there_are_two_bounds(cls, value: dict) -> dict:
        for name, threshold in value.items():
            if threshold != "off" and isinstance(threshold, tuple) != (name == "word_length"):
                wanted = "a pair such as [3, 10]" if name == "word_length" else "one number"
                raise ValueError(f'"{name}" needs {wanted}, or "off"')
        return value


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


class HubSource(SourceSection):
    """Rows of a Hugging Face dataset, streamed; remote code is never run."""

    kind: Literal["hub"]
    """A dataset of the Hub."""
    id: str = Field(pattern=r"^[\w.-]+(/[\w.-]+)?$")
    """Name of the dataset, such as "HuggingFaceFW/fineweb-edu"."""
    subset: str = ""
    """Configuration of the dataset; "" = its default."""
    split: str = "train"
    """Split of the dataset."""
    revision: str = "main"
    """Branch, tag or commit; resolved to a commit before reading, which is what enters the key."""
    fields: FieldMapping = FieldMapping()
    """Field mapping of the rows."""


class DocstringSource(SourceSection):
    """Docstrings of installed Python packages: real English without a network, different on every machine."""

    kind: Literal["docstrings"]
    """Installed Python code."""
    packages: list[str] = []
    """
    Top-level packages of the standard library or site-packages, such as "json"; [] = everything installed.
    """


AnySource = Annotated[
    LocalSource | HubSource | GeneratedSource | DocstringSource, Field(discriminator="kind")
]


class CorpusInputs(Section):
    """What stage 20 reads."""

    generated: InputFolder = ""
    """Artifact of stage 10; "" when no source is generated."""
    tokenizer: InputFolder = ""
    """Artifact of stage 30 that counts tokens for the budget (`budget.count`); "" when they are estimated."""


class BudgetConfig(Section):
    """How much text is taken, shared by the sources as they are weighted."""

    tokens: int = Field(default=0, ge=0)
    """Tokens of both splits together, met to within one document per source; 0 takes everything."""
    count: Literal["estimate", "tokenizer"] = "estimate"
    """`estimate`: UTF-8 bytes over `bytes_per_token`. `tokenizer`: exactly, by `inputs.tokenizer`."""
    bytes_per_token: float = Field(default=4.0, gt=0)
    """Bytes of text per token, for the estimate."""
    on_shortfall: Literal["error", "redistribute"] = "error"
    """When a source has less than its share: fail with the numbers, or give the rest to the others."""


class CleanConfig(Section):
    """What else is done to texts; off by default, because a mask is a lie about the text."""

    urls: Literal["keep", "mask", "remove"] = "keep"
    """Web addresses: kept, replaced by [URL], or removed."""
    pii: Literal["keep", "mask", "drop_document"] = "keep"
    """E-mail and global IP addresses, phone and card numbers: kept, or replaced by [EMAIL] and so on."""


class LanguageConfig(Section):
    """Which languages stay; identified offline on three windows of 1,000 characters."""

    keep: list[Annotated[str, Field(pattern=r"^[a-z]{2,3}$")]] = []
    """
    ISO 639 codes, such as "en"; [] keeps all and identifies none. The rule `stop_words`, which is about
    English, is asked only where "en" alone is kept.
    """
    min_confidence: float = Field(default=0.65, ge=0, le=1)
    """Least mean probability over the windows."""
    on_unknown: Literal["keep", "remove"] = "keep"
    """What happens to texts of fewer than 20 letters."""


class EvaluationSet(Section):
    """Texts that no training document may contain."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """Name of the set in reasons, cards and the check of stage 100."""
    paths: list[str] = Field(min_length=1)
    """Globs relative to the repository root; the formats of local sources."""
    fields: list[str] = ["text"]
    """Fields whose texts count, for formats that have fields; dotted paths allowed."""


class DecontaminateConfig(Section):
    """Removal of documents that contain a passage of an evaluation set."""

    ngram_words: int = Field(default=13, ge=5, le=50)
    """Words of a passage that counts as contained."""
    action: Literal["document", "passage"] = "document"
    """Remove the whole document, or cut the paragraphs that are hit."""
    against: list[EvaluationSet] = []
    """The evaluation sets; [] looks for nothing."""


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
    compression: Literal["zstd", "gzip"] = "zstd"
    """Both give the same bytes in every run."""


class CorpusConfig(StageConfig):
    """Stage 20."""

    stage: ClassVar[str] = "20_prepare_corpus"
    stage_version: ClassVar[int] = 2
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
    budget: BudgetConfig = BudgetConfig()
    """How much text is taken."""
    clean: CleanConfig = CleanConfig()
    """Web addresses and personal data."""
    language: LanguageConfig = LanguageConfig()
    """Which languages stay."""
    decontaminate: DecontaminateConfig = DecontaminateConfig()
    """Evaluation sets that must not be trained on."""
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
        sets = [one.name for one in self.decontaminate.against]
        for what, names in (("sources", [source.name for source in self.sources]), ("evaluation sets", sets)):
            if doubled := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f'two {what} are called "{doubled[0]}"')
        if any(source.kind == "generated" for source in self.sources) and not self.inputs.generated:
            raise ValueError('a source of kind "generated" needs "inputs.generated", the folder of stage 10')
        if not self.budget.tokens and (
            weighted := [source.name for source in self.sources if source.weight != 1]
        ):
            raise ValueError(f'source "{weighted[0]}": a weight other than 1 needs budget.tokens')
        if (self.budget.count == "tokenizer") != bool(self.inputs.tokenizer):
            raise ValueError('budget.count "tokenizer" and inputs.tokenizer need each other')
        return self

    def external_sources(self, workspace: Workspace) -> list[ExternalSource]:
        """
        External data: local files, datasets of the Hub, the identity of installed code, evaluation
        sets.
        """
        external = []
        for source in self.sources:
            if source.kind == "local":
                external.append(ExternalSource.local(source.name, source.paths, workspace))
            if source.kind == "hub":
                request = (source.id, source.subset, source.split, source.revision)
                external.append(ExternalSource.of_dataset(source.name, *request))
            if source.kind == "docstrings":
                parts = installed_code(source.packages)
                label = ", ".join(source.packages) or "all"
                external.append(ExternalSource.of_parts(source.name, "docstrings", label, parts))
        for one in self.decontaminate.against:
            external.append(ExternalSource.evaluation_set(one.name, one.paths, workspace))
        return external
