"""
Config of stage 70: supervised fine-tuning of all weights, of a LoRA adapter, or of VesperLM's own adapters.

    {"output": "checkpoints/demo/sft",
     "inputs": {"base": "checkpoints/demo/base", "data": [{"path": "data/demo/sft"}]},
     "tuning": {"mode": "lora", "rank": 16, "alpha": 32}, "row_tokens": 256, "epochs": 2.0}
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from utils.config.adapter import AdapterConfig
from utils.config.training import TrainingConfig, refuse_twice
from utils.pipeline.config import InputFolder, Neutral, Section

AUTO_LEARNING_RATES = {"full": 2e-5, "lora": 2e-4, "adapter": 2e-4}


class LoRAConfig(Section):
    """Low-rank updates W + (alpha / rank) B A of frozen matrices (Hu 2021, arXiv 2106.09685)."""

    rank: int = Field(16, ge=1)
    """Columns of B and rows of A."""
    alpha: float = Field(32.0, gt=0)
    """Scale of the update; alpha / rank multiplies B A."""
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """Every linear layer but the head, or names such as "q_proj"; experts are "gate_up_proj", "down_proj"."""


class TuningConfig(LoRAConfig):
    """What of the base is trained; rank, alpha, dropout and target_modules count for "lora" only."""

    mode: Literal["full", "lora", "adapter"] = "lora"
    """
    All weights, low-rank updates of the linear layers in a folder of their own, or adapters that are a part
    of the model (VesperLM only).
    """
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the input of A."""
    train_markers: bool = True
    """
    Where the base is frozen: also train the embedding rows of the template's control tokens, which it has
    never seen.
    """
    adapter: Annotated[AdapterConfig | None, Neutral(None)] = None
    """Mode "adapter": what is attached to the base. Left out: the adapters that it has train further."""

    @model_validator(mode="after")
    def _adapter_belongs_to_its_mode(self) -> Self:
        if self.adapter and self.mode != "adapter":
            raise ValueError(f'adapter belongs to mode "adapter", this is "{self.mode}"')
        return self


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

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        refuse_twice([entry.path for entry in self.data])
        return self


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

    @model_validator(mode="after")
    def _no_row_decays_untrained(self) -> Self:
        if self.tuning.mode == "adapter" and self.optimizer.decay_embeddings:
            raise ValueError(
                'optimizer.decay_embeddings would move rows that tuning.mode "adapter" leaves alone'
            )
        return self
