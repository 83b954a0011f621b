"""The teacher over HTTP: OpenAI shapes, the same answers everywhere, scheduled faults, no orphans."""

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import pytest
import requests

from utils.generate.teacher.cli import main
from utils.generate.teacher.process import offline_teacher
from utils.generate.teacher.replies import MODELS
from utils.generate.teacher.server import complete
from utils.pipeline.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
COW = {"model": "teacher", "messages": [{"role": "user", "content": "What does a cow say?"}], "seed": 3}
STORY = {
    "model": "teacher",
    "messages": [{"role": "user", "content": 'A story with this idea: "Tom loses a red kite"'}],
}


@pytest.fixture(scope="module")
def url():
    with offline_teacher(0) as base_url:
        yield base_url


def chat(url: str, body: dict, **options) -> requests.Response:
    return requests.post(f"{url}/chat/completions", json=body, timeout=10, **options)


def test_completion_has_the_shape_of_openai(url):
    answer = chat(url, COW).json()
    assert answer["object"] == "chat.completion" and answer["model"] == "teacher"
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "A cow says moo."}
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}


def events_of(text: str) -> list[dict]:
    """The events of a stream that ends as it should."""
    lines = text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


@pytest.mark.parametrize("model", MODELS)
def test_stream_equals_non_stream(url, model):
    for body in (COW | {"model": model}, STORY | {"model": model}):
        whole = chat(url, body).json()
        asked = body | {"stream": True, "stream_options": {"include_usage": True}}
        answer = chat(url, asked, stream=True)
        assert answer.headers["Content-Type"] == "text/event-stream"
        *events, finish, usage = events_of(answer.text)
        message = whole["choices"][0]["message"]
        for field in ("content", "reasoning", "reasoning_content"):
            deltas = [event["choices"][0]["delta"].get(field, "") for event in events]
            same_body = complete(0, json.dumps(asked).encode())["choices"][0]["message"]
            assert "".join(deltas) == message.get(field, "") == same_body.get(field, "")
        assert finish["choices"][0]["finish_reason"] == "stop"
        assert usage["choices"] == [] and usage["usage"] == whole["usage"]


def test_usage_ends_a_stream_only_when_asked_for(url):
    assert all("usage" not in event for event in events_of(chat(url, COW | {"stream": True}).text))


def test_models(url):
    names = [model["id"] for model in requests.get(f"{url}/models", timeout=10).json()["data"]]
    assert names == ["teacher", "teacher-weak", "teacher-judge", "teacher-thinker"]


def test_usage_counts_answers_repeats_and_tokens_per_model(url):
    def usage() -> dict:
        return requests.get(f"{url}/usage", timeout=10).json()

    chat(url, COW)
    before = usage()
    chat(url, COW | {"seed": 99}), chat(url, COW | {"seed": 99})
    after, own = usage(), usage()["models"]["teacher"]
    assert after["served"] - before["served"] == 2 and after["repeated"] - before["repeated"] == 1
    assert own["completion_tokens"] - before["models"]["teacher"]["completion_tokens"] == 2 * 4
    assert after["max_concurrent"] >= 1 and "attempts" not in after


def test_usage_tells_on_demand_when_each_request_came(url):
    chat(url, COW | {"seed": 123})
    attempts = requests.get(f"{url}/usage?attempts=1", timeout=10).json()["attempts"]
    seconds, model, outcome, call = attempts[-1]
    assert model == "teacher" and outcome == "200" and len(call) == 16
    assert [entry[0] for entry in attempts] == sorted(entry[0] for entry in attempts) and seconds > 0


def test_bad_requests_say_what_is_wrong_in_the_shape_of_openai(url):
    unknown = chat(url, COW | {"model": "gpt"})
    assert unknown.status_code == 404 and "there are teacher" in unknown.json()["error"]["message"]
    bad = chat(url, {"model": "teacher", "messages": []})
    assert bad.status_code == 400 and bad.json()["error"]["type"] == "invalid_request_error"
    assert set(bad.json()["error"]) == {"message", "type", "param", "code"}
    assert requests.get(f"{url}/nothing", timeout=10).status_code == 404
    assert requests.get(f"{url}/chat/completions", timeout=10).status_code == 404


def test_an_answer_is_cut_at_max_tokens_and_at_stop():
    cut = complete(0, json.dumps(COW | {"max_tokens": 2}).encode())["choices"][0]
    assert cut["message"]["content"] == "A cow" and cut["finish_reason"] == "length"
    stopped = complete(0, json.dumps(COW | {"stop": ["moo", "says"]}).encode())["choices"][0]
    assert stopped["message"]["content"] == "A cow " and stopped["finish_reason"] == "stop"


def test_a_key_is_asked_for_and_never_shown(monkeypatch):
    monkeypatch.setenv("PLANTED", "sk-planted")
    with offline_teacher(0, api_key_env="PLANTED") as base_url:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"x-api-key": "k\u00e4se".encode()}):
            refused = chat(base_url, COW, headers=headers)
            assert refused.status_code == 401 and refused.json()["error"]["code"] == "invalid_api_key"
            assert "planted" not in refused.text
        for headers in ({"Authorization": "Bearer sk-planted"}, {"api-key": "sk-planted"}):
            assert chat(base_url, COW, headers=headers).ok


def test_a_key_that_is_not_set_is_refused(monkeypatch, capsys):
    monkeypatch.delenv("PLANTED", raising=False)
    with pytest.raises(SystemExit) as caught:
        main(["--api-key-env", "PLANTED"])
    assert caught.value.code == 2 and "variable PLANTED is not set" in capsys.readouterr().err


def test_options_that_make_no_sense_are_refused(capsys):
    for arguments, message in (
        (["--faults", "418:1"], 'unknown fault "418"'),
        (["--latency-ms", "-1"], "must not be negative"),
        (["--requests-per-minute", "-1"], "must not be negative"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2 and message in capsys.readouterr().err


def test_above_the_rate_requests_are_told_when_to_come_again():
    with offline_teacher(0, requests_per_minute=60) as base_url:
        answers = [chat(base_url, COW) for _ in range(17)]
        good, last = [answer.ok for answer in answers], answers[-1]
        assert good[:15] == [True] * 15 and last.status_code == 429
        assert 0 < float(last.headers["Retry-After"]) <= 1.0
        assert last.headers["x-ratelimit-limit-requests"] == "60"
        assert answers[0].headers["x-ratelimit-remaining-requests"] == "14"
        time.sleep(float(last.headers["Retry-After"]) + 0.05)
        assert chat(base_url, COW).ok
        usage = requests.get(f"{base_url}/usage?attempts=1", timeout=10).json()
        assert usage["failed"] == good.count(False) and usage["attempts"][-2][2] == "rate"


def test_two_thousand_slow_replies_at_a_time():
    async def ask(session: aiohttp.ClientSession, base_url: str, number: int) -> str:
        async with session.post(f"{base_url}/chat/completions", json=COW | {"seed": number}) as response:
            return (await response.json())["choices"][0]["message"]["content"]

    async def run(base_url: str) -> list[str]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            return await asyncio.gather(*(ask(session, base_url, number) for number in range(2048)))

    with offline_teacher(0, latency_ms=3000) as base_url:
        assert asyncio.run(run(base_url)) == ["A cow says moo."] * 2048
        assert requests.get(f"{base_url}/usage", timeout=10).json()["max_concurrent"] > 1000


PRINT_DIGEST = """
import hashlib, json
from utils.generate.teacher.replies import MODELS, reply, _subtopics
texts = [f'Write 20 different questions about "{topic}".' for topic in _subtopics()]
texts += [f'A story with this idea: "Tom loses a red {thing} in the park"' for thing in ("kite", "ball")]
texts += ["What does a cow say?", "What is 3 plus 4?", 'Write 12 subtopics for short stories about "x".']
chats = [[{"role": "user", "content": text}] for text in texts]
calls = [(model, chat, seed) for chat in chats for model in MODELS for seed in (1, 2)]
print(hashlib.sha256(json.dumps([reply(7, *call) for call in calls]).encode()).hexdigest())
"""


def test_answers_are_the_same_in_every_process():
    digests = {
        subprocess.run(
            [sys.executable, "-c", PRINT_DIGEST],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(digests) == 1


def test_seed_model_messages_and_request_seed_all_matter():
    def digest(seed: int, body: dict) -> str:
        return hashlib.sha256(
            complete(seed, json.dumps(body).encode())["choices"][0]["message"]["content"].encode()
        ).hexdigest()

    variants = [(0, STORY), (1, STORY), (0, STORY | {"seed": 1}), (0, STORY | {"model": "teacher-weak"})]
    assert len({digest(seed, body) for seed, body in variants}) == len(variants)


def test_faults_that_make_no_sense_are_refused_before_a_process_starts():
    with pytest.raises(ConfigError, match='unknown fault "418"'), offline_teacher(0, "418:0.1"):
        pass


def test_a_schedule_is_found_from_where_the_caller_stands(tmp_path, monkeypatch):
    (tmp_path / "faults.json").write_text('{"faults": [{"kind": "503", "share": 1}], "most_in_a_row": 1}')
    monkeypatch.chdir(tmp_path)
    with offline_teacher(0, "faults.json") as base_url:
        assert [chat(base_url, COW).status_code for _ in range(2)] == [503, 200]


def test_the_teacher_dies_with_a_parent_that_is_killed():
    program = (
        "import time\nfrom utils.generate.teacher.process import offline_teacher\n"
        "with offline_teacher(0) as url:\n    print(url, flush=True)\n    time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    url = parent.stdout.readline().strip()
    assert requests.get(f"{url}/models", timeout=10).ok
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert _gone_within(url, seconds=20)


def test_the_teacher_is_stopped_after_an_error():
    with pytest.raises(RuntimeError), offline_teacher(0) as url:
        raise RuntimeError
    assert _gone_within(url, seconds=5)


def _gone_within(url: str, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            requests.get(f"{url}/models", timeout=1)
        except requests.ReadTimeout:
            continue
        except requests.ConnectionError:
            return True
        time.sleep(0.05)
    return False
