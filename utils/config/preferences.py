"""
Config of stage 90: preference training.

    {"output": "checkpoints/demo/preferences",
     "inputs": {"base": "checkpoints/demo/base", "model": "checkpoints/demo/sft",
                "data": [{"path": "data/demo/preferences"}]},
     "adapter": "new", "reference": "adapter_off", "beta": 0.1, "row_tokens": 512, "epochs": 1.0}
"""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from utils.config.sft import LoRAConfig, TuningData, TuningRun
from utils.config.training import refuse_twice
from utils.pipeline.config import InputFolder, Section

AUTO_LEARNING_RATES = {"full": 5e-7, "lora": 5e-6}


class PreferencesInputs(Section):
    """What stage 90 stands on."""

    model: InputFolder
    """Checkpoint of stage 70: full weights, or an adapter."""
    base: InputFolder = ""
    """Checkpoint that the adapter in `model` was trained on; "" when `model` holds full weights."""
    data: list[TuningData] = Field(min_length=1)
    """Datasets of stage 80, mixed by weight."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        refuse_twice([entry.path for entry in self.data])
        return self


class PreferencesConfig(TuningRun):
    """Stage 90."""

    stage: ClassVar[str] = "90_train_preferences"

    inputs: PreferencesInputs
    """Supervised model, its base where it is an adapter, and data."""
    method: Literal["dpo"] = "dpo"
    """Objective: direct preference optimisation (Rafailov 2023, arXiv 2305.18290)."""
    beta: float = Field(0.1, gt=0)
    """Strength of the pull towards the reference."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of pairs assumed to be labelled the wrong way round."""
    adapter: Literal["new", "continue", "none"] = "new"
    """A new LoRA adapter on top of the model, the adapter that it has trained further, or all weights."""
    lora: LoRAConfig = LoRAConfig()
    """Shape of a new adapter; it trains without dropout, so that policy and reference see the same."""
    reference: Literal["cached", "adapter_off"] = "cached"
    """
    Where the reference's log-probabilities come from: computed once before training, or the new adapter
    switched off.
    """
    max_chosen_drop_nats: float = Field(20.0, gt=0)
    """A warning is printed when chosen answers lose more log-probability than this against the reference."""

    @model_validator(mode="after")
    def _answers_stay_apart(self) -> Self:
        if self.document_attention == "full":
            raise ValueError('document_attention "full": both answers of a pair share a row')
        return self

    @model_validator(mode="after")
    def _reference_fits(self) -> Self:
        if self.reference == "adapter_off" and self.adapter != "new":
            raise ValueError('reference "adapter_off" needs adapter "new": nothing else can be switched off')
        return self
