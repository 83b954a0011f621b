"""
Config of stage 60: chat data to token ids with a loss mask.

    {"output": "data/demo/sft",
     "inputs": {"tokenizer": "data/demo/tokenizer", "generated": "data/demo/generated"},
     "sources": [{"name": "chat", "kind": "generated", "dataset": "chat", "format": "stage10"}]}
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from utils.config.chat_data import ChatInputs, ChatSource, ChatSplit, check_sources, external_data
from utils.pipeline.config import StageConfig, source_file
from utils.pipeline.external import ExternalSource
from utils.pipeline.workspace import Workspace


class SFTSource(ChatSource):
    """One source of conversations."""

    format: Literal["auto", "messages", "sharegpt", "alpaca", "qa", "hh_rlhf", "stage10"] = "auto"
    """Shape of the rows; "auto" looks at the first 1,000 rows of each file."""


class SFTDataConfig(StageConfig):
    """Stage 60."""

    stage: ClassVar[str] = "60_prepare_sft"

    inputs: ChatInputs
    """Tokenizer and, for generated sources, the artifact of stage 10."""
    sources: Annotated[list[SFTSource], Field(min_length=1)]
    """Where conversations come from, in order; of duplicates the first stays."""
    template: Annotated[str, source_file("config/templates/{}.jinja")] = "chatml"
    """Chat template: the stem of a file in config/templates."""
    seed: int = 0
    """Seed of the split; stage 80 must use the same."""
    train_on: Literal["all_assistant", "last_assistant"] = "all_assistant"
    """Which assistant turns are targets; a message's own `train: false` wins."""
    max_conversation_tokens: int = Field(default=1024, ge=8)
    """Longest conversation in tokens, markers included."""
    on_too_long: Literal["drop", "drop_old_turns"] = "drop_old_turns"
    """Reject what is too long, or first remove whole oldest exchanges (the system message stays)."""
    split: ChatSplit = ChatSplit()
    """Shares of the prompts that are held out."""
    max_rejected_fraction: float = Field(default=0.05, ge=0, le=1)
    """The stage fails when more of the rows read than this are rejected; duplicates do not count."""

    @model_validator(mode="after")
    def _sources_are_usable(self) -> Self:
        check_sources(self.sources, self.inputs.generated)
        return self

    def external_sources(self, workspace: Workspace) -> list[ExternalSource]:
        """The local files and datasets of the Hub among the sources."""
        return external_data(self.sources, workspace)
