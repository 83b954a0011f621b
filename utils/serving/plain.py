"""
Our own short routes: a prompt in, a text out, alone, as a batch or as a stream; and what is being served.

    POST /generate          {"prompt": "Hi", "max_new_tokens": 20}     -> {"response", "prompt", ...}
    POST /generate/batch    {"prompts": ["Hi", "Ho"]}                  -> {"results": [...]}
    POST /generate/stream   as /generate, in events of {"text"}
    GET  /info

`template` false continues the prompt as it stands instead of asking it as a question.
"""

from __future__ import annotations

from dataclasses import asdict

from aiohttp import web

from utils.serving.answers import Answers, Wish
from utils.serving.asked import BadRequest, BatchBody, GenerateBody, read_body
from utils.serving.door import json_response
from utils.serving.objects import Answer, event
from utils.serving.service import Service
from utils.serving.streams import Stream


def plain_routes(service: Service) -> list[web.RouteDef]:
    """The routes."""
    plain = _Plain(service)
    return [
        web.post("/generate", plain.one),
        web.post("/generate/batch", plain.batch),
        web.post("/generate/stream", plain.stream),
        web.get("/info", plain.info),
    ]


class _Plain:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def one(self, request: web.Request) -> web.Response:
        asked = read_body(GenerateBody, await request.read())
        wish = self._wish(asked, asked.prompt)
        async with self._answers([wish]) as answers:
            done = await answers.whole()
        return json_response(_result(asked.prompt, wish, done[0]), asked=asked)

    async def batch(self, request: web.Request) -> web.Response:
        asked = read_body(BatchBody, await request.read())
        most = self._service.limits.max_batch_prompts
        if len(asked.prompts) > most:
            raise BadRequest(400, f"{len(asked.prompts)} prompts, {most} may be", "prompts")
        wishes = [self._wish(asked, prompt, number) for number, prompt in enumerate(asked.prompts)]
        async with self._answers(wishes) as answers:
            done = await answers.whole()
        results = [_result(*parts) for parts in zip(asked.prompts, wishes, done, strict=True)]
        return json_response({"results": results}, asked=asked)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        asked = read_body(GenerateBody, await request.read())
        wish, whole = self._wish(asked, asked.prompt), Answer()
        stream = Stream(request, self._service.limits.idle_seconds, asked.ignored)
        async with self._answers([wish]) as answers, stream:
            async for news in answers:
                whole.add(news[0])
                if text := news[0].text:
                    await stream.write(event({"text": text}))
            return await stream.end(event(_result(asked.prompt, wish, whole)))

    async def info(self, request: web.Request) -> web.Response:
        service = self._service
        told = {"model": asdict(service.model), "limits": asdict(service.limits), "slots": service.num_slots}
        return json_response(told | {"context_tokens": service.context_tokens})

    def _answers(self, wishes: list[Wish]) -> Answers:
        return Answers(self._service.worker, wishes, self._service.limits.request_seconds)

    def _wish(self, asked: GenerateBody, prompt: str, number: int = 0) -> Wish:
        service = self._service
        service.check_name(asked.model)
        ids = service.chat_prompt([("user", prompt)]) if asked.template else service.text_prompt(prompt)
        most = service.max_tokens(asked.max_new_tokens, "max_new_tokens")
        return Wish(ids, asked.sampling(most, service.vocab_size, number), tuple(asked.stop))


def _result(prompt: str, wish: Wish, answer: Answer) -> dict:
    return {
        "response": answer.text,
        "prompt": prompt,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": len(wish.prompt),
        "tokens": answer.num_tokens,
        "generation_config": asdict(wish.sampling),
    }
