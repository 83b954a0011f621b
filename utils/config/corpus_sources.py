"""
Sources of stage 20: files of this machine, datasets of the Hub, rows of stage 10, docstrings; what their
fields mean and which quality rules they are held to.

    {"name": "books", "kind": "local", "paths": ["data/raw/corpus/*"], "preset": "prose",
     "fields": {"text": "text", "group": "title"}, "rules": {"top_2gram": 0.3, "word_length": "off"}}
"""

from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator

from utils.pipeline.config import Section

SUPPORTED = "jsonl, json, csv, parquet, txt, md; plain, .gz or .zst"
"""Files that stage 20 reads, told by their suffixes."""
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
    split: str = Field(default="train", min_length=1)
    """Split of the dataset."""
    revision: str = Field(default="main", min_length=1)
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
