"""Thousands of calls in flight: that they work, and what one costs."""

import asyncio
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.generate.providers import BODY, model, opened

SERVER = Path(__file__).with_name("fast_server.py")


@contextmanager
def endpoint(seconds: float) -> Iterator[str]:
    """The URL of a server in a process of its own, which answers after so many seconds."""
    command = [sys.executable, str(SERVER), str(seconds)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield json.loads(child.stdout.readline())["base_url"]
    finally:
        child.stdin.close()
        child.wait()
        child.stdout.close()


async def call_all(url: str, in_flight: int, calls: int, **limits: object) -> tuple[float, float]:
    """Wall and CPU seconds of so many calls, twice as many of which wait as may be in flight."""
    left, spec = iter(range(calls)), model()
    async with opened(url, max_in_flight=in_flight, **limits) as client:

        async def worker() -> None:
            for _ in left:
                reply = await client.complete(BODY, spec, estimate_tokens=100)
                assert reply.completion_tokens == 40

        wall, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(worker() for _ in range(2 * in_flight)))
        assert client.gate.limit == in_flight and client.gate.in_flight == 0
        return time.perf_counter() - wall, time.process_time() - cpu


@pytest.mark.parametrize("in_flight", [1024, 2048])
def test_thousands_of_calls_in_flight(in_flight):
    calls = 2 * in_flight
    limits = {"rate_limit_per_minute": 10**7, "tokens_per_minute": 10**9}
    with endpoint(1.0) as url:
        wall, cpu = asyncio.run(call_all(url, in_flight, calls, **limits))
        counts = json.load(urllib.request.urlopen(url))
    assert counts["calls"] == calls and counts["connections"] <= in_flight + 1
    assert in_flight / 2 < counts["most_running"] <= in_flight
    assert wall < 20 and cpu / calls < 2e-3, "five times what it takes on a quiet machine"


@pytest.mark.bench
def test_what_a_call_costs():
    """10,240 calls, 1,024 in flight, 1 s each: at least 85 % of the ideal rate, below 0.4 ms a call."""
    with endpoint(1.0) as url:
        wall, cpu = asyncio.run(call_all(url, 1024, 10_240))
    print(
        f"\n10,240 calls in {wall:.2f} s, {10 / wall:.0%} of ideal, {1000 * cpu / 10_240:.3f} ms CPU a call"
    )
    assert 10 / wall >= 0.85 and cpu / 10_240 < 4e-4
