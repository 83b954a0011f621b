"""
Answers in OpenAI's shape: whole, and as chunks of a stream.

    chat_object(head, [choice], usage)       # {"object": "chat.completion", ...}
    chunk_object(head, "chat.completion.chunk", [{"index": 0, "delta": {"content": "Hi"}, ...}])
"""

from __future__ import annotations

import codecs
import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from utils.serving.engine import PieceTokenizer
from utils.serving.worker import Chance, Piece


@dataclass(frozen=True)
class Head:
    """What every object of one request repeats."""

    model: str
    fingerprint: str
    prefix: str
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def object(self, kind: str, **rest: object) -> dict:
        return {
            "id": f"{self.prefix}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            **rest,
        }


@dataclass
class Answer:
    """Everything that came of one choice."""

    text: str = ""
    chances: list[Chance] = field(default_factory=list)
    num_tokens: int = 0
    finish_reason: str = ""

    @property
    def empty(self) -> bool:
        """Whether nothing was told of it yet."""
        return not (self.num_tokens or self.chances or self.finish_reason)

    def add(self, piece: Piece | Answer) -> None:
        self.text += piece.text
        self.chances += piece.chances
        self.num_tokens = piece.num_tokens or self.num_tokens
        self.finish_reason = piece.finish_reason


def usage(num_prompt_tokens: int, num_answer_tokens: int) -> dict:
    """OpenAI's `usage`: prompts counted once each, answers summed."""
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_answer_tokens,
        "total_tokens": num_prompt_tokens + num_answer_tokens,
    }


def chat_logprobs(chances: Sequence[Chance], tokenizer: PieceTokenizer) -> dict:
    """`logprobs` of a chat choice."""
    return {
        "content": [
            _named(tokenizer, chance.token, chance.logprob)
            | {"top_logprobs": [_named(tokenizer, token, value) for token, value in chance.top]}
            for chance in chances
        ],
        "refusal": None,
    }


def _named(tokenizer: PieceTokenizer, token: int, logprob: float | None) -> dict:
    data = tokenizer.token_bytes(token)
    return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}


def completion_logprobs(
    chances: Sequence[Chance], tokenizer: PieceTokenizer, before: Sequence[Chance] = ()
) -> dict:
    """`logprobs` of a completion choice; offsets count characters, those of `before` included."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    offset = sum(len(decoder.decode(tokenizer.token_bytes(chance.token))) for chance in before)
    tokens, offsets = [], []
    for chance in chances:
        data = tokenizer.token_bytes(chance.token)
        tokens.append(data.decode("utf-8", "replace"))
        offsets.append(offset)
        offset += len(decoder.decode(data))
    tops = [_top(tokenizer, chance) for chance in chances]
    return {
        "tokens": tokens,
        "token_logprobs": [chance.logprob for chance in chances],
        "top_logprobs": tops,
        "text_offset": offsets,
    }


def _top(tokenizer: PieceTokenizer, chance: Chance) -> dict[str, float] | None:
    if chance.logprob is None:
        return None
    named = [(tokenizer.token_bytes(token).decode("utf-8", "replace"), value) for token, value in chance.top]
    return dict(reversed(named))  # of two tokens that look alike the likelier one is told


def event(document: dict | str) -> bytes:
    """One event of a stream."""
    text = document if isinstance(document, str) else json.dumps(document, ensure_ascii=False)
    return f"data: {text}\n\n".encode("utf-8", "replace")
