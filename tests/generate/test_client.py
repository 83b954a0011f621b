"""What the client does with everything that can go wrong between it and a provider."""

import asyncio
import gc
import gzip
import json
import logging
import resource
import time
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from urllib.parse import quote

import pytest

from tests.generate.providers import (
    BODY,
    GOOD,
    KEY,
    Provider,
    body,
    cut,
    drop,
    good,
    model,
    opened,
    slow,
    status,
    streamed,
)
from tests.generate.test_limits import most_above
from utils.config.providers import LimitsSpec, ModelSpec
from utils.generate import transport
from utils.generate.client import MOST_FAILED_CALLS_IN_A_ROW, ChatClient, Reply, encode
from utils.generate.errors import CallFailed, Draining
from utils.generate.retry import RETRIED
from utils.generate.transport import allow_open_files, rare_collections
from utils.pipeline.errors import ConfigError, StageError

MOO = Reply("moo", "", "stop", 2, 1)
HI = b'data: {"choices":[{"index":0,"delta":{"content":"m\xc3\xb6o"}}]}\n\n'
STOP = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":2,"completion_tokens":1}}\n\n'
DONE = b"data: [DONE]\n\n"
SPOKEN = Reply("m\u00f6o", "", "stop", 2, 1)
STREAMED = model(stream=True)


def ask(client: ChatClient, spec: ModelSpec | None = None, tokens: int = 10) -> Awaitable[Reply]:
    return client.complete(BODY, spec or model(), estimate_tokens=tokens)


def ask_stream(client: ChatClient) -> Awaitable[Reply]:
    return ask(client, STREAMED)


def asking(spec: ModelSpec, times: int = 1) -> object:
    async def work(client: ChatClient) -> list[Reply | BaseException]:
        return await asyncio.gather(*(ask(client, spec) for _ in range(times)), return_exceptions=True)

    return work


# what goes out


def test_a_reply_is_read_and_the_key_is_sent():
    provider = Provider(good)
    assert provider.use(ask) == MOO
    (seen,) = provider.seen
    assert seen.path == "/v1/chat/completions" and seen.body == BODY
    assert seen.headers["Authorization"] == f"Bearer {KEY}"
    assert seen.headers["Content-Type"] == "application/json"


def test_a_key_in_a_header_of_its_own_and_further_headers():
    provider = Provider(good)
    provider.use(ask, api_key_header="api-key", headers={"X-Project": "moo"})
    assert provider.seen[0].headers["api-key"] == KEY and provider.seen[0].headers["X-Project"] == "moo"
    assert "Authorization" not in provider.seen[0].headers


def test_without_a_key_none_is_sent():
    provider = Provider(good)
    provider.use(ask, key="")
    assert "Authorization" not in provider.seen[0].headers


@pytest.mark.parametrize(
    "spec, added",
    [
        (model(), {}),
        (model(stream=True), {"stream": True, "stream_options": {"include_usage": True}}),
        (model(stream=True, include_usage=False), {"stream": True}),
    ],
)
def test_how_an_answer_is_delivered_is_added_to_the_body(spec, added):
    assert json.loads(encode(BODY, spec)) == BODY | added and "stream" not in BODY


def test_any_text_can_be_sent():
    text = "caf\u00e9 \U0001f404 \u2028 \0"
    assert json.loads(encode({"a": text}, model())) == {"a": text}
    assert encode({"a": "\ud83d"}, model()), "half a pair does not stop a run"


def test_a_redirection_is_not_followed_and_so_the_key_stays_here():
    elsewhere = Provider(good)
    with elsewhere.in_thread() as url:
        provider = Provider(status(307, Location=f"{url}/chat/completions"))
        with pytest.raises(CallFailed, match="http_307 after 1 attempts"):
            provider.use(ask)
    assert elsewhere.seen == []


def test_no_proxy_and_no_password_comes_from_the_environment(monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    provider = Provider(good)
    provider.use(ask)
    assert provider.seen[0].headers["Authorization"] == f"Bearer {KEY}"


# the fault matrix


@pytest.mark.parametrize("code", sorted(RETRIED))
def test_passing_troubles_are_tried_again(code):
    provider = Provider(status(code), status(code), good)
    assert provider.use(ask) == MOO and provider.calls == 3


@pytest.mark.parametrize(
    "trouble",
    {
        "drop": drop,
        "empty body": body(""),
        "broken": body('{"choices": [{"mess'),
        "not text": body(b"\xff\xfe"),
        "html": body("<html>busy</html>", "text/html"),
        "no choices": body('{"choices": []}'),
        "list": body("[]"),
        "no message": body('{"choices": [{"message": null}]}'),
        "error in a 200": body('{"error": {"message": "overloaded"}}'),
        "cut": cut(GOOD[:20]),
        "cut at the end": cut(GOOD),
        "not gzip": status(200, GOOD, Content_Encoding="gzip"),
        "timeout": slow(5),
    }.items(),
    ids=lambda trouble: trouble[0],
)
def test_broken_replies_and_connections_are_tried_again(trouble):
    provider = Provider(trouble[1], good)
    assert provider.use(lambda client: ask(client, model(timeout_seconds=0.5))) == MOO and provider.calls == 2


GOOD_STREAMS = {
    "whole": streamed(HI, STOP, USAGE, DONE),
    "byte by byte": streamed(*(bytes([byte]) for byte in HI + STOP + USAGE + DONE)),
    "in one piece": streamed(HI + STOP + USAGE + DONE),
    "CRLF": streamed((HI + STOP + USAGE + DONE).replace(b"\n", b"\r\n")),
    "comments": streamed(b": waiting\n\n" + HI, b": still\n\n", STOP + USAGE + DONE),
    "no space": streamed((HI + STOP + USAGE + DONE).replace(b"data: ", b"data:")),
    "no DONE": streamed(HI, STOP, USAGE),
    "no DONE, hung up": streamed(HI, STOP, USAGE, hang_up=True),
    "no blank line": streamed(HI, USAGE, STOP[:-2]),
    "no kind of its own": streamed(HI, STOP, USAGE, DONE, kind="text/plain"),
    "open after DONE": streamed(HI, STOP, USAGE, DONE, hang=2),
}


@pytest.mark.parametrize("answer", GOOD_STREAMS.values(), ids=GOOD_STREAMS)
def test_a_stream_is_read(answer):
    provider = Provider(answer)
    started = time.monotonic()
    assert provider.use(ask_stream) == SPOKEN and provider.calls == 1
    assert provider.chats[0].body["stream"] is True and time.monotonic() - started < 1.8


BROKEN_STREAMS = {
    "nothing": streamed(),
    "unfinished": streamed(HI),
    "unfinished, hung up": streamed(HI, hang_up=True),
    "half an event": streamed(HI, STOP[:30]),
    "error": streamed(HI, b'data: {"error": {"message": "overloaded"}}\n\n', STOP, DONE),
    "error event": streamed(HI, b"event: error\ndata: overloaded\n\n"),
    "only DONE": streamed(DONE),
    "stalled": streamed(HI, hang=5),
    "status": status(503),
}


@pytest.mark.parametrize("answer", BROKEN_STREAMS.values(), ids=BROKEN_STREAMS)
def test_a_broken_stream_is_tried_again(answer):
    provider = Provider(answer, streamed(HI, STOP, USAGE, DONE))
    spec = model(stream=True, timeout_seconds=0.5)
    assert provider.use(lambda client: ask(client, spec)) == SPOKEN and provider.calls == 2


def test_a_server_that_cannot_stream_may_answer_whole():
    assert Provider(good).use(ask_stream) == MOO


def test_a_server_that_streams_unasked_is_understood():
    assert Provider(streamed(HI, STOP, USAGE, DONE)).use(ask) == SPOKEN


def test_a_finished_stream_leaves_its_connection_to_the_next_call():
    provider = Provider(streamed(HI, STOP, USAGE, DONE))

    async def work(client: ChatClient) -> None:
        for _ in range(5):
            await ask_stream(client)

    provider.use(work)
    assert provider.calls == 5 and len(provider.connections) == 1


def test_thinking_is_apart_from_the_answer():
    document = json.loads(GOOD)
    document["choices"][0]["message"] = {"content": "It is simple.</think>moo", "reasoning_content": "Hm."}
    reply = Provider(body(json.dumps(document))).use(ask)
    assert (reply.content, reply.reasoning) == ("moo", "Hm.\nIt is simple.")


def test_compressed_answers_are_read():
    provider = Provider(body(gzip.compress(GOOD.encode())))

    async def compressed(request: object) -> object:
        response = await provider.script[0](request)
        response.headers["Content-Encoding"] = "gzip"
        return response

    assert Provider(compressed).use(ask) == MOO


@pytest.mark.parametrize("code", [400, 402, 404, 405, 413, 422, 501])
def test_a_refused_call_is_given_up_at_once(code):
    provider = Provider(status(code), good)
    with pytest.raises(CallFailed, match=f"http_{code} after 1 attempts") as caught:
        provider.use(ask)
    assert provider.calls == 1 and caught.value.reason == f"http_{code}"


@pytest.mark.parametrize("code", [401, 403])
def test_a_refused_key_stops_the_run_and_names_the_provider(code):
    provider = Provider(status(code))

    async def work(client: ChatClient) -> None:
        with pytest.raises(
            StageError, match=f'provider "p" refuses the key: HTTP {code} no, <key>'
        ) as caught:
            await ask(client)
        assert "PLANTED" in caught.value.fix
        with pytest.raises(Draining):
            await ask(client)

    provider.use(work)
    assert provider.calls == 1


def test_retries_end():
    provider = Provider(status(500))
    with pytest.raises(CallFailed, match="http_500 after 4 attempts"):
        provider.use(ask)
    assert provider.calls == 4


@pytest.mark.parametrize("code", [404, 429])
def test_a_provider_that_gives_no_call_a_reply_stops_the_run(code):
    async def work(client: ChatClient) -> None:
        spec = model(max_retries=0)
        for _ in range(MOST_FAILED_CALLS_IN_A_ROW - 1):
            with pytest.raises(CallFailed):
                await ask(client, spec)
        with pytest.raises(
            StageError, match=f"failed 20 calls in a row, the last with http_{code}"
        ) as caught:
            await ask(client, spec)
        assert KEY not in caught.value.report() and client.closing.is_set()

    Provider(status(code)).use(work)


def test_a_reply_begins_the_count_anew():
    half = [status(404)] * (MOST_FAILED_CALLS_IN_A_ROW - 1)
    provider = Provider(*half, good, *half, good)
    ends = provider.use(asking(model(), 1 + 2 * len(half) + 1))
    assert sum(end == MOO for end in ends) == 2 and all(isinstance(end, Reply | CallFailed) for end in ends)


@pytest.mark.parametrize("answer", [body(GOOD), streamed(HI, STOP, DONE)])
def test_a_reply_that_is_too_large_is_given_up(answer):
    provider = Provider(answer)
    with pytest.raises(CallFailed, match="too_large after 1 attempts: the reply has more than 50 bytes"):
        provider.use(ask, limits=LimitsSpec(max_reply_bytes=50))


def test_a_small_reply_that_unpacks_to_a_large_one_is_given_up():
    async def bomb(request: object) -> object:
        response = await body(gzip.compress(b" " * 3_000_000 + GOOD.encode()))(request)
        response.headers["Content-Encoding"] = "gzip"
        return response

    with pytest.raises(CallFailed, match="too_large"):
        Provider(bomb).use(ask, limits=LimitsSpec(max_reply_bytes=1_000_000))


def test_nobody_there_is_a_transport_failure():
    async def work() -> None:
        async with opened("http://127.0.0.1:9/v1") as client:
            with pytest.raises(CallFailed, match="transport after 2 attempts: ClientConnectorError"):
                await ask(client, model(max_retries=1))
            assert client.last_failure.startswith("transport: ")

    asyncio.run(work())


# time


def pauses_before_a_retry(trouble: object) -> list[float]:
    """Three measurements: the machine may be busy, but not each time."""
    providers = [Provider(trouble, good) for _ in range(3)]
    for provider in providers:
        provider.use(ask)
    return [provider.times[1] - provider.times[0] for provider in providers]


def test_retry_after_in_seconds_is_obeyed():
    pauses = pauses_before_a_retry(status(429, Retry_After="0.5"))
    assert 0.5 <= min(pauses) < 0.7 and max(pauses) < 5


def test_retry_after_as_a_date_is_obeyed():
    asked = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=2)
    provider = Provider(status(503, Retry_After=format_datetime(asked, usegmt=True)), good)
    provider.use(ask)
    late = (datetime.now(UTC) - asked).total_seconds()
    assert 0 <= late < 1.5


def test_reset_headers_are_obeyed():
    requests = {"x_ratelimit_reset_requests": "400ms", "x_ratelimit_remaining_requests": "0"}
    tokens = {"x_ratelimit_reset_tokens": "9s", "x_ratelimit_remaining_tokens": "50"}
    pauses = pauses_before_a_retry(status(429, **requests, **tokens))
    assert 0.4 <= min(pauses) < 0.6 and max(pauses) < 5


def test_a_long_pause_that_is_asked_for_is_told_once():
    told: list[str] = []
    provider = Provider(*[status(429, Retry_After="0.3")] * 4, good)
    spec = model(max_backoff_seconds=0.01)
    provider.use(asking(spec, 4), log=lambda event, text, **_: told.append(f"{event}: {text}"))
    assert told == ['waiting: provider "p" asks to wait 0 s (http_429); the calls concerned do']


def test_a_slow_attempt_is_a_timeout():
    with pytest.raises(CallFailed, match="timeout after 2 attempts: no reply within 0.05 s"):
        Provider(slow(0.5)).use(lambda client: ask(client, model(timeout_seconds=0.05, max_retries=1)))


def test_waiting_for_a_place_does_not_count_as_time():
    provider = Provider(slow(0.2))
    ends = provider.use(asking(model(timeout_seconds=0.8), 6), max_in_flight=1)
    assert ends == [MOO] * 6 and provider.calls == 6


def test_calls_and_connections_stay_below_the_limit():
    provider = Provider(slow(0.02))
    assert provider.use(asking(model(), 60), max_in_flight=5) == [MOO] * 60
    assert provider.most_running == 5 and len(provider.connections) <= 5


def test_requests_stay_below_the_rate_with_retries_and_two_models():
    """600 a minute, 2 % of them at once: 12, then 10 a second; half of the calls are tried again."""

    async def every_other(request: object) -> object:
        return await (status(500) if provider.calls % 2 else good)(request)

    provider = Provider(every_other)

    async def work(client: ChatClient) -> None:
        one, two = model(max_retries=20), model(max_retries=20)
        await asyncio.gather(*(ask(client, spec) for spec in (one, two) * 13))

    provider.use(work, rate_limit_per_minute=600, burst_percent=2)
    assert provider.calls > 40
    assert most_above(provider.times, 10) <= 12 + 0.5, "half a request for the network"
    assert provider.times[-1] - provider.times[0] < (provider.calls - 12) / 10 + 1.5


# the end of a run


def test_closing_cuts_a_pause_short():
    async def work(client: ChatClient) -> None:
        call = asyncio.create_task(ask(client))
        await asyncio.sleep(0.2)
        client.closing.set()
        with pytest.raises(Draining):
            await asyncio.wait_for(call, 2)

    Provider(status(503, Retry_After="60")).use(work)


def test_closing_sends_away_who_waits_and_lets_finish_who_was_sent():
    provider = Provider(slow(1.2))

    async def work(client: ChatClient) -> None:
        calls = [asyncio.create_task(ask(client)) for _ in range(6)]
        await asyncio.sleep(0.2)
        assert (client.gate.in_flight, client.gate.waiting) == (2, 4)
        client.closing.set()
        away, _ = await asyncio.wait(calls[2:], timeout=0.5)
        assert len(away) == 4 and not calls[0].done(), "at once, not when their turn would have come"
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert ends[:2] == [MOO] * 2 and [type(end) for end in ends[2:]] == [Draining] * 4
        with pytest.raises(Draining):
            await ask(client)

    provider.use(work, max_in_flight=2)
    assert provider.calls == 2


def test_cancelled_calls_free_their_places():
    provider = Provider(slow(0.3))

    async def work(client: ChatClient) -> None:
        calls = [asyncio.create_task(ask(client)) for _ in range(4)]
        await asyncio.sleep(0.1)
        for call in calls[:3]:
            call.cancel()
        assert await calls[3] == MOO
        assert (client.gate.in_flight, client.gate.waiting) == (0, 0)

    provider.use(work, max_in_flight=2)


def test_an_outage_is_waited_for_and_costs_no_call(monkeypatch):
    """A provider that is down for 0.3 s and more attempts than any call has: every call gets its reply."""
    monkeypatch.setattr("utils.generate.breaker.PROBE_SECONDS", 0.05)

    async def down_at_first(request: object) -> object:
        down = provider.times[-1] < provider.times[0] + 0.3
        return await (status(502) if down else good)(request)

    provider = Provider(down_at_first)
    told: list[str] = []
    ends = provider.use(
        asking(model(max_retries=3), 30), max_in_flight=30, log=lambda event, text, **_: told.append(text)
    )
    assert ends == [MOO] * 30
    assert "failed 20 times in a row (http_502: no, <key>); next try in 0.05 s" in told[0]
    assert "probe 1 of 10 failed" in told[1] and "answers again" in told[-1]


def test_a_probe_does_not_use_up_the_attempts_of_its_call(monkeypatch):
    monkeypatch.setattr("utils.generate.breaker.PROBE_SECONDS", 0.01)
    monkeypatch.setattr("utils.generate.breaker.FAILURES_TO_OPEN", 1)
    provider = Provider(*[status(502)] * 6, status(429), status(500), good)
    assert provider.use(lambda client: ask(client, model(max_retries=2))) == MOO and provider.calls == 9


def test_a_retry_goes_before_calls_that_were_never_sent():
    provider = Provider(slow(0.2, status(500)), slow(0.2))

    async def work(client: ChatClient) -> None:
        bodies, spec = [BODY | {"n": name} for name in "abcde"], model()
        await asyncio.gather(*(client.complete(body, spec, estimate_tokens=1) for body in bodies))

    provider.use(work, max_in_flight=1)
    assert [seen.body["n"] for seen in provider.chats] == ["a", "b", "c", "a", "d", "e"], "c was next already"


def test_a_provider_that_stays_away_stops_the_run(monkeypatch):
    monkeypatch.setattr("utils.generate.breaker.PROBE_SECONDS", 0.01)
    ends = Provider(drop).use(asking(model(max_retries=5), 40), max_in_flight=30)
    gone = [end for end in ends if isinstance(end, StageError)]
    assert len(gone) == 1 and 'provider "p" is gone' in str(gone[0]) and "transport: " in str(gone[0])
    assert all(isinstance(end, StageError | Draining) for end in ends)


# what is told


def test_attempts_are_told_without_texts():
    heard: list[tuple] = []
    provider = Provider(status(429), drop, good)
    provider.use(ask, on_attempt=lambda *what: heard.append(what))
    assert [what[:2] for what in heard] == [("m", "http_429"), ("m", "transport"), ("m", "200")]
    assert [what[3] for what in heard] == [0, 0, 3] and all(0 <= what[2] < 5 for what in heard)


@pytest.mark.parametrize("answer", [body(GOOD.replace("usage", "used")), streamed(HI, STOP, DONE)])
def test_missing_token_counts_are_guessed_and_told_once(answer):
    told: list[str] = []

    async def work(client: ChatClient) -> Reply:
        await ask(client)
        reply = await ask(client)
        assert client.uncounted == {"m"}
        return reply

    reply = Provider(answer).use(work, log=lambda event, text, **_: told.append(text))
    assert told == ['model "m" of provider "p" reports no token counts; they are guessed']
    assert (
        reply.prompt_tokens == pytest.approx(len(json.dumps(BODY)) / 4, abs=3)
        and reply.completion_tokens == 1
    )


def test_the_key_is_in_no_error_no_log_and_no_repr(caplog):
    caplog.set_level(logging.DEBUG)
    heard: list[object] = []
    for way in (KEY, quote(KEY, safe=""), json.dumps(json.dumps(KEY)), KEY.replace("/", "\\/")):
        for code in (400, 401, 500):

            async def work(client: ChatClient) -> str:
                heard.append(repr(client))
                try:
                    await ask(client, model(max_retries=1))
                except (CallFailed, StageError) as error:
                    heard.extend(
                        [str(error), repr(error), getattr(error, "excerpt", ""), client.last_failure]
                    )
                return ""

            Provider(status(code, f'{{"error": "bad key {way}"}}')).use(
                work, log=lambda *what, **more: heard.append((what, more))
            )
    text = "\n".join(map(str, heard)) + caplog.text
    assert "<key>" in text and "planted" not in text


@pytest.mark.parametrize("where", ["content", "reasoning"])
@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_tells_the_key_is_not_used(where, stream):
    message = {"content": "ok"} | {where: f"your key is {KEY}"}
    part = {"delta" if stream else "message": message, "finish_reason": "stop"}
    text = json.dumps({"choices": [part]})
    answer = streamed(f"data: {text}\n\n".encode()) if stream else body(text)
    with pytest.raises(CallFailed, match="key_in_reply after 1 attempts: the answer holds the key"):
        Provider(answer).use(ask)


# the process


def test_open_files_are_allowed_as_far_as_needed(monkeypatch):
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    allow_open_files(500)
    assert asked == []
    allow_open_files(2048)
    assert asked == [(2048 + transport.SPARE_FILES, 4096)]
    with pytest.raises(ConfigError, match="5,000 calls in flight need 5,128 open files.*allows 4,096"):
        allow_open_files(5000)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    allow_open_files(5000)
    assert len(asked) == 1


def test_the_collector_is_as_before_afterwards():
    before = gc.get_threshold()
    with rare_collections():
        assert gc.get_threshold()[0] > before[0] and gc.get_freeze_count() > 0
    assert gc.get_threshold() == before and gc.get_freeze_count() == 0
