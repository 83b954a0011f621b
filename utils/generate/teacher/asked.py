"""
The body of a chat completion request, checked as OpenAI checks it.

    asked = read_asked(b'{"model": "teacher", "messages": [{"role": "user", "content": "Hi!"}]}')
    asked.messages[-1]["content"]      # "Hi!"
"""

import json
from dataclasses import dataclass
from typing import Any

from utils.generate.teacher.replies import MODELS

ROLES = ("system", "developer", "user", "assistant", "tool")
FORMATS = ("text", "json_object", "json_schema")
MOST_STOPS = 4


class BadRequest(Exception):
    """The caller's fault: status, type and text of the OpenAI error object."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


@dataclass(frozen=True)
class Asked:
    """What a body asks for; `limit` = 0 means no limit of tokens, and one word counts as one token."""

    model: str
    messages: list[dict[str, str]]
    seed: int | None
    limit: int
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool


def read_asked(body: bytes) -> Asked:
    """The request in a body; BadRequest says what is wrong with it. Fields that nobody knows are ignored."""
    try:
        document = json.loads(body)
    except ValueError:
        raise _bad("the body is not JSON") from None
    if not isinstance(document, dict):
        raise _bad("the body must be a JSON object")
    _check_messages(document.get("messages"))
    _check_sampling(document)
    model = document.get("model")
    if model not in MODELS:
        raise BadRequest(404, "model_not_found", f"no model {model!r}; there are {', '.join(MODELS)}")
    stream = _typed(document, "stream", bool) or False
    return Asked(
        model=model,
        messages=document["messages"],
        seed=_typed(document, "seed", int),
        limit=_limit(document),
        stops=_stops(document.get("stop")),
        stream=stream,
        include_usage=_include_usage(document.get("stream_options"), stream),
    )


def _bad(message: str) -> BadRequest:
    return BadRequest(400, "invalid_request_error", message)


def _check_messages(messages: object) -> None:
    good = isinstance(messages, list) and bool(messages)
    for message in messages if isinstance(messages, list) else ():
        good = good and isinstance(message, dict) and isinstance(message.get("content"), str)
        good = good and message.get("role") in ROLES
    if not good:
        raise _bad(f"messages must be a non-empty list of role ({', '.join(ROLES)}) and content")


def _check_sampling(document: dict[str, Any]) -> None:
    for name, low, high in (("temperature", 0, 2), ("top_p", 0, 1)):
        value = document.get(name)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high
        ):
            raise _bad(f"{name} must be a number from {low} to {high}")
    if document.get("n") not in (None, 1):
        raise _bad("n must be 1: this server gives one answer to a request")
    wanted = document.get("response_format")
    if wanted is not None and not (isinstance(wanted, dict) and wanted.get("type") in FORMATS):
        raise _bad(f"response_format.type must be one of {', '.join(FORMATS)}")


def _typed(document: dict[str, Any], name: str, kind: type) -> Any:
    """The value of a field of one type, None when it is absent or null."""
    value = document.get(name)
    if value is not None and type(value) is not kind:
        raise _bad(f"{name} must be of type {kind.__name__}")
    return value


def _limit(document: dict[str, Any]) -> int:
    """Most tokens, under either of its names."""
    given = [_typed(document, name, int) for name in ("max_completion_tokens", "max_tokens")]
    if any(value is not None and value < 1 for value in given):
        raise _bad("max_tokens must be at least 1")
    return next((value for value in given if value), 0)


def _stops(stop: object) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else [] if stop is None else stop
    good = isinstance(stops, list) and len(stops) <= MOST_STOPS
    if not good or not all(isinstance(text, str) and text for text in stops):
        raise _bad(f"stop must be a text or up to {MOST_STOPS} of them")
    return tuple(stops)


def _include_usage(options: object, stream: bool) -> bool:
    if options is None:
        return False
    if not stream or not isinstance(options, dict):
        raise _bad("stream_options must be an object and needs stream")
    return bool(options.get("include_usage"))
