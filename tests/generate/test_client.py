"""What the client does with everything that can go wrong between it and a provider."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from aiohttp import web

from utils.config.generate import ModelSpec, ProviderSpec
from utils.generate.client import MOST_FAILED_CALLS_IN_A_ROW, ChatClient, Reply, open_session, read_reply
from utils.generate.errors import CallFailed, Draining
from utils.generate.retry import asked_pause_seconds, pause_seconds, verdict_on
from utils.pipeline.errors import StageError

GOOD = json.dumps(
    {"choices": [{"message": {"content": "moo"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 2}}
)
KEY = "sk-planted-key"

Answer = Callable[[], web.Response | None]


def good() -> web.Response:
    return web.Response(text=GOOD)


def status(code: int, **headers: str) -> Answer:
    return lambda: web.Response(
        status=code, text=f"no, {KEY}", headers={k.replace("_", "-"): v for k, v in headers.items()}
    )


def body(text: str) -> Answer:
    return lambda: web.Response(text=text)


def drop() -> None:
    return None


class Provider:
    """Answers calls from a script, the last entry for ever; counts calls and how many overlap."""

    def __init__(self, *script: Answer, seconds: float = 0.0) -> None:
        self.script, self.seconds = list(script), seconds
        self.calls = self.running = self.most_running = 0
        self.headers: dict[str, str] = {}

    async def handle(self, request: web.BaseRequest) -> web.Response:
        await request.read()
        self.headers = dict(request.headers)
        answer = self.script[min(self.calls, len(self.script) - 1)]
        self.calls += 1
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(self.seconds)
        self.running -= 1
        response = answer()
        if response is None:
            request.transport.abort()
            return web.Response()
        return response

    def use(self, work: Callable[[ChatClient], Awaitable], in_flight: int = 8) -> object:
        """Run `work(client)` against this provider."""

        async def run() -> object:
            runner = web.ServerRunner(web.Server(self.handle))
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
            spec = ProviderSpec(base_url=url, api_key_env="PLANTED", max_in_flight=in_flight)
            try:
                async with open_session(in_flight) as session:
                    return await work(ChatClient("p", url, KEY, spec, session, asyncio.Event()))
            finally:
                await runner.cleanup()

        return asyncio.run(run())


def model(**changes: object) -> ModelSpec:
    return ModelSpec(
        **{"provider": "p", "model": "m", "max_retries": 3, "max_backoff_seconds": 0.01} | changes
    )


def one_call(client: ChatClient) -> Awaitable[Reply]:
    return client.complete(b"{}", model())


def test_a_reply_is_read():
    assert Provider(good).use(one_call) == Reply("moo", "stop", 2, 0)


@pytest.mark.parametrize("code", [408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529])
def test_passing_troubles_are_tried_again(code):
    provider = Provider(status(code), status(code), good)
    assert provider.use(one_call).content == "moo" and provider.calls == 3


@pytest.mark.parametrize(
    "trouble",
    [drop, body("{broken"), body('{"choices": []}'), body("[]"), body('{"choices": [{"message": null}]}')],
)
def test_broken_replies_and_dropped_connections_are_tried_again(trouble):
    provider = Provider(trouble, good)
    assert provider.use(one_call).content == "moo" and provider.calls == 2


@pytest.mark.parametrize("code", [400, 404, 422])
def test_a_refused_call_is_given_up_at_once(code):
    provider = Provider(status(code), good)
    with pytest.raises(CallFailed, match=f"http_{code} after 1 attempts") as caught:
        provider.use(one_call)
    assert provider.calls == 1 and caught.value.reason == f"http_{code}"


@pytest.mark.parametrize("code", [401, 403])
def test_a_refused_key_stops_the_run_and_names_the_provider(code):
    provider = Provider(status(code))

    async def work(client: ChatClient) -> None:
        with pytest.raises(StageError, match=f'provider "p" refuses the key: HTTP {code}') as caught:
            await client.complete(b"{}", model())
        assert "PLANTED" in caught.value.fix
        with pytest.raises(Draining):
            await client.complete(b"{}", model())

    provider.use(work)
    assert provider.calls == 1


def test_retries_end():
    provider = Provider(status(500))
    with pytest.raises(CallFailed, match="http_500 after 4 attempts"):
        provider.use(one_call)
    assert provider.calls == 4


def test_a_provider_that_fails_every_call_stops_the_run():
    async def work(client: ChatClient) -> None:
        for _ in range(MOST_FAILED_CALLS_IN_A_ROW - 1):
            with pytest.raises(CallFailed):
                await client.complete(b"{}", model(max_retries=0))
        with pytest.raises(StageError, match="failed 20 calls in a row, the last with http_500"):
            await client.complete(b"{}", model(max_retries=0))

    Provider(status(500)).use(work)


def test_the_key_is_sent_and_never_repeated():
    provider = Provider(status(400))
    with pytest.raises(CallFailed) as caught:
        provider.use(one_call)
    assert provider.headers["Authorization"] == f"Bearer {KEY}"
    assert KEY not in str(caught.value) and "<key>" in caught.value.excerpt

    async def shown(client: ChatClient) -> str:
        return repr(client)

    assert KEY not in provider.use(shown)


def test_retry_after_wins_over_the_backoff():
    started = time.monotonic()
    Provider(status(429, Retry_After="0.3"), good).use(one_call)
    assert 0.3 <= time.monotonic() - started < 1.5


def test_a_slow_attempt_is_a_timeout():
    provider = Provider(good, seconds=0.5)
    with pytest.raises(CallFailed, match="timeout"):
        provider.use(lambda client: client.complete(b"{}", model(timeout_seconds=0.05, max_retries=1)))


def test_waiting_for_a_place_does_not_count_as_time():
    provider = Provider(good, seconds=0.1)

    async def work(client: ChatClient) -> list[Reply]:
        return await asyncio.gather(*(client.complete(b"{}", model(timeout_seconds=0.25)) for _ in range(6)))

    assert len(provider.use(work, in_flight=1)) == 6 and provider.calls == 6


def test_calls_in_flight_stay_below_the_limit():
    provider = Provider(good, seconds=0.02)

    async def work(client: ChatClient) -> None:
        await asyncio.gather(*(client.complete(b"{}", model()) for _ in range(40)))

    provider.use(work, in_flight=5)
    assert provider.most_running == 5


def test_a_thousand_calls_in_flight():
    provider = Provider(good, seconds=0.8)

    async def work(client: ChatClient) -> list[Reply]:
        return await asyncio.gather(*(client.complete(b"{}", model()) for _ in range(1500)))

    assert len(provider.use(work, in_flight=1024)) == 1500 and provider.most_running > 500


def test_closing_cuts_a_pause_short():
    async def work(client: ChatClient) -> None:
        call = asyncio.create_task(client.complete(b"{}", model()))
        await asyncio.sleep(0.2)
        client.closing.set()
        with pytest.raises(Draining):
            await asyncio.wait_for(call, 2)

    Provider(status(503, Retry_After="60")).use(work)


def test_a_reply_that_is_too_large_is_given_up(monkeypatch):
    monkeypatch.setattr("utils.generate.client.MAX_REPLY_BYTES", 10)
    with pytest.raises(CallFailed, match="too_large"):
        Provider(good).use(one_call)


def test_retry_after_is_read_as_seconds_or_date():
    now = datetime(2026, 1, 5, 10, tzinfo=UTC)
    date = format_datetime(now + timedelta(seconds=7), usegmt=True)
    assert asked_pause_seconds({"Retry-After": "2.5"}) == 2.5
    assert asked_pause_seconds({"Retry-After": date}, now) == 7
    assert asked_pause_seconds({"Retry-After": "-3"}) == 0
    assert asked_pause_seconds({"Retry-After": "soon"}) is None and asked_pause_seconds({}) is None


def test_backoff_grows_with_full_jitter_up_to_its_cap():
    class Highest:
        def uniform(self, low: float, high: float) -> float:
            assert low == 0
            return high

    assert [pause_seconds(attempt, None, 5, Highest()) for attempt in range(5)] == [1, 2, 4, 5, 5]


def test_verdicts():
    assert [verdict_on(code) for code in (200, 429, 403, 404)] == ["good", "retry", "forbidden", "refused"]


def test_content_that_is_no_text_is_an_empty_answer():
    assert read_reply(b'{"choices": [{"message": {"content": null}}]}') == Reply("", "", 0, 0)
