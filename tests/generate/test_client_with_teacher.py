"""The client against the offline teacher: faults in delivery change no reply, streamed or not."""

import asyncio

import pytest

from tests.generate.providers import model, opened
from utils.generate.client import Reply
from utils.generate.teacher.process import offline_teacher

FAULTS = (
    "429:.03:.01,500:.03,503:.03,529:.03,drop:.03,cut:.03,truncate:.03,error-200:.03,empty:.03,"
    "stream-error:.03,stream-no-done:.03,stream-odd:.03"
)


def replies(faults: str, stream: bool) -> tuple[list[Reply], int]:
    """What 150 questions are answered with, and the attempts that took."""
    attempts: list[str] = []
    spec = model(model="teacher", stream=stream, max_retries=6)

    async def work(url: str) -> list[Reply]:
        heard = {"on_attempt": lambda name, status, *_: attempts.append(status)}
        async with opened(url, max_in_flight=16, **heard) as client:
            bodies = [
                {
                    "model": "teacher",
                    "messages": [{"role": "user", "content": f"What is {n} plus 4?"}],
                    "seed": n,
                }
                for n in range(150)
            ]
            return await asyncio.gather(*(client.complete(body, spec, estimate_tokens=50) for body in bodies))

    with offline_teacher(0, faults) as url:
        return asyncio.run(work(url)), len(attempts)


@pytest.mark.parametrize("stream", [False, True])
def test_faults_in_delivery_change_no_reply(stream):
    expected, attempts = replies("", not stream)
    assert attempts == 150 and expected[3].content == "3 plus 4 is 7."
    found, attempts = replies(FAULTS, stream)
    assert found == expected and attempts > 165
