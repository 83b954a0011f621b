"""
Config of stage 50: which model, which packed data, how many tokens.

    {"output": "checkpoints/demo/base", "model": "demo",
     "inputs": {"tokenizer": "data/demo/tokenizer", "data": [{"path": "data/demo/packed", "weight": 1.0}]},
     "budget": {"unit": "tokens", "value": 1600000}}
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from utils.config.training import TrainingConfig
from utils.pipeline.config import InputFolder, Neutral, Section, source_file


class PackedInput(Section):
    """One packed dataset of a mixture."""

    path: InputFolder
    """Folder written by stage 40."""
    weight: float = Field(1.0, gt=0)
    """Share of the rows relative to the other entries."""


class PretrainInputs(Section):
    """What stage 50 stands on."""

    tokenizer: InputFolder
    """Folder written by stage 30."""
    data: list[PackedInput] = Field(min_length=1)
    """Packed datasets, mixed by weight."""


class BudgetConfig(Section):
    """How long to train: one dial."""

    unit: Literal["tokens_per_parameter", "tokens", "steps", "epochs"] = "tokens_per_parameter"
    """What `value` counts; tokens_per_parameter counts all parameters (Hoffmann 2022)."""
    value: float = Field(20.0, gt=0)
    """How many of them."""


class PretrainConfig(TrainingConfig):
    """Train a base model from scratch."""

    stage: ClassVar[str] = "50_pretrain"

    model: Annotated[str, source_file("config/architectures/{}.json")]
    """Name of an architecture file."""
    inputs: PretrainInputs
    """Tokenizer and packed data."""
    budget: BudgetConfig = BudgetConfig()
    """Length of the run."""
    parameter_dtype: Annotated[Literal["fp32", "bf16"], Neutral("fp32")] = "fp32"
    """Dtype of the stored weights; "bf16" has fp32 masters in the optimizer, which must be velvet."""
    eval_max_tokens: int = Field(65_536, ge=1)
    """Validation tokens per dataset and evaluation, spread evenly over the validation split."""
    prompts: list[str] = ["Once upon a time"]
    """Texts continued after each evaluation, greedily, into samples.jsonl."""
    sample_tokens: int = Field(48, ge=1)
    """Tokens per sample."""

    @model_validator(mode="after")
    def _masters_have_an_owner(self) -> Self:
        if self.parameter_dtype == "bf16" and (self.optimizer.kind != "velvet" or self.precision == "fp32"):
            raise ValueError('parameter_dtype "bf16" needs optimizer.kind "velvet" and a precision of bf16')
        return self
