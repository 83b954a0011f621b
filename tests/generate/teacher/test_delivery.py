"""Every delivery fault over HTTP, as a client meets it."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import requests
from aiohttp import web

from utils.generate.teacher.faults import Faults
from utils.generate.teacher.server import Teacher

ASKED = {
    "model": "teacher",
    "messages": [{"role": "user", "content": 'A story with this idea: "Tom loses a red kite in the park"'}],
    "seed": 1,
}
STREAMED = ASKED | {"stream": True}
Start = Callable[[str], str]


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """`start("cut:1")` gives the address of a teacher with these faults; all live in one thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def serve(faults: str) -> str:
        runner = web.ServerRunner(web.Server(Teacher(faults=Faults.parse(faults)).handle))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}/v1/"

    yield lambda faults: asyncio.run_coroutine_threadsafe(serve(faults), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


def post(url: str, body: dict = ASKED) -> requests.Response:
    return requests.post(f"{url}chat/completions", json=body, timeout=10)


@pytest.fixture(scope="module")
def story(start: Start) -> str:
    return post(start("")).json()["choices"][0]["message"]["content"]


def told(text: str) -> str:
    """What a stream says, read line by line as the standard wants it."""
    data, found = [], []
    for line in text.replace("\r\n", "\n").split("\n"):
        if line.startswith("data:"):
            data.append(line.removeprefix("data:").removeprefix(" "))
        elif not line and data:
            found.append("\n".join(data))
            data = []
    events = [json.loads(event) for event in found if event != "[DONE]"]
    deltas = [event["choices"][0]["delta"] for event in events if event.get("choices")]
    return "".join(delta.get("content", "") for delta in deltas)


@pytest.mark.parametrize("body", [ASKED, STREAMED])
@pytest.mark.parametrize("status", [429, 500, 503, 529])
def test_statuses_in_the_shape_of_openai_until_the_call_gets_through(start, body, status):
    url = start(f"{status}:1")
    answers = [post(url, body) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [status] * 3 + [200]
    assert answers[0].json()["error"]["message"] == f"fault {status}"
    assert ("Retry-After" in answers[0].headers) == (status == 429)


def test_retry_after_is_the_amount(start):
    assert post(start("429:1:1.5")).headers["Retry-After"] == "1.5"


@pytest.mark.parametrize("body", [ASKED, STREAMED])
@pytest.mark.parametrize("kind", ["drop", "cut"])
def test_connections_break_before_or_within_a_reply(start, body, kind):
    url = start(f"{kind}:1")
    for _ in range(3):
        with pytest.raises(requests.RequestException):
            post(url, body)
    assert post(url, body).ok


def test_a_truncated_body_is_no_json_and_a_truncated_stream_has_no_end(start):
    url = start("truncate:1")
    with pytest.raises(ValueError):
        post(url).json()
    text = post(url, STREAMED).text
    assert not text.endswith("\n\n") and 'finish_reason": "stop' not in text and "[DONE]" not in text


def test_choices_can_be_empty(start, story):
    url = start("empty:1")
    assert post(url).json()["choices"] == [] and told(post(url, STREAMED).text) == ""


def test_an_error_can_come_as_a_200(start):
    answer = post(start("error-200:1"))
    assert answer.status_code == 200 and answer.json()["error"]["type"] == "server_error"


@pytest.mark.parametrize("body", [ASKED, STREAMED])
@pytest.mark.parametrize(("fault", "least"), [("latency:1:300", 0.15), ("slow:1:200", 0.2)])
def test_late_and_slow_replies_are_whole(start, story, body, fault, least):
    url = start(fault)
    began = time.monotonic()
    answer = post(url, body)
    assert time.monotonic() - began >= least
    assert (
        told(answer.text) if body is STREAMED else answer.json()["choices"][0]["message"]["content"]
    ) == story


def test_an_error_in_the_middle_of_a_stream(start, story):
    text = post(start("stream-error:1"), STREAMED).text
    assert json.loads(text.split("data: ")[-1])["error"]["type"] == "server_error"
    assert story.startswith(told(text)) and 0 < len(told(text)) < len(story)


def test_a_stream_without_done_has_a_finish_reason(start, story):
    text = post(start("stream-no-done:1"), STREAMED).text
    assert "[DONE]" not in text and 'finish_reason": "stop"' in text and told(text) == story


def test_odd_streams_say_the_same(start, story):
    text = post(start("stream-odd:1"), STREAMED).text
    assert "\r\n" in text and ": keep-alive" in text and "data: {" not in text and told(text) == story


def test_broken_replies_are_not_counted_as_served(start):
    url = start("truncate:1")
    for _ in range(5):
        post(url)
    usage = requests.get(f"{url}usage?attempts=1", timeout=10).json()
    assert (usage["served"], usage["failed"], usage["repeated"]) == (2, 3, 1)
    assert [attempt[2] for attempt in usage["attempts"]] == ["truncate"] * 3 + ["200"] * 2


def read(answer: requests.Response, body: dict) -> str:
    """The text of an answer; ValueError when the client would have to try again."""
    if "stream" not in body:
        return answer.json()["choices"][0]["message"]["content"] or ""
    if 'finish_reason": "' not in answer.text:
        raise ValueError
    return told(answer.text)


def test_a_client_that_retries_gets_every_answer_through_all_faults_together(start):
    url, quiet = start("all:0.3,latency:0,slow:0"), start("")
    right = failed = 0
    for number in range(150):
        body = (STREAMED if number % 2 else ASKED) | {"seed": number}
        for attempt in range(4):
            try:
                right += read(post(url, body), body) == read(post(quiet, body), body)
                break
            except (requests.RequestException, ValueError, KeyError, IndexError):
                failed += 1
                assert attempt < 3
    assert failed > 10 and 0.75 * 150 < right < 150
