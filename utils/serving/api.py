"""
OpenAI's routes over one model: chat and text completions, whole and streamed, and the list of models.

    app = make_app(service, Door(hosts={"localhost"}))
    web.run_app(app, host="127.0.0.1")

Unknown fields of a request are not read; the header `x-lockstep-ignored` names them.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence

from aiohttp import web

from utils.serving.answers import Answers, News, Wish
from utils.serving.asked import BadRequest, ChatBody, CompletionBody, OpenAIBody, check_ids, read_body
from utils.serving.door import Door, json_response, middlewares
from utils.serving.objects import (
    Answer,
    Head,
    chat_logprobs,
    completion_logprobs,
    event,
    usage,
)
from utils.serving.plain import plain_routes
from utils.serving.service import Service
from utils.serving.streams import Stream

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(service: Service, door: Door) -> web.Application:
    """The application; it stops with its runner's `cleanup`."""
    app = web.Application(
        client_max_size=service.limits.max_body_bytes + 1, middlewares=middlewares(service, door)
    )
    app.add_routes(
        [
            web.post("/v1/chat/completions", Chat(service).handle),
            web.post("/v1/completions", Completions(service).handle),
            web.get("/v1/models", lambda request: _models(service, request)),
            web.get("/v1/models/{name:.+}", lambda request: _models(service, request)),
            web.get("/health", lambda request: _health(service, request)),
            *plain_routes(service),
        ]
    )
    return app


async def _models(service: Service, request: web.Request) -> web.Response:
    entry = {"id": service.model.name, "object": "model", "created": 0, "owned_by": "lockstep"}
    if name := request.match_info.get("name"):
        service.check_name(name)
        return json_response(entry)
    return json_response({"object": "list", "data": [entry]})


async def _health(service: Service, request: web.Request) -> web.Response:
    told = service.health()
    return json_response(told, 200 if told["status"] == "ok" else 503)


class _Route:
    """What both routes do: read, ask, answer whole or in chunks."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def _answer(
        self, request: web.Request, asked: OpenAIBody, prompts: list[list[int]], wishes: list[Wish]
    ) -> web.StreamResponse:
        service, began = self._service, time.monotonic()
        done, num_prompt_tokens = [Answer() for _ in wishes], sum(map(len, prompts))
        async with Answers(service.worker, wishes, service.limits.request_seconds) as answers:
            if asked.stream:
                response = await self._stream(request, asked, answers, done, num_prompt_tokens)
            else:
                done = await answers.whole()
                response = json_response(self._whole(asked, done, wishes, num_prompt_tokens), asked=asked)
        num_tokens, reasons = sum(a.num_tokens for a in done), {a.finish_reason for a in done}
        service.say(
            f"POST {request.path}  {num_prompt_tokens:,} + {num_tokens:,} tokens  "
            f"{time.monotonic() - began:.2f} s  {', '.join(sorted(reasons))}"
        )
        if service.log_prompts:
            service.say(f"  {(await request.read()).decode('utf-8', 'replace')}")
        return response

    async def _stream(
        self,
        request: web.Request,
        asked: OpenAIBody,
        answers: Answers,
        done: list[Answer],
        num_prompt_tokens: int,
    ) -> web.StreamResponse:
        head = self._head()
        async with Stream(request, self._service.limits.idle_seconds, asked.ignored) as stream:
            async for news in answers:
                await stream.write(b"".join(self._chunks(head, asked, answers.wishes, news, done)))
                for number, part in news.items():
                    done[number].add(part)
            last = b""
            if asked.stream_options.include_usage:
                counts = usage(num_prompt_tokens, sum(answer.num_tokens for answer in done))
                last = event(head.object(self.chunk, choices=[], usage=counts))
            return await stream.end(last)

    def _whole(
        self, asked: OpenAIBody, done: list[Answer], wishes: list[Wish], num_prompt_tokens: int
    ) -> dict:
        choices = [
            self._choice(asked, answer, wishes[number])
            | {"index": number, "finish_reason": answer.finish_reason}
            for number, answer in enumerate(done)
        ]
        counts = usage(num_prompt_tokens, sum(answer.num_tokens for answer in done))
        return self._head().object(self.kind, choices=choices, usage=counts)

    def _head(self) -> Head:
        return Head(self._service.model.name, self._service.fingerprint, self.prefix)

    def _chunks(
        self, head: Head, asked: OpenAIBody, wishes: Sequence[Wish], news: News, done: Sequence[Answer]
    ) -> list[bytes]:
        chunks = []
        for number, part in news.items():
            for change in self._changes(asked, part, done[number], wishes[number]):
                choice = {"index": number, **change, "finish_reason": None}
                chunks.append(event(head.object(self.chunk, choices=[choice])))
            if part.finish_reason:
                end = {"index": number, **self.last, "finish_reason": part.finish_reason}
                chunks.append(event(head.object(self.chunk, choices=[end])))
        return chunks


class Chat(_Route):
    """`POST /v1/chat/completions`."""

    kind, chunk, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"
    last = {"delta": {}, "logprobs": None}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer a conversation."""
        asked, service = read_body(ChatBody, await request.read()), self._service
        service.check_name(asked.model)
        prompt = service.chat_prompt([(message.role, message.content) for message in asked.messages])
        most = service.max_tokens(asked.max_completion_tokens or asked.max_tokens, "max_tokens")
        top, grammar = asked.top_logprobs if asked.logprobs else -1, service.grammar(asked.response_format)
        wishes = [
            Wish(prompt, asked.sampling(most, service.vocab_size, choice), tuple(asked.stop), grammar, top)
            for choice in range(asked.n)
        ]
        return await self._answer(request, asked, [prompt], wishes)

    def _choice(self, asked: OpenAIBody, answer: Answer, wish: Wish) -> dict:
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        return {"message": message, "logprobs": self._logprobs(answer, wish)}

    def _changes(self, asked: OpenAIBody, part: Answer, before: Answer, wish: Wish) -> list[dict]:
        changes = []
        if before.empty:
            changes.append({"delta": {"role": "assistant", "content": ""}, "logprobs": None})
        if part.text or part.chances:
            changes.append({"delta": {"content": part.text}, "logprobs": self._logprobs(part, wish)})
        return changes

    def _logprobs(self, answer: Answer, wish: Wish) -> dict | None:
        return None if wish.top_logprobs < 0 else chat_logprobs(answer.chances, self._service.tokenizer)


class Completions(_Route):
    """`POST /v1/completions`."""

    kind, chunk, prefix = "text_completion", "text_completion", "cmpl"
    last = {"text": "", "logprobs": None}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Continue texts, or ids, as they stand."""
        asked, service = read_body(CompletionBody, await request.read()), self._service
        service.check_name(asked.model)
        if len(asked.prompt) > service.limits.max_batch_prompts:
            raise BadRequest(
                400, f"{len(asked.prompt)} prompts, {service.limits.max_batch_prompts} may be", "prompt"
            )
        prompts = [self._prompt(prompt) for prompt in asked.prompt]
        write, top = asked.max_tokens != 0, -1 if asked.logprobs is None else asked.logprobs
        most = service.max_tokens(asked.max_tokens, "max_tokens")
        grammar = service.grammar(asked.response_format)
        wishes = [
            Wish(
                prompt,
                asked.sampling(most, service.vocab_size, choice),
                tuple(asked.stop),
                grammar,
                top,
                asked.echo and top >= 0,
                write,
            )
            for prompt in prompts
            for choice in range(asked.n)
        ]
        return await self._answer(request, asked, prompts, wishes)

    def _prompt(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            return self._service.text_prompt(prompt)
        return self._service.checked(check_ids(prompt, self._service.vocab_size))

    def _choice(self, asked: OpenAIBody, answer: Answer, wish: Wish) -> dict:
        return {"text": self._echoed(asked, wish) + answer.text, "logprobs": self._logprobs(answer, wish)}

    def _changes(self, asked: OpenAIBody, part: Answer, before: Answer, wish: Wish) -> list[dict]:
        text = self._echoed(asked, wish) + part.text if before.empty else part.text
        change = {"text": text, "logprobs": self._logprobs(part, wish, before)}
        return [change] if text or part.chances else []

    def _echoed(self, asked: OpenAIBody, wish: Wish) -> str:
        if not asked.echo:
            return ""
        return b"".join(map(self._service.tokenizer.token_bytes, wish.prompt)).decode("utf-8", "replace")

    def _logprobs(self, answer: Answer, wish: Wish, before: Answer | None = None) -> dict | None:
        if wish.top_logprobs < 0:
            return None
        earlier = before.chances if before else ()
        return completion_logprobs(answer.chances, self._service.tokenizer, earlier)
