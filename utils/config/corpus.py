"""
Config of stage 20: where text comes from, what is removed from it, how it is split.

    {"output": "data/demo/corpus", "inputs": {"generated": "data/demo/generated"},
     "sources": [{"name": "books", "kind": "local", "paths": ["data/raw/corpus/*"], "preset": "prose"},
                 {"name": "stories", "kind": "generated", "dataset": "stories", "preset": "short"}]}
"""

import json
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from utils.config.corpus_sources import SUPPORTED, AnySource
from utils.config.installed import installed_code
from utils.config.shared import ExecutorConfig
from utils.pipeline.config import InputFolder, OutputFolder, Runtime, Section, StageConfig
from utils.pipeline.external import ExternalSource
from utils.pipeline.workspace import Workspace

# the languages of py3langid's model
LANGUAGES = [
    "ace", "af", "am", "an", "ar", "ary", "arz", "as", "az", "ba", "bcl", "be", "bg", "bn", "br", "bs",
    "ca", "crh", "cs", "cy", "da", "de", "dz", "el", "en", "eo", "es", "et", "eu", "ext", "fa", "fi", "fo",
    "fr", "fuv", "fy", "ga", "gcf", "gcr", "gd", "gl", "gom", "grc", "gu", "gug", "guw", "ha", "hbo", "he",
    "hi", "hr", "ht", "hu", "hy", "id", "ig", "is", "it", "ja", "jv", "ka", "kab", "kik", "kk", "km", "kn",
    "ko", "ku", "ky", "la", "lb", "lg", "lij", "ln", "lo", "lt", "ltg", "lv", "mg", "mk", "ml", "mn", "mr",
    "ms", "mt", "my", "ne", "nl", "nn", "no", "nso", "oc", "om", "or", "pa", "pcm", "pl", "ps", "pt", "qu",
    "ro", "ru", "rw", "sa", "sdh", "se", "si", "sk", "sl", "sn", "so", "sq", "sr", "st", "sv", "sw", "ta",
    "te", "tg", "th", "tk", "tl", "tr", "tt", "ug", "uk", "ur", "uz", "uzs", "vec", "vi", "vo", "wa", "wuu",
    "xh", "yo", "yue", "zh", "zu", "zxx",
]  # fmt: skip


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

    keep: list[str] = []
    """
    ISO 639 codes, such as "en"; [] keeps all and identifies none. The rule `stop_words`, which is about
    English, is asked only where "en" is kept, and beside other languages only of texts in English.
    """
    min_confidence: float = Field(default=0.65, ge=0, le=1)
    """Least mean probability over the windows."""
    on_unknown: Literal["keep", "remove"] = "keep"
    """What happens to texts of fewer than 20 letters."""

    @field_validator("keep")
    @classmethod
    def _codes_that_are_ever_found(cls, value: list[str]) -> list[str]:
        if unknown := sorted(set(value) - set(LANGUAGES)):
            raise ValueError(f'no language is called "{unknown[0]}"; there are: {", ".join(LANGUAGES)}')
        return value


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

    @model_validator(mode="after")
    def _every_key_is_read(self) -> "CorpusConfig":
        if self.inputs.generated and not any(source.kind == "generated" for source in self.sources):
            raise ValueError('no source is of kind "generated": leave "inputs.generated" out')
        for name, switch, keys in (
            ("budget", "tokens", ("on_shortfall",)),
            ("language", "keep", ("min_confidence", "on_unknown")),
            ("deduplicate", "near", ("ngram_words", "similarity", "bands", "rows", "seed")),
        ):
            section = getattr(self, name)
            unread = [key for key in keys if key in section.model_fields_set]
            if unread and not getattr(section, switch):
                raise ValueError(f"{name}.{unread[0]} is not read without {name}.{switch}; leave it out")
        return self

    @classmethod
    def only_adds(cls, before: Mapping, after: Mapping) -> bool:
        """Whether the rows that were read under `before` are those of `after`."""
        return _that_shapes_rows(before) == _that_shapes_rows(after)

    def external_sources(self, workspace: Workspace) -> list[ExternalSource]:
        """
        External data: local files, datasets of the Hub, the identity of installed code, evaluation
        sets.
        """
        external = []
        for source in self.sources:
            if source.kind == "local":
                external.append(ExternalSource.local(source.name, source.paths, workspace, SUPPORTED))
            if source.kind == "hub":
                request = (source.id, source.subset, source.split, source.revision)
                external.append(ExternalSource.of_dataset(source.name, *request))
            if source.kind == "docstrings":
                parts = installed_code(source.packages)
                label = ", ".join(source.packages) or "all"
                external.append(ExternalSource.of_parts(source.name, "docstrings", label, parts))
        for one in self.decontaminate.against:
            external.append(ExternalSource.evaluation_set(one.name, one.paths, workspace, SUPPORTED))
        return external


def _that_shapes_rows(semantic: Mapping) -> str:
    """
    A semantic view without what is first asked when all rows are read, cleaned, judged and sketched: bounds,
    sizes and shares. With a budget, what is no duplicate decides how far to read.
    """
    view = {name: value for name, value in semantic.items() if name != "shards"}
    view["split"] = semantic["split"]["by"]
    view["sources"] = [dict(source) | {"max_removed_fraction": None} for source in semantic["sources"]]
    if not semantic["budget"]["tokens"]:
        view["deduplicate"] = dict(semantic["deduplicate"]) | {"similarity": None}
    return json.dumps(view, sort_keys=True)
