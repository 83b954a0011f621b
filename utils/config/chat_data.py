"""
Config parts that stages 60 and 80 share: where rows come from, and how they are split and bounded.

    {"name": "mine", "kind": "local", "paths": ["data/raw/sft/*"], "format": "auto"}
    {"name": "chat", "kind": "generated", "dataset": "chat", "format": "stage10"}
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from utils.pipeline.config import InputFolder, Section
from utils.pipeline.external import ExternalSource
from utils.pipeline.workspace import Workspace


class ChatInputs(Section):
    """What stages 60 and 80 stand on."""

    tokenizer: InputFolder
    """Tokenizer artifact (stage 30)."""
    generated: InputFolder = ""
    """Artifact of stage 10; needed by sources of kind "generated"."""


class ChatSource(Section):
    """One source of rows; subclasses add `format`."""

    name: str = Field(min_length=1)
    """Name in cards, statistics and rejected rows."""
    kind: Literal["local", "generated"]
    """Files below the repository root, or a dataset of the stage-10 artifact."""
    paths: list[str] = []
    """Local: glob patterns relative to the root; each file may have its own format under "auto"."""
    dataset: str = ""
    """Generated: name of the dataset inside the stage-10 artifact."""
    fields: dict[str, str] = {}
    """Foreign field names by dotted path with list indices, as in {"answer": "responses.0.text"}."""
    ignore_fields: list[str] = []
    """Text fields that may stay unused."""
    limit_rows: int = Field(default=0, ge=0)
    """Rows to read from the source; 0 reads all."""

    @model_validator(mode="after")
    def _kind_has_what_it_needs(self) -> Self:
        wanted, other = ("paths", "dataset") if self.kind == "local" else ("dataset", "paths")
        if not getattr(self, wanted) or getattr(self, other):
            raise ValueError(f'source "{self.name}" of kind "{self.kind}" takes "{wanted}" and no "{other}"')
        return self


class ChatSplit(Section):
    """Held-out shares of the prompts. Equal values in 60 and 80 hold the same prompts out of both."""

    val_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of prompts for validation during training; 0 writes no such split."""
    test_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of prompts that only stage 100 sees; 0 writes no such split."""

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"val_fraction {self.val_fraction} + test_fraction {self.test_fraction} "
                "leave nothing for training"
            )
        return self


def local_sources(sources: list[ChatSource], workspace: Workspace) -> list[ExternalSource]:
    """The external data of the local ones among `sources`."""
    return [ExternalSource.local(s.name, s.paths, workspace) for s in sources if s.kind == "local"]


def check_sources(sources: list[ChatSource], generated: str) -> None:
    """ValueError unless names differ and generated sources have an artifact (`generated`) to read."""
    names = [source.name for source in sources]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f'two sources are called "{doubled[0]}"')
    if not generated and (missing := [s.name for s in sources if s.kind == "generated"]):
        raise ValueError(f'source "{missing[0]}" is generated, but inputs.generated names no artifact')
