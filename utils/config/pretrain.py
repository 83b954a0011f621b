"""
Config of stage 50: which model, which packed data, how many tokens.

    {"output": "checkpoints/demo/base", "model": "demo",
     "inputs": {"tokenizer": "data/demo/tokenizer", "data": [{"path": "data/demo/packed", "weight": 1.0}]},
     "budget": {"unit": "tokens", "value": 1600000}}
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from utils.config.training import TrainingConfig, refuse_twice
from utils.pipeline.config import InputFolder, Neutral, Runtime, Section, source_file
from utils.pipeline.external import ExternalSource
from utils.pipeline.workspace import Workspace

PROMPTS = [
    "Once upon a time",
    "The most important thing is",
    "She opened the door and",
    "A good way to learn is",
    "It was",
]


class PackedInput(Section):
    """One packed dataset of a mixture."""

    path: InputFolder
    """Folder written by stage 40."""
    weight: float = Field(1.0, gt=0)
    """Share of the rows relative to the other entries."""


class RawInput(Section):
    """Text that is read as it is, for files larger than the disk left for packing."""

    path: str = Field(min_length=1)
    """A file or a glob relative to the repository root; .txt, .jsonl or .parquet, not compressed."""
    field: str = Field("text", min_length=1)
    """Where a row of .jsonl or .parquet has its text."""
    split_on: str = Field("\n\n", min_length=1)
    """What separates the documents of a .txt."""
    weight: float = Field(1.0, gt=0)
    """Share of the rows relative to the other entries."""
    chunk_mebibytes: Runtime[int] = Field(1, ge=1)
    """
    How much of a file is read at once, at each of up to 64 places: 64 MiB in all. Larger pieces were not
    faster.
    """


class PretrainInputs(Section):
    """What stage 50 stands on: packed datasets, or raw text."""

    tokenizer: InputFolder
    """Folder written by stage 30."""
    data: list[PackedInput] = []
    """Packed datasets, mixed by weight."""
    raw: Annotated[list[RawInput], Neutral([])] = []
    """Raw text instead, mixed by weight."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if bool(self.data) == bool(self.raw):
            raise ValueError('name either "data" (packed by stage 40) or "raw" (text files)')
        return self

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        refuse_twice([entry.path for entry in self.data])
        return self


class BudgetConfig(Section):
    """How long to train: one dial."""

    unit: Literal["tokens_per_parameter", "tokens", "steps", "epochs"] = "tokens_per_parameter"
    """What `value` counts; tokens_per_parameter counts all parameters (Hoffmann 2022)."""
    value: float = Field(20.0, gt=0)
    """How many of them."""


class PretrainConfig(TrainingConfig):
    """Train a base model, from scratch or from a checkpoint."""

    stage: ClassVar[str] = "50_pretrain"

    model: Annotated[str, source_file("config/architectures/{}.json")]
    """Name of an architecture file."""
    inputs: PretrainInputs
    """Tokenizer and data."""
    continue_from: InputFolder = ""
    """
    A checkpoint of stage 50, or a finished run, whose weights, moments and place in the data this run starts
    with; "" starts from random weights.
    """
    budget: BudgetConfig = BudgetConfig()
    """Length of the run; a continued one counts from its own start."""
    parameter_dtype: Annotated[Literal["fp32", "bf16"], Neutral("fp32")] = "fp32"
    """
    Dtype of the stored weights; "bf16" has fp32 masters in the optimizer, which must be velvet, and runs in a
    single process: several would exchange their gradients in bf16.
    """
    eval_max_tokens: int = Field(65_536, ge=1)
    """Validation tokens per dataset and evaluation, spread evenly over the validation split."""
    prompts: list[str] = PROMPTS
    """Texts continued after each evaluation, greedily, into samples.jsonl."""
    sample_temperature: Annotated[float, Neutral(0.0)] = Field(0.8, ge=0)
    """Temperature of a second, seeded continuation of each prompt; 0 writes none."""
    sample_tokens: int = Field(48, ge=1)
    """Tokens per sample."""

    def external_sources(self, workspace: Workspace) -> list[ExternalSource]:
        """The raw text, as `raw.0`, `raw.1`, ..."""
        entries = enumerate(self.inputs.raw)
        return [ExternalSource.local(f"raw.{i}", [entry.path], workspace) for i, entry in entries]

    @model_validator(mode="after")
    def _epochs_are_counted(self) -> Self:
        if self.inputs.raw and self.budget.unit == "epochs":
            raise ValueError(
                'budget.unit "epochs" needs the number of tokens, which raw text does not tell: '
                'give "tokens", "steps" or "tokens_per_parameter", or pack the text (stage 40)'
            )
        return self

    @model_validator(mode="after")
    def _masters_have_an_owner(self) -> Self:
        if self.parameter_dtype == "bf16" and (self.optimizer.kind != "velvet" or self.precision == "fp32"):
            raise ValueError('parameter_dtype "bf16" needs optimizer.kind "velvet" and a precision of bf16')
        return self
