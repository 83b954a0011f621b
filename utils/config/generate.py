"""
Config of stage 10: synthetic rows from any OpenAI-compatible API.

    {"output": "data/demo/generated", "main_topic": "the small world of children",
     "datasets": {"chat": {"mode": "sft", "rows": 3000, "num_subtopics": 39}},
     "providers": {"teacher": {"kind": "offline-teacher"}},
     "models": {"main": {"provider": "teacher", "model": "teacher"}}}
"""

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from utils.config.answers import (
    JUDGE_VARIABLES,
    VARIABLES,
    DuplicatesSpec,
    FilterSpec,
    JudgeSpec,
    TemplateSpec,
    ValidationSpec,
    check_filter,
    check_template,
    variables_of,
)
from utils.config.generate_growth import adds_only
from utils.config.generate_templates import BUILT_IN, built_in_name
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
    within,
)
from utils.pipeline.config import Runtime, Section, StageConfig
from utils.pipeline.external import ExternalSource
from utils.pipeline.workspace import Workspace

RESERVED = {"log", "checkpoints"}
"""Folders of an artifact that are no output."""
ROWS_PER_SUBTOPIC = 25
"""Rows that one subtopic carries when a dataset names only its rows."""


class StepTemplates(Section):
    """Which template each step of a dataset uses; "" = the built-in one for that step and mode."""

    subtopics: str = ""
    """Asks for a JSON list of subtopics of the main topic."""
    prompts: str = ""
    """Asks for a JSON list of prompts about one subtopic."""
    chosen: str = ""
    """Asks for the text, answer or chosen answer to one prompt."""
    rejected: str = ""
    """Asks for the rejected answer (dpo, kto, mo_dpo)."""


class DatasetSpec(Section):
    """One dataset of the run; it lands in `<output>/<name>/dataset.jsonl`."""

    mode: Literal["text", "sft", "dpo", "kto", "mo_dpo"]
    """
    text: {text}. sft: one of `sft_format`. dpo: {prompt, chosen, rejected}. kto: two rows {prompt,
    completion, label}. mo_dpo: dpo with scores per criterion.
    """
    rows: int = Field(default=0, ge=0)
    """Exact number of accepted units (one of kto gives two rows); 0 = subtopics times prompts for each."""
    num_subtopics: int = Field(default=0, ge=0)
    """Exact number of subtopics, which share the rows evenly; 0 = every given topic, or one per 25 rows."""
    num_prompts_per_subtopic: int = Field(default=0, ge=0)
    """Instead of `rows`: how many accepted prompts each subtopic has."""
    templates: StepTemplates = StepTemplates()
    """Names of the templates, step by step."""
    main_model: str = "main"
    """Model that writes subtopics, prompts and chosen answers."""
    rejected_model: str = "rejected"
    """Model that writes rejected answers."""
    judge: FilterSpec = FilterSpec()
    """What the judge must say of a row; with every threshold off, only mo_dpo rows are judged."""
    sft_format: Literal["messages", "sharegpt", "alpaca"] = "messages"
    """Shape of sft rows."""
    conversational: bool = False
    """Write prompts and answers of dpo, kto and mo_dpo as message lists."""
    reasoning: Literal["none", "separate", "inline"] = "none"
    """What becomes of a model's thinking: dropped, a column of its own, or `<think>` before the answer."""
    include_topic_columns: bool = False
    """Add `main_topic` and `subtopic` to each row."""
    include_id: bool = True
    """Add `id`, 32 hex digits that depend on dataset and prompt alone."""
    also_parquet: bool = False
    """Write `dataset.parquet` beside the JSON lines."""

    @property
    def num_rows(self) -> int:
        """Exact number of accepted units, however it was given; 0 when the topics file decides."""
        return self.rows or self.num_subtopics * self.num_prompts_per_subtopic

    @property
    def has_rejected(self) -> bool:
        return self.mode in ("dpo", "kto", "mo_dpo")

    @property
    def judged(self) -> bool:
        return self.mode == "mo_dpo" or self.judge.active

    def subtopics_for(self, num_given: int) -> int:
        """How many subtopics the dataset has when `num_given` were given by a file (0 = none)."""
        wanted = self.num_subtopics or num_given or math.ceil(self.num_rows / ROWS_PER_SUBTOPIC)
        return min(wanted, num_given) if num_given else wanted

    @model_validator(mode="after")
    def _counts_are_one(self) -> Self:
        if bool(self.rows) == bool(self.num_prompts_per_subtopic):
            raise ValueError("give either rows or num_prompts_per_subtopic")
        if self.rows and self.num_subtopics > self.rows:
            raise ValueError(f"{self.num_subtopics} subtopics for {self.rows} rows: some would stay empty")
        return self

    @model_validator(mode="after")
    def _keys_fit_the_mode(self) -> Self:
        reads = {
            "templates.rejected": (self.templates.rejected, self.has_rejected),
            "rejected_model": (self.rejected_model != "rejected", self.has_rejected),
            "conversational": (self.conversational, self.has_rejected),
            "sft_format": (self.sft_format != "messages", self.mode == "sft"),
        }
        for key, (given, fits) in reads.items():
            if given and not fits:
                raise ValueError(f"mode {self.mode} does not read {key}")
        return self


class RefillSpec(Section):
    """How lists are asked for and shortages filled."""

    entries_per_call: int = Field(default=50, ge=1, le=500)
    """Most subtopics or prompts that one call asks for."""
    over_generation_buffer: float = Field(default=0.15, ge=0, le=4)
    """Share asked for on top of what is missing."""
    max_excluded: int = Field(default=50, ge=0, le=1000)
    """Most known entries that a call is asked to leave out."""
    max_refill_rounds: int = Field(default=5, ge=0, le=1000)
    """Rounds in a row without a single new unit before a dataset is given up."""


class GenerateConfig(StageConfig):
    """Stage 10."""

    stage: ClassVar[str] = "10_generate"
    stage_version: ClassVar[int] = 3
    determinism: ClassVar[Literal["bitwise", "seeded", "stochastic"]] = "stochastic"
    keeps_partial: ClassVar[bool] = True
    carried: ClassVar[str] = "log/journal.jsonl"

    seed: int = Field(default=0, ge=0)
    """Seed of requests and of the offline teacher."""
    main_topic: str = ""
    """What everything is about."""
    topics_file: Runtime[str] = ""
    """Subtopics instead of asking for them: .txt, one per line, or .jsonl with `subtopic`; or .gz, .zst."""
    prompts_file: Runtime[str] = ""
    """
    Prompts instead of asking for them: .txt, one per line, or .jsonl with `prompt`, maybe `subtopic`; plain,
    .gz or .zst.
    """
    datasets: Annotated[dict[Name, DatasetSpec], Field(min_length=1)]
    """Datasets of this run by name; they share providers and run at the same time."""
    providers: Annotated[dict[Name, ProviderSpec], Field(min_length=1)]
    """Endpoints by name."""
    models: Annotated[dict[Name, ModelSpec], Field(min_length=1)]
    """Models by the name that datasets and the judge use: main, rejected, judge, or any other."""
    templates: dict[Name, TemplateSpec] = {}
    """Templates by name; one with the name of a built-in template takes its place."""
    refill: RefillSpec = RefillSpec()
    """Sizes of list calls, and when a shortage is final."""
    validation: ValidationSpec = ValidationSpec()
    """Checks on answers."""
    duplicates: DuplicatesSpec = DuplicatesSpec()
    """When two units count as one."""
    judge: JudgeSpec = JudgeSpec()
    """The rubric, for datasets that are judged."""
    budget: Runtime[BudgetSpec] = BudgetSpec()
    """When to stop spending."""
    limits: Runtime[LimitsSpec] = LimitsSpec()
    """Bounds against slips."""
    journal: Runtime[JournalSpec] = JournalSpec()
    """How replies are kept and a stop is waited for."""

    def template(self, dataset: str, step: str) -> TemplateSpec:
        """The template of a dataset's step: subtopics, prompts, chosen, rejected."""
        return self.templates[self.template_name(dataset, step)]

    def template_name(self, dataset: str, step: str) -> str:
        """The key of that template in `templates`."""
        return self._template_name(self.datasets[dataset], step)

    def _template_name(self, spec: DatasetSpec, step: str) -> str:
        return getattr(spec.templates, step) or built_in_name(step, spec.mode)

    def _steps(self, spec: DatasetSpec) -> list[str]:
        """The steps for which a dataset calls a model."""
        lists = [] if self.prompts_file else ["prompts"] if self.topics_file else ["subtopics", "prompts"]
        return [*lists, "chosen", *(["rejected"] if spec.has_rejected else [])]

    @classmethod
    def only_adds(cls, before: Mapping, after: Mapping) -> bool:
        """More rows, datasets, models or templates, more patience, or another way to write the same rows."""
        return adds_only(before, after)

    @property
    def judged(self) -> bool:
        return any(spec.judged for spec in self.datasets.values())

    @property
    def used_models(self) -> dict[str, ModelSpec]:
        """The models that some dataset calls."""
        names = set().union(*map(self._models_of, self.datasets.values()))
        return {name: model for name, model in self.models.items() if name in names}

    def in_flight_of(self, dataset: str) -> int:
        """Calls that the providers of a dataset's models take at the same time, all together."""
        used = {self.models[name].provider for name in self._models_of(self.datasets[dataset])}
        return sum(self.providers[name].max_in_flight for name in used)

    def _models_of(self, spec: DatasetSpec) -> set[str]:
        rejected = {spec.rejected_model} if spec.has_rejected else set()
        return {spec.main_model} | rejected | ({self.judge.model} if spec.judged else set())

    @property
    def compares(self) -> bool:
        """Whether the judge is asked which of two answers is better."""
        return any(spec.judge.pairwise for spec in self.datasets.values())

    def external_sources(self, workspace: Workspace) -> list[ExternalSource]:
        """The files of topics, of prompts and of texts to leave out."""
        files = {
            "topics": self.topics_file,
            "prompts": self.prompts_file,
            "excluded": self.duplicates.exclude_file,
        }
        return [ExternalSource.local(name, [path], workspace) for name, path in files.items() if path]

    @model_validator(mode="after")
    def _has_a_subject(self) -> Self:
        if not (self.main_topic or self.topics_file or self.prompts_file):
            raise ValueError("give main_topic, topics_file or prompts_file")
        if self.topics_file and self.prompts_file:
            raise ValueError("topics_file has no effect beside prompts_file; give one of them")
        for name, spec in self.datasets.items():
            if self.prompts_file and not spec.rows:
                raise ValueError(f"datasets.{name}: prompts_file knows no subtopics to count; give rows")
            if self.prompts_file and spec.num_subtopics:
                raise ValueError(f"datasets.{name}.num_subtopics has no effect beside prompts_file")
            if not self.topics_file and not spec.num_rows:
                raise ValueError(
                    f"datasets.{name}: num_prompts_per_subtopic needs num_subtopics or topics_file"
                )
        return self

    @model_validator(mode="after")
    def _references_exist(self) -> Self:
        check_references(self.models, self.providers, self.limits)
        if RESERVED & set(self.datasets):
            raise ValueError(
                f"a dataset cannot be called {min(RESERVED & set(self.datasets))}: that folder is taken"
            )
        for name, spec in self.datasets.items():
            where = f"datasets.{name}"
            within(f"{where}.rows", spec.num_rows, self.limits.max_rows, "max_rows")
            within(f"{where}.num_subtopics", spec.num_subtopics, self.limits.max_subtopics, "max_subtopics")
            if "subtopics" in self._steps(spec):
                derived = f"{where}.num_subtopics (one for {ROWS_PER_SUBTOPIC} rows unless given)"
                within(derived, spec.subtopics_for(0), self.limits.max_subtopics, "max_subtopics")
            must_exist(f"{where}.main_model", spec.main_model, self.models, "model")
            if spec.has_rejected:
                must_exist(f"{where}.rejected_model", spec.rejected_model, self.models, "model")
            for step, template in spec.templates:
                if template and step not in self._steps(spec):
                    raise ValueError(f"{where}.templates.{step}: this dataset has no such step")
                if template:
                    must_exist(f"{where}.templates.{step}", template, self._all_templates(), "template")
        return self

    @model_validator(mode="after")
    def _judge_fits(self) -> Self:
        if not self.judged:
            if self.judge != JudgeSpec():
                raise ValueError("judge: no dataset is judged; give one a threshold, or leave this out")
            return self
        if not self.judge.criteria:
            raise ValueError("judge.criteria: say what the judge scores")
        must_exist("judge.model", self.judge.model, self.models, "model")
        for name, spec in self.datasets.items():
            check_filter(f"datasets.{name}.judge", spec.judge, self.judge, spec.has_rejected)
        for key in ("template", "pair_template"):
            must_exist(f"judge.{key}", getattr(self.judge, key), self._all_templates(), "template")
        return self

    @model_validator(mode="after")
    def _budget_can_be_reached(self) -> Self:
        check_prices(self.budget, self.used_models)
        return self

    @model_validator(mode="after")
    def _templates_can_be_filled(self) -> Self:
        """Built-in templates that are used become part of the config, and so of the artifact's key."""
        used = {
            self._template_name(spec, step) for spec in self.datasets.values() for step in self._steps(spec)
        }
        judging = {self.judge.template, *([self.judge.pair_template] if self.compares else [])}
        used |= judging if self.judged else set()
        if unread := sorted(set(self.templates) - used):
            raise ValueError(f"templates.{unread[0]}: no dataset uses it")
        for name in sorted(used):
            self.templates.setdefault(name, BUILT_IN.get(name))
        for name, template in self.templates.items():
            variables = JUDGE_VARIABLES if name in judging else VARIABLES
            for part, text in template:
                check_template(f"templates.{name}.{part}", text, variables, self.limits)
        self._check_answers_depend_on_prompts()
        return self

    def _check_answers_depend_on_prompts(self) -> None:
        """ValueError for a chosen answer that cannot be one to the prompt beside it in the row."""
        for name, spec in self.datasets.items():
            template = self.templates[chosen := self._template_name(spec, "chosen")]
            if spec.mode != "text" and "prompt" not in variables_of(template):
                raise ValueError(
                    f"templates.{chosen} does not use {{{{ prompt }}}}, so the answers of datasets.{name} "
                    "would have nothing to do with their prompts"
                )

    def _all_templates(self) -> dict[str, TemplateSpec]:
        return BUILT_IN | self.templates
