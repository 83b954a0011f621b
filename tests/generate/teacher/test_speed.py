"""How many replies the teacher gives per second of one core: `pytest -m bench tests/generate/teacher -s`."""

import asyncio
import json
import resource
import time
from urllib.parse import urlsplit

import pytest

from utils.generate.teacher.process import offline_teacher

pytestmark = pytest.mark.bench
NAMES, THINGS = ("Tom", "Lily", "Ben", "Anna"), ("kite", "ball", "hat", "scarf")
STORY = 'Write a text with this idea: "{name} loses a red {thing} at school"'
JUDGED = (
    "Request:\nWhat is {n} plus 3?\n\nAnswer:\n{n} plus 3 is {n}.\n\nScore the answer by each criterion:\n"
    "- correct (1.0 to 5.0): Is it right?\n- clear (1.0 to 5.0): Is it clear?\n\nGive the scores."
)


def request_bytes(number: int, kind: str, stream: bool) -> bytes:
    """One request of its own, as bytes on the wire."""
    text = {
        "sum": f"What is {number % 97} plus {number % 89}?",
        "story": STORY.format(name=NAMES[number % 4], thing=THINGS[number // 4 % 4]),
        "judge": JUDGED.format(n=number % 97),
    }[kind]
    model = "teacher-judge" if kind == "judge" else "teacher"
    body = {"model": model, "messages": [{"role": "user", "content": text}], "seed": number, "stream": stream}
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


class Asker(asyncio.Protocol):
    """One connection that asks again as soon as it is answered; `left` holds requests not yet sent."""

    def __init__(self, left: list[bytes], done: asyncio.Event) -> None:
        self.left, self.done, self.received = left, done, b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self._next()

    def _next(self) -> None:
        self.received = b""
        if self.left:
            self.transport.write(self.left.pop())
        else:
            self.done.set()

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, _, body = self.received.partition(b"\r\n\r\n")
        if b"chunked" in head:
            whole = body.endswith(b"0\r\n\r\n")
        else:
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]
            whole = bool(length) and len(body) >= int(length)
        if whole:
            assert b" 200 " in head
            self._next()


async def ask_all(base_url: str, requests: list[bytes], connections: int) -> None:
    loop, address = asyncio.get_running_loop(), urlsplit(base_url)
    finished = [asyncio.Event() for _ in range(connections)]
    for done in finished:
        await loop.create_connection(lambda done=done: Asker(requests, done), address.hostname, address.port)
    await asyncio.gather(*(done.wait() for done in finished))


@pytest.mark.parametrize(
    ("kind", "stream"), [("sum", False), ("story", False), ("judge", False), ("sum", True), ("story", True)]
)
def test_replies_per_second_of_one_core(kind: str, stream: bool) -> None:
    """The teacher's own processor time counts, its start included; the asker runs in this process."""
    count = 20_000
    requests = [request_bytes(number, kind, stream) for number in range(count)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with offline_teacher(0) as base_url:
        began = time.monotonic()
        asyncio.run(ask_all(base_url, requests, 64))
        wall = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    rates = f"{count / wall:,.0f} a second, {count / seconds:,.0f} per second of a core"
    print(f"\n{kind}, stream {stream}: {rates}")
    assert count / seconds >= 3000


def test_two_thousand_replies_wait_at_a_time() -> None:
    """Four rounds of 2,048 replies of three seconds each: what the teacher works while they wait."""
    requests = [request_bytes(number, "sum", False) for number in range(4 * 2048)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with offline_teacher(0, latency_ms=3000) as base_url:
        began = time.monotonic()
        asyncio.run(ask_all(base_url, requests, 2048))
        wall = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"\n4 rounds of 2,048 replies of 3 s: {wall:.2f} s, {seconds:.2f} s of a core")
    assert wall < 18 and seconds < 4
