"""
What a request asks for: bodies in OpenAI's shape and in our own, checked before the model hears of them.

    asked = read_body(ChatBody, await request.read())     # BadRequest names the field
    asked.ignored                                         # fields that nobody reads
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from utils.serving.sampling import Sampling

MOST_STOPS, MOST_CHOICES, MOST_TOP_LOGPROBS = 16, 8, 20
UNSUPPORTED = {
    "tools": "tools are not supported",
    "functions": "functions are not supported",
    "audio": "audio is not supported",
    "suffix": "a suffix is not supported: the model writes from left to right",
}
Text = Annotated[str, Field(strict=True)]


class BadRequest(Exception):
    """What is wrong with a request, as an error object of OpenAI's shape."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, **headers: str
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    @property
    def document(self) -> dict:
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
            self.status, "invalid_request_error"
        )
        kind = "server_error" if self.status >= 500 else kind
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class Body(BaseModel):
    """Fields that every kind of request has; null is as if the field was not there."""

    default_temperature: ClassVar[float] = 1.0

    model: Text = ""
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    stop: list[Text] = Field([], max_length=MOST_STOPS)
    stream: bool = False
    ignored: list[str] = Field([], exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, document: Any) -> Any:
        if not isinstance(document, dict):
            raise ValueError("the body is not a JSON object")
        for name, message in UNSUPPORTED.items():
            if document.get(name) and name not in cls.model_fields:
                raise BadRequest(400, message, name, "unsupported_parameter")
        given = {name: value for name, value in document.items() if value is not None}
        known = set(cls.model_fields) - {"ignored"}
        return {name: given[name] for name in known & set(given)} | {"ignored": sorted(set(given) - known)}

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    def sampling(self, max_tokens: int, vocab_size: int, choice: int = 0) -> Sampling:
        """How to sample answer number `choice`; without a seed, by chance."""
        if wrong := [token for token in self.logit_bias if not 0 <= token < vocab_size]:
            raise BadRequest(400, f"logit_bias names token {wrong[0]}, which is not there", "logit_bias")
        seed = secrets.randbits(32) if self.seed is None else self.seed % 2**63
        temperature = self.default_temperature if self.temperature is None else self.temperature
        return Sampling(
            max_tokens,
            temperature,
            self.top_k,
            self.top_p,
            seed + choice,
            self.min_p,
            self.repetition_penalty,
            self.presence_penalty,
            self.frequency_penalty,
            tuple(self.logit_bias.items()),
        )


class StreamOptions(BaseModel):
    """What a stream says besides the text."""

    include_usage: bool = False


class JSONSchema(BaseModel):
    """The schema of an answer; its name is of no consequence."""

    schema_: dict = Field({}, alias="schema")


class ResponseFormat(BaseModel):
    """Text, any JSON object, or JSON of one schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchema = JSONSchema()

    @property
    def schema_asked(self) -> dict | None:
        """What an answer must be: None for anything, {} for any object."""
        return {"text": None, "json_object": {}, "json_schema": self.json_schema.schema_}[self.type]


class OpenAIBody(Body):
    """What both of OpenAI's routes have."""

    n: int = Field(1, ge=1, le=MOST_CHOICES)
    stream_options: StreamOptions = StreamOptions()
    response_format: ResponseFormat | None = None


class ChatMessage(BaseModel):
    """One message; parts of text are joined."""

    role: Text
    content: Text = ""

    @field_validator("content", mode="before")
    @classmethod
    def _joined(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return "" if value is None else value
        kinds = {part.get("type") if isinstance(part, dict) else "" for part in value}
        if kinds - {"text"}:
            raise BadRequest(400, "only parts of type text are supported", "messages", "unsupported")
        return "".join(str(part.get("text", "")) for part in value)


class ChatBody(OpenAIBody):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MOST_TOP_LOGPROBS)


class CompletionBody(OpenAIBody):
    """`POST /v1/completions`: texts or token ids, continued as they are."""

    prompt: list[Text | list[int]] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=0)
    logprobs: int | None = Field(None, ge=0, le=MOST_TOP_LOGPROBS)
    echo: bool = False

    @field_validator("prompt", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        plain = isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], int))
        return [value] if plain else value


class GenerateBody(Body):
    """`POST /generate` and `/generate/stream`: greedy unless `do_sample` or a temperature is given."""

    default_temperature: ClassVar[float] = 0.0

    prompt: Text
    max_new_tokens: int | None = Field(None, ge=1)
    do_sample: bool | None = None
    template: bool = True

    @model_validator(mode="after")
    def _by_chance(self) -> GenerateBody:
        if self.do_sample is False:
            self.temperature = 0.0
        elif self.do_sample and self.temperature is None:
            self.temperature = 1.0
        return self


class BatchBody(GenerateBody):
    """`POST /generate/batch`."""

    prompt: Text = ""
    prompts: list[Text] = Field(min_length=1)


B = TypeVar("B", bound=Body)


def read_body(shape: type[B], data: bytes) -> B:
    """The request in `data`. BadRequest (400) names the first field that does not fit."""
    try:
        return shape.model_validate(json.loads(data))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise BadRequest(400, f"{where}: {message}" if where else message, where or None) from None
    except (ValueError, RecursionError):
        raise BadRequest(400, "the body is not valid JSON in UTF-8") from None


def check_ids(ids: Sequence[int], vocab_size: int) -> list[int]:
    """The ids of a prompt. BadRequest for one that is no token."""
    if not ids or not all(0 <= token < vocab_size for token in ids):
        raise BadRequest(400, f"a prompt of ids holds ids from 0 to {vocab_size - 1}", "prompt")
    return list(ids)
