r"""
An answer in the shapes of OpenAI: one completion object, or the same as server-sent events.

One word counts as one token. `stop` cuts the text before its first occurrence, the limit of tokens cuts the
thinking first and the text after it.

    "".join(events(completion, include_usage=True)) + DONE
"""

import hashlib
import json
from dataclasses import replace
from typing import Any

from utils.generate.teacher.answer import Answer
from utils.generate.teacher.asked import Asked

DONE = "data: [DONE]\n\n"
_written = json.JSONEncoder().encode


def completion_of(asked: Asked, answer: Answer, body: bytes) -> dict[str, Any]:
    """The completion object; its id is a function of the body alone."""
    answer = _limited(_stopped(answer, asked.stops), asked.limit)
    prompt_tokens = sum(len(message["content"].split()) for message in asked.messages)
    thought, said = _count(answer.reasoning), _count(answer.text)
    message: dict[str, Any] = {"role": "assistant", "content": answer.text or None}
    if answer.reasoning:
        message[answer.reasoning_field] = answer.reasoning
    usage: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": thought + said,
        "total_tokens": prompt_tokens + thought + said,
    }
    if thought:
        usage["completion_tokens_details"] = {"reasoning_tokens": thought}
    return {
        "id": "chatcmpl-" + hashlib.sha256(body).hexdigest()[:24],
        "object": "chat.completion",
        "created": 0,
        "model": asked.model,
        "choices": [{"index": 0, "message": message, "finish_reason": answer.finish}],
        "usage": usage,
    }


def _count(text: str) -> int:
    return len(text.split(" ")) if text else 0


def _stopped(answer: Answer, stops: tuple[str, ...]) -> Answer:
    ends = [place for stop in stops if (place := answer.text.find(stop)) >= 0]
    return replace(answer, text=answer.text[: min(ends)], finish="stop") if ends else answer


def _limited(answer: Answer, limit: int) -> Answer:
    if not limit or _count(answer.reasoning) + _count(answer.text) <= limit:
        return answer
    thought = answer.reasoning.split(" ")[:limit] if answer.reasoning else []
    said = answer.text.split(" ")[: limit - len(thought)]
    return replace(answer, reasoning=" ".join(thought), text=" ".join(said), finish="length")


def events(completion: dict[str, Any], include_usage: bool) -> list[str]:
    """The same answer word by word, thinking first; `DONE`, which ends a stream, is not among them."""
    head = {key: completion[key] for key in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    prefix = f"data: {_written(head)[:-1]}, "
    written = []
    for choice in completion["choices"]:
        opening = prefix + '"choices": [{"index": 0, "delta": '
        written.append(opening + '{"role": "assistant"}, "finish_reason": null}]}\n\n')
        for field in ("reasoning_content", "reasoning", "content"):
            before, after = f'{opening}{{"{field}": "', '"}, "finish_reason": null}]}\n\n'
            pieces = _pieces(choice["message"].get(field) or "")
            written += [before + piece + after for piece in pieces]
        written.append(f'{opening}{{}}, "finish_reason": {_written(choice["finish_reason"])}}}]}}\n\n')
    if include_usage:
        written.append(f'{prefix}"choices": [], "usage": {_written(completion["usage"])}}}\n\n')
    return written


def _pieces(text: str) -> list[str]:
    """Words, each with the blank before it, as they stand between the quotes of JSON."""
    first, *others = _written(text)[1:-1].split(" ")
    return [piece for piece in [first, *(" " + word for word in others)] if piece]


def odd(event: str) -> str:
    """An event as few servers write it and all may: a comment, no blank, CR LF, two data lines."""
    head, _, tail = event.removeprefix("data: ").rstrip("\n").partition(" ")
    return "\r\n".join([": keep-alive", "data:" + head, "data:" + tail, "", ""])
