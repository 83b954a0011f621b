"""The teacher over HTTP: OpenAI shapes, the same answers everywhere, scheduled faults, no orphans."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from utils.generate.teacher.faults import WORST_IN_A_ROW, Faults
from utils.generate.teacher.process import offline_teacher
from utils.generate.teacher.server import BadRequest, complete
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


def test_stream_equals_non_stream(url):
    for body in (COW, STORY):
        whole = chat(url, body).json()
        lines = chat(url, body | {"stream": True}, stream=True).text.split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        events = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
        deltas = [event["choices"][0]["delta"].get("content", "") for event in events if event["choices"]]
        assert "".join(deltas) == whole["choices"][0]["message"]["content"]
        assert events[-2]["choices"][0]["finish_reason"] == "stop" and events[-1]["usage"] == whole["usage"]


def test_models_and_usage(url):
    names = [model["id"] for model in requests.get(f"{url}/models", timeout=10).json()["data"]]
    assert names == ["teacher", "teacher-weak"]
    before = requests.get(f"{url}/usage", timeout=10).json()
    chat(url, COW | {"seed": 99}), chat(url, COW | {"seed": 99})
    after = requests.get(f"{url}/usage", timeout=10).json()
    assert after["served"] - before["served"] == 2 and after["repeated"] - before["repeated"] == 1


def test_bad_requests_say_what_is_wrong(url):
    unknown = chat(url, COW | {"model": "gpt"})
    assert (
        unknown.status_code == 404 and "there are teacher, teacher-weak" in unknown.json()["error"]["message"]
    )
    assert chat(url, {"model": "teacher", "messages": []}).status_code == 400
    assert requests.get(f"{url}/nothing", timeout=10).status_code == 404
    with pytest.raises(BadRequest, match="non-empty list"):
        complete(0, b"not json")


def test_an_answer_is_cut_at_max_tokens():
    cut = complete(0, json.dumps(COW | {"max_tokens": 2}).encode())
    assert (
        cut["choices"][0]["message"]["content"] == "A cow" and cut["choices"][0]["finish_reason"] == "length"
    )


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


def test_faults_hit_the_same_attempts_in_every_run_and_end():
    one, two = Faults.parse("429:0.3,drop:0.2"), Faults.parse("429:0.3,drop:0.2")
    calls = [b"call %d" % number for number in range(500)]
    first = [one.next_for(call) for call in calls]
    assert first == [two.next_for(call) for call in calls]
    assert 0.2 < first.count("429") / 500 < 0.4 and 0.1 < first.count("drop") / 500 < 0.3
    for _ in range(WORST_IN_A_ROW - 1):
        [one.next_for(call) for call in calls]
    assert not any(one.next_for(call) for call in calls)


@pytest.mark.parametrize(
    ("text", "message"),
    [("418:0.1", 'unknown fault "418"'), ("429", "not KIND:SHARE"), ("429:0.7,500:0.7", "more than 1")],
)
def test_faults_that_make_no_sense_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        Faults.parse(text)


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
