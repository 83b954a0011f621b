"""
Calls that are paid for once: the journal answers what it knows, the provider the rest.

A call is known by the SHA-256 of dataset, request body and sample number. Nothing else about the run enters,
so a run that continues, or that asks for more rows, finds every reply that it needs again.

    reply = await calls.ask(Request("chat", "chosen", "main", messages, unit="What is a cow?"))
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass

from utils.config.generate import GenerateConfig, ModelSpec
from utils.generate.client import ChatClient, Reply
from utils.generate.journal import CallJournal
from utils.pipeline.hashing import canonical_json, sha256_hex, unit_hash


@dataclass(frozen=True)
class Request:
    """One question to one model; `unit` and `sample` tell apart calls that ask the same."""

    dataset: str
    step: str
    model: str
    messages: list[dict[str, str]]
    unit: str
    sample: int = 0


class Calls:
    """All calls of a run; `usage` counts tokens per model and step over every reply used, recorded or new."""

    def __init__(self, config: GenerateConfig, clients: dict[str, ChatClient], journal: CallJournal) -> None:
        self._config = config
        self._clients = clients
        self._journal = journal
        self.usage: dict[str, Counter[str]] = {}
        self.made = 0
        self.under_way = 0

    def failures(self) -> str:
        """What each provider that does not answer at present said last; "" when all do."""
        found = [f"{name}: {client.last_failure}" for name, client in self._clients.items()]
        return "; ".join(text for text in found if not text.endswith(": "))

    async def ask(self, request: Request) -> Reply:
        """The reply to a request. CallFailed when given up: not recorded, so a rerun asks again."""
        model = self._config.models[request.model]
        body = self._body(request, model)
        identity = sha256_hex(canonical_json([request.dataset, body.decode("ascii"), request.sample]))[:32]
        known = self._journal.get(identity)
        if known is None:
            reply = await self._make(body, model, identity)
        else:
            reply = Reply(**known)
        counts = self.usage.setdefault(f"{request.model}.{request.step}", Counter())
        counts.update(calls=1, prompt_tokens=reply.prompt_tokens, completion_tokens=reply.completion_tokens)
        return reply

    async def _make(self, body: bytes, model: ModelSpec, identity: str) -> Reply:
        self.under_way += 1
        try:
            reply = await self._clients[model.provider].complete(body, model)
            self._journal.append(identity, asdict(reply))
        finally:
            self.under_way -= 1
        self.made += 1
        return reply

    def _body(self, request: Request, model: ModelSpec) -> bytes:
        is_list = request.step in ("subtopics", "prompts")
        body: dict[str, object] = {
            "model": model.model,
            "messages": request.messages,
            "temperature": model.structure_temperature if is_list else model.temperature,
            "top_p": model.top_p,
            "max_tokens": model.max_output_tokens,
        }
        if model.stop:
            body["stop"] = model.stop
        if model.seed >= 0:
            what = f"{request.dataset}\n{request.step}\n{request.unit}\n{request.sample}"
            body["seed"] = unit_hash("request", self._config.seed + model.seed, what) % 2**31
        return json.dumps(body, ensure_ascii=True, sort_keys=True).encode("ascii")
