"""
The offline teacher: an OpenAI-compatible server on 127.0.0.1 whose answers are pure functions of the request.

It exists so that the whole pipeline can be tried, tested and proven without a network, a key or a bill.

    python tools/teacher.py --seed 0 --port 8008
    curl -s http://127.0.0.1:8008/v1/chat/completions -d '{"model": "teacher",
        "messages": [{"role": "user", "content": "What does a cow say?"}]}'

Routes: POST /v1/chat/completions (stream and not), GET /v1/models, GET /v1/usage (how many calls it served).
"""

import argparse
import asyncio
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from aiohttp import web

from utils.generate.teacher.faults import Faults
from utils.generate.teacher.replies import MODELS, reply
from utils.pipeline.errors import ConfigError

BROKEN_JSON = b'{"id": "chatcmpl-0", "choices": [{"index": 0, "mess'


class BadRequest(Exception):
    """The caller's fault: status, type and text of the OpenAI error object."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


@dataclass
class Teacher:
    """The request handler; `served` counts answers, `repeated` those to a body that was answered before."""

    seed: int = 0
    faults: Faults = field(default_factory=lambda: Faults({}))
    served: int = 0
    repeated: int = 0
    _seen: set[bytes] = field(default_factory=set)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one HTTP request."""
        try:
            if request.path == "/v1/chat/completions" and request.method == "POST":
                return await self._chat(request)
            if request.path == "/v1/models":
                return _json({"object": "list", "data": [{"id": name, "object": "model"} for name in MODELS]})
            if request.path == "/v1/usage":
                return _json({"served": self.served, "repeated": self.repeated})
            raise BadRequest(404, "invalid_request_error", f"no such route: {request.method} {request.path}")
        except BadRequest as error:
            return _json({"error": {"message": str(error), "type": error.kind}}, error.status)

    async def _chat(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        call = hashlib.sha256(body).digest()
        fault = self.faults.next_for(call) if self.faults.shares else ""
        if fault in ("429", "500", "503"):
            headers = {"Retry-After": "0"} if fault == "429" else {}
            return _json({"error": {"message": f"fault {fault}", "type": "fault"}}, int(fault), headers)
        if fault == "drop":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if fault == "truncate":
            return web.Response(body=BROKEN_JSON, content_type="application/json")
        completion = complete(self.seed, body)
        self.served += 1
        self.repeated += call in self._seen
        self._seen.add(call)
        if fault == "empty":
            completion["choices"] = []
        if completion.pop("stream"):
            return await _stream(request, completion)
        return _json(completion)


def complete(seed: int, body: bytes) -> dict:
    """The completion object for a request body; BadRequest says what is wrong with the body."""
    asked = _checked(body)
    messages, model = asked["messages"], asked["model"]
    content, finish = reply(seed, model, messages, asked.get("seed")), "stop"
    words = content.split(" ")
    limit = asked.get("max_completion_tokens") or asked.get("max_tokens") or 0
    if limit and len(words) > limit:
        words, finish = words[:limit], "length"
        content = " ".join(words)
    prompt_tokens = sum(len(message["content"].split()) for message in messages)
    return {
        "id": "chatcmpl-" + hashlib.sha256(body).hexdigest()[:24],
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish}
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": len(words),
            "total_tokens": prompt_tokens + len(words),
        },
        "stream": bool(asked.get("stream")),
    }


def _checked(body: bytes) -> dict:
    try:
        asked = json.loads(body)
        messages = asked["messages"]
        good = bool(messages) and all(
            isinstance(m["role"], str) and isinstance(m["content"], str) for m in messages
        )
    except (ValueError, KeyError, TypeError):
        good = False
    if not good:
        raise BadRequest(
            400, "invalid_request_error", "messages must be a non-empty list of role and content"
        )
    if asked.get("model") not in MODELS:
        raise BadRequest(
            404, "model_not_found", f"no model {asked.get('model')!r}; there are {', '.join(MODELS)}"
        )
    return asked


def _json(body: dict, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=json.dumps(body).encode(), status=status, content_type="application/json", headers=headers
    )


async def _stream(request: web.BaseRequest, completion: dict) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for event in _events(completion):
        await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


def _events(completion: dict) -> Iterator[dict]:
    """The same answer word by word; the last event carries the usage."""
    head = {key: completion[key] for key in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    choice = completion["choices"][0] if completion["choices"] else None
    if choice:
        for number, word in enumerate(choice["message"]["content"].split(" ")):
            delta = {"content": word if number == 0 else " " + word} | (
                {"role": "assistant"} if number == 0 else {}
            )
            yield head | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        yield head | {"choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]}
    yield head | {"choices": [], "usage": completion["usage"]}


async def serve(teacher: Teacher, port: int, exit_with_stdin: bool) -> None:
    """Serve until cancelled, or until stdin closes: a killed parent never leaves a teacher behind."""
    runner = web.ServerRunner(web.Server(teacher.handle, access_log=None), shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, backlog=2048)
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


def main(arguments: list[str] | None = None) -> None:
    """The command line of the teacher."""
    parser = argparse.ArgumentParser(description="The offline teacher: a seeded OpenAI-compatible server.")
    parser.add_argument("--port", type=int, default=8008, help="0 lets the kernel choose")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other answers")
    parser.add_argument(
        "--faults", default="", help="shares of faulty calls, for example 429:0.1,500:0.1,drop:0.05"
    )
    parser.add_argument("--exit-with-stdin", action="store_true", help="stop when stdin closes")
    given = parser.parse_args(arguments)
    try:
        teacher = Teacher(given.seed, Faults.parse(given.faults, given.seed))
        asyncio.run(serve(teacher, given.port, given.exit_with_stdin))
    except ConfigError as error:
        print(f"error: {error.report()}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
