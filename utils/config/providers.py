"""
Config parts for talking to models: who is asked, how, how fast, and for how much.

    {"providers": {"lab": {"base_url": "https://api.example.com/v1", "api_key_env": "LAB_KEY",
                           "rate_limit_per_minute": 600}},
     "models": {"main": {"provider": "lab", "model": "big-1", "temperature": 0.8}}}

Shared by stage 10 and by `tools/transform.py`. A field is semantic unless it says `Runtime`: how fast a reply
came, through which gate and at what price never changes what it says.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, JsonValue, StringConstraints, model_validator

from utils.pipeline.config import Runtime, Section

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
PerMinute = Runtime[Annotated[int, Field(ge=0)]]
InFlight = Annotated[int, Field(ge=0)]
Price = Runtime[Annotated[float, Field(ge=0)]]

VARIABLE_NAME = re.compile(r"([A-Z_][A-Z0-9_]*)?")
SECRET_HEADERS = ("authorization", "api-key", "x-api-key", "cookie", "proxy-authorization")
BODY_FIELDS = (
    "model",
    "messages",
    "stream",
    "stream_options",
    "n",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "response_format",
)
"""Fields of a request that have a key of their own, so `extra_body` may not set them."""


class ProviderSpec(Section):
    """An endpoint that answers chat completions."""

    kind: Literal["openai", "offline-teacher"] = "openai"
    """`openai`: an OpenAI-compatible API. `offline-teacher`: a teacher that the stage starts and stops."""
    base_url: Runtime[str] = ""
    """Address up to and including `/v1`; without user name or password."""
    api_key_env: Runtime[str] = ""
    """Name of the environment variable that holds the key; "" sends none (loopback hosts only)."""
    api_key_header: Runtime[str] = "Authorization"
    """Header that carries the key: `Authorization` sends "Bearer <key>", any other name the bare key."""
    headers: Runtime[dict[str, str]] = {}
    """More headers of each request; never secrets, which belong into the environment."""
    rate_limit_per_minute: PerMinute = 0
    """Requests per minute over all models of this provider, retries included; 0 = no limit."""
    tokens_per_minute: PerMinute = 0
    """Prompt and completion tokens per minute over all its models; 0 = no limit."""
    max_in_flight: Runtime[InFlight] = 64
    """Calls that may be under way at the same time over all its models; at least 1."""
    burst_percent: Runtime[Annotated[float, Field(gt=0, le=100)]] = 15.0
    """Share of a minute's requests or tokens that may go out at once."""
    faults: Runtime[str] = ""
    """Offline teacher only: a schedule of faults such as "429:0.1,drop:0.05", to try a config against."""

    @model_validator(mode="after")
    def _address_fits_the_kind(self) -> Self:
        if self.max_in_flight < 1:
            raise ValueError("max_in_flight must be at least 1")
        if not VARIABLE_NAME.fullmatch(self.api_key_env):
            raise ValueError(
                "api_key_env is the name of an environment variable in capitals, such as OPENAI_API_KEY, and "
                "never the key itself"
            )
        if self.kind == "offline-teacher":
            if self.base_url or self.api_key_env:
                raise ValueError("an offline teacher takes no base_url and no api_key_env")
            return self
        if self.faults:
            raise ValueError("faults are for the offline teacher only")
        address = urlsplit(self.base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError(f'base_url must be an http(s) address, not "{self.base_url}"')
        if address.username or address.password or address.query:
            raise ValueError(
                "base_url must not carry credentials; name an environment variable in api_key_env"
            )
        if secret := [name for name in self.headers if name.lower() in SECRET_HEADERS]:
            raise ValueError(f"headers.{secret[0]}: a key belongs into the environment; see api_key_header")
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
    """Sampling temperature of calls that ask for a list or for scores."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling mass."""
    top_k: int = Field(default=0, ge=0)
    """Sample from this many most likely tokens; 0 sends nothing."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    """Leave out tokens less likely than this share of the likeliest; 0 sends nothing."""
    seed: int = Field(default=-1, ge=-1)
    """Mixed with the call into the `seed` field of each request; -1 sends none."""
    max_output_tokens: int = Field(default=1024, ge=1)
    """Limit of one answer in tokens."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Name under which the provider expects that limit."""
    stop: list[str] = Field(default=[], max_length=4)
    """Texts that end an answer."""
    response_format: Literal["none", "json_object", "json_schema"] = "none"
    """What calls that ask for a list or for scores request of the provider."""
    extra_body: dict[str, JsonValue] = {}
    """Further fields of each request, as they are."""
    stream: Runtime[bool] = False
    """Receive answers as server-sent events."""
    include_usage: Runtime[bool] = True
    """Ask for token counts in a stream (`stream_options`); false for servers that refuse the field."""
    timeout_seconds: Runtime[Annotated[float, Field(gt=0)]] = 120.0
    """Deadline of one attempt, counted from when it is sent."""
    max_retries: Runtime[Annotated[int, Field(ge=0, le=20)]] = 6
    """Attempts after the first for a call that failed in transport or was put off."""
    max_backoff_seconds: Runtime[Annotated[float, Field(ge=0)]] = 60.0
    """Longest pause before a retry, unless the server asks for a longer one."""
    rate_limit_per_minute: PerMinute = 0
    """Requests per minute to this model, within what the provider allows; 0 = only the provider's limit."""
    tokens_per_minute: PerMinute = 0
    """Tokens per minute of this model, within what the provider allows; 0 = only the provider's limit."""
    max_in_flight: Runtime[InFlight] = 0
    """Calls to this model that may be under way at the same time; 0 = only the provider's limit."""
    prompt_price: Price = 0.0
    """Price of a million prompt tokens, in the currency of `budget.max_cost`."""
    completion_price: Price = 0.0
    """Price of a million completion tokens."""

    @model_validator(mode="after")
    def _fields_do_not_collide(self) -> Self:
        if taken := [name for name in self.extra_body if name in BODY_FIELDS]:
            raise ValueError(f"extra_body.{taken[0]}: this field of a request has a key of its own")
        return self


class BudgetSpec(Section):
    """When to stop spending; a rerun with more budget continues. 0 = no limit."""

    max_cost: float = Field(default=0.0, ge=0)
    """Most money, by the prices of the models, over all runs of this artifact."""
    max_tokens: int = Field(default=0, ge=0)
    """Most prompt and completion tokens, over all runs of this artifact."""
    max_minutes: float = Field(default=0.0, ge=0)
    """Longest time of one run."""


class LimitsSpec(Section):
    """Bounds against a slip of the finger or a runaway reply; raise one here when you mean it."""

    max_rows: int = Field(default=1_000_000, ge=1)
    """Most rows of a dataset."""
    max_subtopics: int = Field(default=10_000, ge=1)
    """Most subtopics of a dataset."""
    max_in_flight: int = Field(default=4096, ge=1)
    """Most calls under way at the same time to one provider."""
    max_template_bytes: int = Field(default=50 * 1024, ge=1)
    """Longest template part."""
    max_reply_bytes: int = Field(default=4 * 1024 * 1024, ge=1)
    """Longest body of one reply; a longer one is given up."""


class JournalSpec(Section):
    """How calls that were paid for are kept, and how a stop is waited for."""

    fsync_seconds: float = Field(default=1.0, ge=0)
    """Longest time a record may wait for the disk."""
    fsync_lines: int = Field(default=64, ge=1)
    """Most records that may wait for the disk."""
    drain_seconds: float = Field(default=30.0, ge=0)
    """How long calls in flight may finish after the first Ctrl-C or SIGTERM."""
    log_requests: bool = False
    """Write each attempt (model, status, seconds, tokens; no texts, no keys) to `log/requests.jsonl`."""


def check_references(
    models: dict[str, ModelSpec], providers: dict[str, ProviderSpec], limits: LimitsSpec
) -> None:
    """ValueError when a model names a provider that is not there, or a provider exceeds the limits."""
    for name, model in models.items():
        must_exist(f"models.{name}.provider", model.provider, providers, "provider")
    for name, provider in providers.items():
        within(
            f"providers.{name}.max_in_flight", provider.max_in_flight, limits.max_in_flight, "max_in_flight"
        )


def check_prices(budget: BudgetSpec, used: Mapping[str, ModelSpec]) -> None:
    """ValueError when money is limited and nothing that is used has a price: the limit would never hold."""
    if budget.max_cost and not any(model.prompt_price or model.completion_price for model in used.values()):
        names = ", ".join(f"models.{name}" for name in used)
        raise ValueError(f"budget.max_cost has no effect: give {names} a prompt_price and a completion_price")


def must_exist(where: str, name: str, known: dict, kind: str) -> None:
    """ValueError naming what there is instead."""
    if name not in known:
        raise ValueError(f'{where}: there is no {kind} "{name}" (there are: {", ".join(known)})')


def within(where: str, value: int, most: int, limit: str) -> None:
    """ValueError when a value exceeds a limit that the config can raise."""
    if value > most:
        raise ValueError(f"{where}: {value:,} is more than limits.{limit} = {most:,}; raise that to mean it")
