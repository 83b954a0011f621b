"""
What is served, under which limits, and how far it is: the state that all routes share.

    service = Service(model, tokenizer, worker, chat_ids, Limits(max_tokens=512))
    service.health()          # {"status": "ok", "output_digest": ..., "slots_in_use": 1, ...}
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version

from utils.serving.asked import BadRequest, ResponseFormat
from utils.serving.engine import PieceTokenizer
from utils.serving.grammar import gbnf_of
from utils.serving.worker import Worker

LIBRARIES = ("torch", "transformers", "llama-cpp-python", "aiohttp")


@dataclass(frozen=True)
class ServedModel:
    """The digests of a model that was proven before it was loaded; `manifest_sha256` is "" without one."""

    name: str
    kind: str
    type: str
    output_digest: str
    tokenizer_fingerprint: str
    template_sha256: str
    manifest_sha256: str
    mismatches_allowed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Limits:
    """What one request may ask for; sizes in bytes and tokens, times in seconds."""

    max_body_bytes: int = 1024 * 1024
    max_prompt_tokens: int = 0
    """0 = whatever leaves room for one token in the context."""
    max_tokens: int = 4096
    max_batch_prompts: int = 64
    queue: int = 64
    request_seconds: float = 120.0
    idle_seconds: float = 30.0
    stop_seconds: float = 10.0


@dataclass
class Service:
    """`chat_ids` turns (role, text) messages into a prompt; ValueError says why it cannot."""

    model: ServedModel
    tokenizer: PieceTokenizer
    worker: Worker
    chat_ids: Callable[[Sequence[tuple[str, str]]], Sequence[int]]
    context_tokens: int
    vocab_size: int
    num_slots: int
    limits: Limits = Limits()
    constrains: bool = False
    """Whether answers can be kept to a grammar, which llama.cpp does and a checkpoint does not."""
    log_prompts: bool = False
    started: float = field(default_factory=time.monotonic)

    @property
    def fingerprint(self) -> str:
        """OpenAI's `system_fingerprint`: changes when the model does."""
        return f"fp_{self.model.output_digest[:12]}"

    def chat_prompt(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Ids of a conversation up to where the answer begins."""
        for _, text in messages:
            _encodable(text)
        try:
            return self.checked([int(token) for token in self.chat_ids(messages)])
        except ValueError as error:
            raise BadRequest(400, str(error), "messages") from None

    def text_prompt(self, text: str) -> list[int]:
        """Ids of a text that is continued as it stands, after the beginning-of-text token if there is one."""
        _encodable(text)
        begin = self.tokenizer.special("bos")
        ids = [int(token) for token in self.tokenizer.encode_text([text])[0]] if text else []
        return self.checked([begin, *ids] if begin >= 0 else ids)

    def checked(self, ids: list[int]) -> list[int]:
        """The ids, or BadRequest: 400 for a prompt that is empty or too long."""
        most = self.context_tokens - 1
        most = min(most, self.limits.max_prompt_tokens or most)
        if len(ids) > most:
            raise BadRequest(
                400, f"the prompt has {len(ids)} tokens, {most} may be", "prompt", "context_length_exceeded"
            )
        if not ids:
            raise BadRequest(400, "the prompt is empty", "prompt")
        return ids

    def max_tokens(self, asked: int | None, field_name: str) -> int:
        """How long an answer may become. BadRequest (400) for more than the server gives."""
        if asked and asked > self.limits.max_tokens:
            raise BadRequest(
                400, f"{field_name} is {asked}, this server gives {self.limits.max_tokens}", field_name
            )
        return asked or self.limits.max_tokens

    def grammar(self, format: ResponseFormat | None) -> str:
        """The grammar of an answer, "" for none. BadRequest (400) for one that cannot be followed."""
        schema = format.schema_asked if format else None
        if schema is None:
            return ""
        if not self.constrains:
            text = "response_format is not supported by checkpoints, only by GGUF files"
            raise BadRequest(400, text, "response_format", "unsupported_parameter")
        try:
            return gbnf_of(schema)
        except ValueError as error:
            raise BadRequest(400, str(error), "response_format") from None

    def check_name(self, name: str) -> None:
        """BadRequest (404) for another model than the one served; no name means that one."""
        if name and name != self.model.name:
            text = f'there is no model "{name}"; this server has "{self.model.name}"'
            raise BadRequest(404, text, "model", "model_not_found")

    def health(self) -> dict:
        """What `/health` says; `status` is "failed" when the thread of the model is gone."""
        return {
            "status": "ok" if self.worker.is_alive() else "failed",
            **asdict(self.model),
            "context_tokens": self.context_tokens,
            "slots": self.num_slots,
            "slots_in_use": self.worker.num_running,
            "queue": self.worker.num_waiting,
            "uptime_seconds": round(time.monotonic() - self.started, 1),
            "versions": {name: version(name) for name in LIBRARIES},
        }

    def say(self, text: str) -> None:
        """One line for the person at the server."""
        print(text, file=sys.stderr, flush=True)


def _encodable(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRequest(400, "the text holds half of a surrogate pair", "messages") from None
