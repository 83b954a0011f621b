"""
The offline teacher: an OpenAI-compatible server on 127.0.0.1 whose answers are pure functions of the request.

It exists so that the whole pipeline can be tried, tested and proven without a network, a key or a bill.

    python tools/teacher.py --seed 0 --port 8008
    curl -s http://127.0.0.1:8008/v1/chat/completions -d '{"model": "teacher",
        "messages": [{"role": "user", "content": "What does a cow say?"}]}'

Routes: POST /v1/chat/completions (stream and not), GET /v1/models, GET /v1/usage (what it served; with
?attempts=1 also every request: seconds since the start, model, status or fault, call).
"""

import asyncio
import hashlib
import hmac
import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from utils.generate.teacher.answer import Answer
from utils.generate.teacher.asked import Asked, BadRequest, read_asked
from utils.generate.teacher.completion import completion_of
from utils.generate.teacher.delivery import deliver, json_response
from utils.generate.teacher.faults import BROKEN, STATUSES, Drawn, Faults
from utils.generate.teacher.forms import reshape
from utils.generate.teacher.metering import Meter, RateLimit
from utils.generate.teacher.replies import MODELS, respond, task_of

KEY_HEADERS = ("api-key", "x-api-key")
"""Headers that may carry the bare key in place of `Authorization: Bearer KEY`."""


@dataclass
class Teacher:
    """The request handler. `key` = "" asks for none, `requests_per_minute` = 0 lets everybody in."""

    seed: int = 0
    faults: Faults = field(default_factory=Faults)
    latency_seconds: float = 0.0
    requests_per_minute: int = 0
    key: str = field(default="", repr=False)
    meter: Meter = field(default_factory=Meter)

    def __post_init__(self) -> None:
        self._started = time.monotonic()
        self._rate = RateLimit(self.requests_per_minute) if self.requests_per_minute else None

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one HTTP request."""
        try:
            self._check_key(request)
            if request.path == "/v1/chat/completions" and request.method == "POST":
                with self.meter.inside():
                    return await self._chat(request)
            if request.path == "/v1/models":
                models = [{"id": name, "object": "model", "owned_by": "lockstep"} for name in MODELS]
                return json_response({"object": "list", "data": models})
            if request.path == "/v1/usage":
                return json_response(self.meter.report("attempts" in request.query))
            raise BadRequest(404, "invalid_request_error", f"no such route: {request.method} {request.path}")
        except BadRequest as error:
            return _refusal(error.status, error.kind, str(error))

    async def _chat(self, request: web.BaseRequest) -> web.StreamResponse:
        came = time.monotonic() - self._started
        body = await request.read()
        call = hashlib.sha256(body).digest()
        asked = read_asked(body)
        wait = self._rate.seconds_to_wait(came) if self._rate else 0.0
        told = self._rate.headers(wait) if self._rate else {}
        if wait:
            self._note(came, asked.model, "rate", call, failed=True)
            return _refusal(429, "rate_limit_error", f"more than {self.requests_per_minute} a minute", told)
        answer = respond(self.seed, asked.model, asked.messages, asked.seed)
        drawn = self.faults.draw(call, answer.kind, asked.stream, asked.model)
        if self.latency_seconds:
            await asyncio.sleep(self.latency_seconds)
        if drawn.delivery in STATUSES:
            self._note(came, asked.model, drawn.delivery, call, failed=True)
            headers = {"Retry-After": f"{drawn.amount:g}"} if drawn.delivery == "429" else {}
            return _refusal(int(drawn.delivery), "fault", f"fault {drawn.delivery}", told | headers)
        completion = _completion(asked, answer, drawn, body)
        broken = drawn.delivery in BROKEN
        self._note(came, asked.model, drawn.delivery or drawn.content or "200", call, failed=broken)
        if not broken:
            self.meter.served(asked.model, call, completion["usage"])
        return await deliver(request, completion, asked, drawn, told)

    def _note(self, came: float, model: str, outcome: str, call: bytes, failed: bool) -> None:
        self.meter.came(came, model, outcome, call)
        if failed:
            self.meter.failed(model)

    def _check_key(self, request: web.BaseRequest) -> None:
        if not self.key:
            return
        given = [request.headers.get("Authorization", "").removeprefix("Bearer ")]
        given += [request.headers.get(name, "") for name in KEY_HEADERS]
        if not any(hmac.compare_digest(text.encode(), self.key.encode()) for text in given):
            raise BadRequest(401, "invalid_api_key", "the API key is missing or wrong")


def complete(seed: int, body: bytes) -> dict[str, Any]:
    """The completion object for a request body; BadRequest says what is wrong with the body."""
    asked = read_asked(body)
    return completion_of(asked, respond(seed, asked.model, asked.messages, asked.seed), body)


def _completion(asked: Asked, answer: Answer, drawn: Drawn, body: bytes) -> dict[str, Any]:
    if drawn.content:
        answer = reshape(answer, drawn.content, task_of(asked.messages))
    return completion_of(asked, answer, body)


def _refusal(status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> web.Response:
    code = "invalid_api_key" if status == 401 else None
    error = {"message": message, "type": kind, "param": None, "code": code}
    return json_response({"error": error}, status, headers)


async def serve(teacher: Teacher, port: int, exit_with_stdin: bool) -> None:
    """Serve until cancelled, or until stdin closes: a killed parent never leaves a teacher behind."""
    runner = web.ServerRunner(web.Server(teacher.handle, access_log=None), shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, backlog=4096)
    await site.start()
    bound = runner.addresses[0][1]
    print(json.dumps({"base_url": f"http://127.0.0.1:{bound}/v1"}), flush=True)
    try:
        await _parent_left() if exit_with_stdin else await asyncio.Event().wait()
    finally:
        await runner.cleanup()


async def _parent_left() -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    await reader.read()
