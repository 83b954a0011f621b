"""
Config of stage 30: the one tokenizer of a profile, trained on the corpus and then frozen.

    {"output": "data/demo/tokenizer", "inputs": {"corpus": "data/demo/corpus"}, "vocab_size": 4096}
"""

from typing import ClassVar

from pydantic import Field

from utils.pipeline.config import InputFolder, OutputFolder, Section, StageConfig


class TokenizerInputs(Section):
    """What stage 30 reads."""

    corpus: InputFolder
    """Artifact of stage 20; only its train split is trained on."""


class TokenizerConfig(StageConfig):
    """Stage 30."""

    stage: ClassVar[str] = "30_train_tokenizer"
    stage_version: ClassVar[int] = 1
    determinism: ClassVar[str] = "bitwise"

    output: OutputFolder
    """Folder of the tokenizer."""
    inputs: TokenizerInputs
    """The corpus."""
    vocab_size: int = Field(ge=300, le=1_000_000)
    """Number of pieces, the 20 control symbols and 256 byte pieces included."""
    sample_mebibytes: int = Field(default=64, ge=1)
    """Train on documents chosen by hash until they hold this much text."""
    min_chars_per_token: float = Field(default=3.0, ge=0)
    """Fail when a token of validation text holds fewer characters than this on average."""
    seed: int = 0
    """Seed of the choice of documents."""
