"""
Config of stage 40: which corpus, which tokenizer, how rows are built.

    {"output": "data/demo/packed", "inputs": {"corpus": "data/demo/corpus", "tokenizer":
    "data/demo/tokenizer"},
     "sequence_length_tokens": 256, "mode": "best_fit"}
"""

from typing import ClassVar, Literal

from pydantic import Field

from utils.config.shared import ExecutorConfig
from utils.pipeline.config import InputFolder, OutputFolder, Runtime, Section, StageConfig


class PackInputs(Section):
    """What stage 40 reads."""

    corpus: InputFolder
    """Artifact of stage 20."""
    tokenizer: InputFolder
    """Artifact of stage 30."""


class PackConfig(StageConfig):
    """Stage 40."""

    stage: ClassVar[str] = "40_pack_dataset"
    stage_version: ClassVar[int] = 2
    determinism: ClassVar[str] = "bitwise"

    output: OutputFolder
    """Folder of the packed dataset."""
    inputs: PackInputs
    """The corpus and the tokenizer."""
    sequence_length_tokens: int = Field(ge=2)
    """T: inputs per row. A row holds T + 1 ids, so that each input has its target."""
    mode: Literal["best_fit", "concat"] = "best_fit"
    """`best_fit` cuts no document that fits and pads; `concat` cuts anywhere and never pads."""
    max_train_tokens: int = Field(default=0, ge=0)
    """Stop at the document that would exceed this many training tokens; 0 takes all."""
    max_val_tokens: int = Field(default=0, ge=0)
    """The same for validation."""
    max_padding_fraction: float = Field(default=0.25, ge=0, le=1)
    """Fail when more of the training rows than this share would be padding."""
    executor: Runtime[ExecutorConfig] = ExecutorConfig()
    """Where blocks are tokenised."""
