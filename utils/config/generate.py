"""
Config of stage 10: synthetic rows from any OpenAI-compatible API.

    {"output": "data/demo/generated", "main_topic": "the small world of children",
     "datasets": {"chat": {"mode": "sft", "rows": 3000, "num_subtopics": 39,
                           "templates": {"subtopics": "topics", "prompts": "questions", "chosen": "answer"}}},
     "providers": {"teacher": {"kind": "offline-teacher"}},
     "models": {"main": {"provider": "teacher", "model": "teacher"}},
     "templates": {"topics": {"user": "Write {{ count }} subtopics of {{ main_topic }} as a JSON list."}}}
"""

from typing import Annotated, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, StringConstraints, model_validator

from utils.pipeline.config import Runtime, Section, StageConfig

VARIABLES = ("main_topic", "subtopic", "prompt", "count", "exclude", "is_retry", "index")
"""What every template may use; what a step does not have is empty there."""

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]


class TemplateSpec(Section):
    """A jinja template (sandboxed) for one step; available everywhere: the names in `VARIABLES`."""

    system: str = Field(default="", max_length=50 * 1024)
    """System message; "" sends none."""
    user: str = Field(min_length=1, max_length=50 * 1024)
    """User message."""


class ProviderSpec(Section):
    """An endpoint that answers chat completions."""

    kind: Literal["openai", "offline-teacher"] = "openai"
    """`openai`: an OpenAI-compatible API. `offline-teacher`: a teacher that the stage starts and stops."""
    base_url: Runtime[str] = ""
    """Address up to and including `/v1`; without user name or password."""
    api_key_env: Runtime[str] = ""
    """Name of the environment variable that holds the key; "" sends none (loopback hosts only)."""
    max_in_flight: Runtime[Annotated[int, Field(ge=1, le=4096)]] = 64
    """Calls that may be under way at the same time."""

    @model_validator(mode="after")
    def _address_fits_the_kind(self) -> Self:
        if self.kind == "offline-teacher":
            if self.base_url or self.api_key_env:
                raise ValueError("an offline teacher takes no base_url and no api_key_env")
            return self
        address = urlsplit(self.base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError(f'base_url must be an http(s) address, not "{self.base_url}"')
        if address.username or address.password or address.query:
            raise ValueError(
                "base_url must not carry credentials; name an environment variable in api_key_env"
            )
        return self


class ModelSpec(Section):
    """One model of a provider and how it is called."""

    provider: str
    """Name of an entry of `providers`."""
    model: str = Field(min_length=1)
    """Name of the model at the provider."""
    temperature: float = Field(default=1.0, ge=0, le=2)
    """Sampling temperature of rows; 0 is 0."""
    structure_temperature: float = Field(default=1.0, ge=0, le=2)
    """Sampling temperature of calls that ask for a list."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling mass."""
    seed: int = Field(default=-1, ge=-1)
    """Mixed with the call into the `seed` field of each request; -1 sends none."""
    max_output_tokens: int = Field(default=1024, ge=1)
    """Limit of one answer in tokens."""
    stop: list[str] = Field(default=[], max_length=4)
    """Texts that end an answer."""
    timeout_seconds: Runtime[Annotated[float, Field(gt=0)]] = 120.0
    """Deadline of one attempt, counted from when it is sent."""
    max_retries: Runtime[Annotated[int, Field(ge=0, le=20)]] = 6
    """Attempts after the first for a call that failed in transport or was put off."""
    max_backoff_seconds: Runtime[Annotated[float, Field(ge=0)]] = 60.0
    """Longest pause before a retry, unless the server asks for a longer one."""


class StepTemplates(Section):
    """Which template each step of a dataset uses."""

    subtopics: str
    """Asks for a JSON list of subtopics of the main topic."""
    prompts: str
    """Asks for a JSON list of prompts about one subtopic."""
    chosen: str
    """Asks for the text, answer or chosen answer to one prompt."""
    rejected: str = ""
    """Asks for the rejected answer (dpo only)."""


class DatasetSpec(Section):
    """One dataset of the run; it lands in `<output>/<name>/dataset.jsonl`."""

    mode: Literal["text", "sft", "dpo"]
    """text: {text}. sft: {messages}. dpo: {prompt, chosen, rejected}."""
    rows: int = Field(ge=1, le=10_000_000)
    """Exact number of rows."""
    num_subtopics: int = Field(ge=1, le=100_000)
    """Exact number of subtopics; rows are spread evenly over them."""
    templates: StepTemplates
    """Names of the templates, step by step."""
    main_model: str = "main"
    """Model that writes subtopics, prompts and chosen answers."""
    rejected_model: str = "rejected"
    """Model that writes rejected answers (dpo only)."""
    include_topic_columns: bool = False
    """Add `main_topic` and `subtopic` to each row."""

    @model_validator(mode="after")
    def _steps_fit_the_mode(self) -> Self:
        if (self.mode == "dpo") != bool(self.templates.rejected):
            verb = "needs" if self.mode == "dpo" else "takes no"
            raise ValueError(f"mode {self.mode} {verb} templates.rejected")
        if self.num_subtopics > self.rows:
            raise ValueError(f"{self.num_subtopics} subtopics for {self.rows} rows: some would stay empty")
        return self


class RefillSpec(Section):
    """How lists are asked for and shortages filled."""

    entries_per_call: int = Field(default=50, ge=1, le=500)
    """Most subtopics or prompts that one call asks for."""
    over_generation_buffer: float = Field(default=0.15, ge=0, le=4)
    """Share of prompts asked for on top of what is missing."""
    max_excluded: int = Field(default=50, ge=0, le=1000)
    """Most known entries that a call is asked to leave out."""
    max_refill_rounds: int = Field(default=5, ge=0, le=1000)
    """Rounds in a row without a single new row before a dataset is given up."""


class ValidationSpec(Section):
    """What an answer must be to become part of a row."""

    attempts_per_row: int = Field(default=2, ge=1, le=20)
    """Answers asked for one prompt before it is replaced by another."""
    accept_truncated: bool = False
    """Keep answers that ended at max_output_tokens."""


class JournalSpec(Section):
    """How calls that were paid for are kept, and how a stop is waited for."""

    fsync_seconds: float = Field(default=1.0, ge=0)
    """Longest time a record may wait for the disk."""
    fsync_lines: int = Field(default=64, ge=1)
    """Most records that may wait for the disk."""
    drain_seconds: float = Field(default=30.0, ge=0)
    """How long calls in flight may finish after SIGTERM or Ctrl-C."""


class GenerateConfig(StageConfig):
    """Stage 10."""

    stage: ClassVar[str] = "10_generate"
    determinism: ClassVar[Literal["bitwise", "seeded", "stochastic"]] = "stochastic"
    keeps_partial: ClassVar[bool] = True

    seed: int = Field(default=0, ge=0)
    """Seed of requests and of the offline teacher."""
    main_topic: str = Field(min_length=1)
    """What everything is about."""
    datasets: Annotated[dict[Name, DatasetSpec], Field(min_length=1)]
    """Datasets of this run by name; they share providers and run at the same time."""
    providers: Annotated[dict[Name, ProviderSpec], Field(min_length=1)]
    """Endpoints by name."""
    models: Annotated[dict[Name, ModelSpec], Field(min_length=1)]
    """Models by the name that datasets use: main, rejected, or any other."""
    templates: Annotated[dict[Name, TemplateSpec], Field(min_length=1)]
    """Templates by name."""
    refill: RefillSpec = RefillSpec()
    """Sizes of list calls, and when a shortage is final."""
    validation: ValidationSpec = ValidationSpec()
    """Checks on answers."""
    journal: Runtime[JournalSpec] = JournalSpec()
    """How replies are kept and a stop is waited for."""

    @model_validator(mode="after")
    def _references_exist(self) -> Self:
        for name, model in self.models.items():
            _must_exist(f"models.{name}.provider", model.provider, self.providers, "provider")
        for name, dataset in self.datasets.items():
            _must_exist(f"datasets.{name}.main_model", dataset.main_model, self.models, "model")
            if dataset.mode == "dpo":
                _must_exist(f"datasets.{name}.rejected_model", dataset.rejected_model, self.models, "model")
            for step, template in dataset.templates:
                if template:
                    _must_exist(f"datasets.{name}.templates.{step}", template, self.templates, "template")
        return self

    @model_validator(mode="after")
    def _templates_can_be_filled(self) -> Self:
        for name, template in self.templates.items():
            for part, text in template:
                _check_template(f"templates.{name}.{part}", text)
        return self


def _must_exist(where: str, name: str, known: dict, kind: str) -> None:
    if name not in known:
        raise ValueError(f'{where}: there is no {kind} "{name}" (there are: {", ".join(known)})')


def _check_template(where: str, text: str) -> None:
    """Refuse now what would fail at the first request; jinja2 is loaded only by configs with templates."""
    from jinja2 import StrictUndefined, TemplateError, meta
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment(undefined=StrictUndefined)
    try:
        used = meta.find_undeclared_variables(environment.parse(text))
        if unknown := sorted(used - set(VARIABLES)):
            known = ", ".join(VARIABLES)
            raise ValueError(f'{where}: there is no variable "{unknown[0]}" (there are: {known})')
        environment.from_string(text).render(sample_variables())
    except (TemplateError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: {error}") from None


def sample_variables() -> dict[str, object]:
    """A value of the right type for every variable."""
    values: tuple[object, ...] = ("topic", "subtopic", "prompt", 1, ["known"], False, 0)
    return dict(zip(VARIABLES, values, strict=True))
