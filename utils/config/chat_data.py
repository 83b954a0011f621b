"""
Config parts that stages 60 and 80 share: where rows come from, and how they are split and bounded.

    {"name": "mine", "kind": "local", "paths": ["data/raw/sft/*"], "format": "auto"}
    {"name": "chat", "kind": "generated", "dataset": "chat", "format": "stage10"}
    {"name": "web", "kind": "hub", "id": "HuggingFaceTB/smol-smoltalk", "format": "messages"}
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from utils.pipeline.config import InputFolder, Neutral, Section
from utils.pipeline.external import ExternalSource
from utils.pipeline.workspace import Workspace


class ChatInputs(Section):
    """What stages 60 and 80 stand on."""

    tokenizer: InputFolder
    """Tokenizer artifact (stage 30)."""
    generated: InputFolder = ""
    """Artifact of stage 10; needed by sources of kind "generated"."""


FIELDS_OF_KIND = {
    "local": ("paths",),
    "generated": ("dataset",),
    "hub": ("id", "subset", "split", "revision"),
}
"""What only one kind of source has; the first it must have."""


class ChatSource(Section):
    """One source of rows; subclasses add `format`."""

    name: str = Field(min_length=1)
    """Name in cards, statistics and rejected rows."""
    kind: Literal["local", "generated", "hub"]
    """Files below the repository root, a dataset of the stage-10 artifact, or one of the Hugging Face Hub."""
    paths: list[str] = []
    """Local: glob patterns relative to the root; each file may have its own format under "auto"."""
    dataset: str = ""
    """Generated: name of the dataset inside the stage-10 artifact."""
    id: Annotated[str, Neutral("")] = Field(default="", pattern=r"^([\w.-]+(/[\w.-]+)?)?$")
    """Hub: name of the dataset, such as "HuggingFaceTB/smol-smoltalk"; its code is never run."""
    subset: Annotated[str, Neutral("")] = ""
    """Hub: configuration of the dataset; "" = its default."""
    split: Annotated[str, Neutral("train")] = Field(default="train", min_length=1)
    """Hub: split of the dataset."""
    revision: Annotated[str, Neutral("main")] = Field(default="main", min_length=1)
    """Hub: branch, tag or commit; resolved to a commit before reading, which is what enters the key."""
    licence: Annotated[str, Neutral("")] = ""
    """Licence of the rows, for the data card."""
    fields: dict[str, str] = {}
    """Foreign field names by dotted path with list indices, as in {"answer": "responses.0.text"}."""
    ignore_fields: list[str] = []
    """Text fields that may stay unused."""
    limit_rows: int = Field(default=0, ge=0)
    """Rows to read from the source; 0 reads all."""

    @model_validator(mode="after")
    def _kind_has_what_it_needs(self) -> Self:
        needed = FIELDS_OF_KIND[self.kind][0]
        if not getattr(self, needed):
            raise ValueError(f'source "{self.name}" of kind "{self.kind}" needs "{needed}"')
        for kind, fields in FIELDS_OF_KIND.items():
            if kind != self.kind and (odd := self.model_fields_set.intersection(fields)):
                raise ValueError(f'source "{self.name}" of kind "{self.kind}" takes no "{min(odd)}"')
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


def external_data(sources: list[ChatSource], workspace: Workspace) -> list[ExternalSource]:
    """Files and datasets of the Hub among `sources`."""
    return [_external(source, workspace) for source in sources if source.kind != "generated"]


def _external(source: ChatSource, workspace: Workspace) -> ExternalSource:
    if source.kind == "local":
        return ExternalSource.local(source.name, source.paths, workspace)
    return ExternalSource.of_dataset(source.name, source.id, source.subset, source.split, source.revision)


def check_sources(sources: list[ChatSource], generated: str) -> None:
    """ValueError unless names differ and generated sources have an artifact (`generated`) to read."""
    names = [source.name for source in sources]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f'two sources are called "{doubled[0]}"')
    if not generated and (missing := [s.name for s in sources if s.kind == "generated"]):
        raise ValueError(f'source "{missing[0]}" is generated, but inputs.generated names no artifact')
