"""
Config of stage 70: supervised fine-tuning, full or LoRA.

    {"output": "checkpoints/demo/sft",
     "inputs": {"base": "checkpoints/demo/base", "data": [{"path": "data/demo/sft"}]},
     "tuning": {"mode": "lora", "rank": 16, "alpha": 32}, "row_tokens": 256, "epochs": 2.0}
"""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from utils.config.training import TrainingConfig
from utils.pipeline.config import InputFolder, Section

AUTO_LEARNING_RATES = {"full": 2e-5, "lora": 2e-4}


class AdapterConfig(Section):
    """Low-rank updates W + (alpha / rank) B A of frozen matrices (Hu 2021, arXiv 2106.09685)."""

    rank: int = Field(16, ge=1)
    """Columns of B and rows of A."""
    alpha: float = Field(32.0, gt=0)
    """Scale of the update; alpha / rank multiplies B A."""
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """Every linear layer but the head, or names such as "q_proj"."""


class TuningConfig(AdapterConfig):
    """What of the base is trained; everything but `mode` counts for "lora" only."""

    mode: Literal["full", "lora"] = "lora"
    """All weights, or low-rank updates of the linear layers."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the input of A."""
    train_markers: bool = True
    """LoRA: also train the embedding rows of the template's control tokens, which a base has never seen."""


class TuningData(Section):
    """One prepared dataset of a mixture."""

    path: InputFolder
    """Folder written by stage 60 (for stage 70) or 80 (for stage 90)."""
    weight: float = Field(1.0, gt=0)
    """Share of the rows relative to the other entries."""


class SFTInputs(Section):
    """What stage 70 stands on."""

    base: InputFolder
    """Checkpoint of stage 50."""
    data: list[TuningData] = Field(min_length=1)
    """Datasets of stage 60, mixed by weight."""


class TuningRun(TrainingConfig):
    """What stages 70 and 90 share on top of every training run: packing and length."""

    publish: Literal["last", "best"] = "best"
    """Which checkpoint's weights become the artifact."""
    row_tokens: int = Field(1024, ge=8)
    """Input tokens per packed row; nothing is ever cut, so it must hold the longest item."""
    global_batch_tokens: int = Field(16_384, ge=1)
    """Tokens of one optimizer step over all processes, rounded to whole rows."""
    epochs: float = Field(0.0, ge=0)
    """Passes over the data; give this or `max_steps`."""
    max_steps: int = Field(0, ge=0)
    """Optimizer steps; give this or `epochs`."""
    eval_max_tokens: int = Field(65_536, ge=1)
    """Validation tokens per evaluation, spread evenly over the validation split."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if bool(self.epochs) == bool(self.max_steps):
            raise ValueError("give either epochs or max_steps, above 0")
        return self


class SFTConfig(TuningRun):
    """Stage 70."""

    stage: ClassVar[str] = "70_train_sft"

    inputs: SFTInputs
    """Base model and data."""
    tuning: TuningConfig = TuningConfig()
    """What of the base is trained."""
    sample_prompts: int = Field(16, ge=0)
    """Validation prompts that are answered greedily after each evaluation, into samples.jsonl."""
    sample_tokens: int = Field(64, ge=1)
    """Longest sampled answer."""
