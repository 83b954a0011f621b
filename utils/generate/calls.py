"""
Calls that are paid for once: the journal answers what it knows, the provider the rest.

A call is known by a hash of dataset, step, unit, sample, provider and the semantic part of its body. Nothing
else about the run enters, so a run that continues, or that asks for more rows, finds every reply again.

    with used_calls() as used:
        reply = await calls.ask(Request("chat", "chosen", "main", messages, unit="What is a cow?"))
    used.record()        # {"main.chosen": [1, 12, 80]}: calls, prompt tokens, completion tokens
"""

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

from utils.config.providers import ModelSpec
from utils.generate.client import ChatClient
from utils.generate.errors import Draining
from utils.generate.journal import Journal
from utils.generate.reply import Reply
from utils.pipeline.hashing import unit_hash

ANSWERS = ("chosen", "rejected")
"""Steps that ask for free text; all others ask for a list or for scores."""
_encode = json.JSONEncoder(ensure_ascii=True, sort_keys=True, check_circular=False).encode


@dataclass(frozen=True, slots=True)
class Request:
    """
    One question to one model. `unit` and `sample` tell apart calls that ask the same; `schema` is a JSON
    schema for models that take one.
    """

    dataset: str
    step: str
    model: str
    messages: list[dict[str, str]]
    unit: str
    sample: int = 0
    schema: dict | None = None


class Asking(Protocol):
    """The part of a config that calls depend on."""

    @property
    def seed(self) -> int: ...

    @property
    def models(self) -> Mapping[str, ModelSpec]: ...


@dataclass
class Used:
    """Calls and tokens per model and step that one unit is made of, whenever they were paid for."""

    counts: dict[str, list[int]] = field(default_factory=dict)

    def add(self, request: Request, reply: Reply) -> None:
        counts = self.counts.setdefault(f"{request.model}.{request.step}", [0, 0, 0])
        counts[0] += 1
        counts[1] += reply.prompt_tokens
        counts[2] += reply.completion_tokens

    def record(self) -> dict[str, list[int]]:
        return dict(sorted(self.counts.items()))


_USED: ContextVar[Used] = ContextVar("used")


@contextmanager
def used_calls() -> Iterator[Used]:
    """Count the calls made inside the block, tasks started there included."""
    token = _USED.set(used := Used())
    try:
        yield used
    finally:
        _USED.reset(token)


class Calls:
    """
    All calls of a run. `spent` says which limit of the budget is reached, "" while none is: then no new call
    starts, and who asks gets Draining. `paid` hears of every new reply: model, step, reply. New answers are
    asked for once `may_answer` is set; lists need not wait for it.
    """

    def __init__(
        self,
        config: Asking,
        clients: dict[str, ChatClient],
        journal: Journal,
        spent: Callable[[], str] = lambda: "",
        paid: Callable[[str, str, Reply], None] = lambda model, step, reply: None,
        may_answer: asyncio.Event | None = None,
    ) -> None:
        self._config, self._clients, self._journal = config, clients, journal
        self._spent, self._paid, self._may_answer = spent, paid, may_answer
        self._asked: dict[str, asyncio.Event] = {}
        self._mean_tokens: dict[str, float] = {}
        self.made = 0
        self.under_way = 0

    def identity(self, request: Request) -> str:
        """32 hex digits that name a call for ever."""
        return self._identity(request, self._body(request, self._config.models[request.model]))

    async def ask(self, request: Request) -> Reply:
        """The reply to a request. CallFailed when given up: not recorded, so a rerun asks again."""
        return (await self.named(request))[1]

    async def named(self, request: Request) -> tuple[str, Reply]:
        """The identity of a call and its reply."""
        model = self._config.models[request.model]
        body = self._body(request, model)
        identity = self._identity(request, body)
        while identity in self._asked:  # two units ask the same at the same time: one pays
            await self._asked[identity].wait()
        reply = self._journal.reply(identity) or await self._make(request, body, model, identity)
        _USED.get(Used()).add(request, reply)
        return identity, reply

    async def _make(self, request: Request, body: dict, model: ModelSpec, identity: str) -> Reply:
        if self._spent():
            raise Draining
        done = self._asked[identity] = asyncio.Event()
        self.under_way += 1
        try:
            if self._may_answer and request.step in ANSWERS:
                await self._may_answer.wait()
            estimate = self._estimate(request, model)
            reply = await self._clients[model.provider].complete(body, model, estimate_tokens=estimate)
            self._journal.add_reply(identity, request.model, request.step, reply)
        finally:
            self.under_way -= 1
            del self._asked[identity]
            done.set()
        self.made += 1
        self._learn(request, reply)
        self._paid(request.model, request.step, reply)
        return reply

    def _estimate(self, request: Request, model: ModelSpec) -> int:
        """Tokens of a call: a quarter of its characters, and what such calls were answered with so far."""
        characters = sum(len(message["content"]) for message in request.messages)
        likely = self._mean_tokens.get(f"{request.model}.{request.step}", model.max_output_tokens)
        return characters // 4 + round(likely)

    def _learn(self, request: Request, reply: Reply) -> None:
        key = f"{request.model}.{request.step}"
        before = self._mean_tokens.get(key, reply.completion_tokens)
        self._mean_tokens[key] = 0.95 * before + 0.05 * reply.completion_tokens

    def _identity(self, request: Request, body: dict) -> str:
        provider = self._config.models[request.model].provider
        what = [request.dataset, request.step, request.unit, request.sample, provider, body]
        return hashlib.sha256(_encode(what).encode("ascii")).hexdigest()[:32]

    def _body(self, request: Request, model: ModelSpec) -> dict[str, object]:
        """The semantic part of a request; how it is sent (streamed or not) is the client's business."""
        is_answer = request.step in ANSWERS
        body: dict[str, object] = model.extra_body | {
            "model": model.model,
            "messages": request.messages,
            "temperature": model.temperature if is_answer else model.structure_temperature,
            "top_p": model.top_p,
            model.max_tokens_field: model.max_output_tokens,
        }
        for name, value in (("top_k", model.top_k), ("min_p", model.min_p), ("stop", model.stop)):
            if value:
                body[name] = value
        if model.seed >= 0:
            what = f"{request.dataset}\n{request.step}\n{request.unit}\n{request.sample}"
            body["seed"] = unit_hash("request", self._config.seed + model.seed, what) % 2**31
        if not is_answer and model.response_format != "none":
            body["response_format"] = _response_format(model.response_format, request)
        return body


def _response_format(wanted: str, request: Request) -> dict[str, object]:
    if wanted == "json_object" or request.schema is None:
        return {"type": "json_object"}
    schema = {"name": request.step, "strict": True, "schema": request.schema}
    return {"type": "json_schema", "json_schema": schema}
