"""
Configs of tools/transform.py: rejected answers for rows that have none, or new ones for rows that do.

    {"output": "data/mine/pairs", "dataset": "pairs",
     "sources": [{"name": "mine", "kind": "local", "paths": ["data/raw/sft/*.jsonl"]}],
     "providers": {"lab": {"base_url": "http://localhost:8000/v1"}},
     "models": {"rejected": {"provider": "lab", "model": "small-1"}}}

The result is an artifact of the shape that stage 10 gives: stages 60 and 80 read it as a generated dataset.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from utils.config.answers import TemplateSpec, ValidationSpec, check_template
from utils.config.chat_data import ChatSource, check_sources, external_data
from utils.config.preference_data import PairSource
from utils.config.providers import (
    BudgetSpec,
    JournalSpec,
    LimitsSpec,
    ModelSpec,
    Name,
    ProviderSpec,
    check_prices,
    check_references,
    must_exist,
)
from utils.config.sft_data import SFTSource
from utils.pipeline.config import InputFolder, Runtime, Section, StageConfig
from utils.pipeline.external import ExternalSource
from utils.pipeline.workspace import Workspace

TRANSFORM_VARIABLES = ("prompt", "response", "is_retry", "index")
"""What the template may use: last user turn, chosen answer, whether and how often it was asked before."""
USES_OF_REPLIES = ("sources", "reasoning", "conversational", "include_id", "validation")
"""Keys that decide what becomes of replies, not what is asked; the rows of `sources` are compared apart."""
STRUCTURE_ONLY = ("structure_temperature", "response_format")
CHOSEN_ONLY = ("refusals", "refusal_patterns", "must_match")


class TransformInputs(Section):
    """What a transform stands on, besides local files."""

    generated: InputFolder = ""
    """Artifact of stage 10; needed by sources of kind "generated"."""


class TransformConfig(StageConfig):
    """What both transforms have in common."""

    determinism: ClassVar[Literal["bitwise", "seeded", "stochastic"]] = "stochastic"
    keeps_partial: ClassVar[bool] = True
    carried: ClassVar[str] = "log/journal.jsonl"

    inputs: TransformInputs = TransformInputs()
    """Artifacts that are read."""
    sources: Annotated[list[ChatSource], Field(min_length=1)]
    """Where rows come from."""
    dataset: Name = "pairs"
    """Name of the dataset that is written: `<output>/<dataset>/dataset.jsonl`."""
    providers: Annotated[dict[Name, ProviderSpec], Field(min_length=1)]
    """Endpoints by name."""
    models: Annotated[dict[Name, ModelSpec], Field(min_length=1)]
    """Models by name."""
    rejected_model: str = "rejected"
    """Name of the entry of `models` that writes the rejected answers."""
    template: TemplateSpec = TemplateSpec(user="{{ prompt }}")
    """
    What the model is told: `system`, if any, stands before the conversation, `user` takes the place of its
    last user turn. They may use prompt, response (the chosen answer), is_retry, index.
    """
    seed: int = Field(default=0, ge=0)
    """Seed of requests and of the offline teacher."""
    reasoning: Literal["strip", "keep"] = "strip"
    """Whether thinking is taken out of the rows, or kept as `<think>` before the answer."""
    conversational: bool = True
    """Write prompts and answers as message lists; false writes texts, and only of single questions."""
    include_id: bool = True
    """Add `id`, 32 hex digits of the prompt and the chosen answer, and of how often both came before."""
    validation: ValidationSpec = ValidationSpec()
    """Checks on the new answers."""
    max_failed_rows: Runtime[int] = Field(default=0, ge=0)
    """So many rows may be left out because they failed; with more of them the result is not finished."""
    budget: Runtime[BudgetSpec] = BudgetSpec()
    """When to stop spending."""
    limits: Runtime[LimitsSpec] = LimitsSpec()
    """Bounds against slips."""
    journal: Runtime[JournalSpec] = JournalSpec()
    """How replies are kept and a stop is waited for."""

    def external_sources(self, workspace: Workspace) -> list[ExternalSource]:
        """The local files and datasets of the Hub among the sources."""
        return external_data(self.sources, workspace)

    @classmethod
    def only_adds(cls, before: Mapping, after: Mapping) -> bool:
        """Whether the same is asked: then every reply that was paid for still counts, and rows are cheap."""
        asked_before, asked_now = (
            {key: value for key, value in view.items() if key not in USES_OF_REPLIES}
            for view in (before, after)
        )
        return asked_before == asked_now

    @property
    def used_models(self) -> dict[str, ModelSpec]:
        """The one model that is called."""
        return {self.rejected_model: self.models[self.rejected_model]}

    @model_validator(mode="after")
    def _references_exist(self) -> Self:
        check_sources(self.sources, self.inputs.generated)
        check_references(self.models, self.providers, self.limits)
        must_exist("rejected_model", self.rejected_model, self.models, "model")
        check_prices(self.budget, self.used_models)
        if unused := [name for name in self.models if name != self.rejected_model]:
            raise ValueError(f"models.{unused[0]}: a transform asks only models.{self.rejected_model}")
        return self

    @model_validator(mode="after")
    def _every_key_is_read(self) -> Self:
        """Sections that stage 10 shares hold keys that only it reads."""
        if unread := [name for name in CHOSEN_ONLY if name in self.validation.model_fields_set]:
            raise ValueError(f"validation.{unread[0]}: asked of chosen answers only, which are not made here")
        read = self.models[self.rejected_model].model_fields_set
        if unread := [name for name in STRUCTURE_ONLY if name in read]:
            raise ValueError(
                f"models.{self.rejected_model}.{unread[0]}: lists and scores are not asked for here"
            )
        if "max_subtopics" in self.limits.model_fields_set:
            raise ValueError("limits.max_subtopics: a transform has no subtopics")
        return self

    @model_validator(mode="after")
    def _template_can_be_filled(self) -> Self:
        for part, text in self.template:
            check_template(f"template.{part}", text, TRANSFORM_VARIABLES, self.limits)
        return self


class SFTToDPOConfig(TransformConfig):
    """Chats to preference pairs: the last assistant turn is chosen, a model writes the rejected one."""

    stage: ClassVar[str] = "15_sft_to_dpo"

    sources: Annotated[list[SFTSource], Field(min_length=1)]
    """Where chats come from; rows stay in this order, repeated ones included."""


class RegenRejectedConfig(TransformConfig):
    """Preference pairs to the same with new rejected answers."""

    stage: ClassVar[str] = "15_regen_rejected"

    sources: Annotated[list[PairSource], Field(min_length=1)]
    """Where pairs come from; rows stay in this order, repeated ones included."""
