"""The API as clients see it: OpenAI's own, plain HTTP, streams, log probabilities, and what is refused."""

import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import openai
import pytest
import requests

from tests.export.tiny_model import conversations, tiny_model
from tests.serving.server import service_over, serving, tiny_slots
from utils.export.gguf_write import Description, write_gguf
from utils.serving.door import Door
from utils.serving.engine import GGUFEngine
from utils.serving.gguf_slots import GGUFSlots
from utils.serving.service import Limits, Service
from utils.serving.slots import CheckpointSlots

ROWS = conversations(8, seed=300)
QUESTION, ANSWER = ROWS[0][0]["content"], ROWS[0][1]["content"]
MESSAGES = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def slots() -> CheckpointSlots:
    return tiny_slots()


@pytest.fixture(scope="module")
def url(slots: CheckpointSlots) -> Iterator[str]:
    with serving(service_over(slots)) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def post(url: str, path: str, body: object, **options: object) -> requests.Response:
    return requests.post(url + path, json=body, timeout=20, **options)


# what the vendor's client sees


def test_a_chat_is_answered_with_usage_and_the_reason_for_its_end(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model="toy", messages=MESSAGES, temperature=0)
    assert done.choices[0].message.content == ANSWER and done.choices[0].finish_reason == "stop"
    assert done.usage.prompt_tokens > 10 and done.usage.completion_tokens > 2
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens
    assert done.model == "toy" and done.system_fingerprint == "fp_dddddddddddd"
    short = client.chat.completions.create(model="toy", messages=MESSAGES, temperature=0, max_tokens=2)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 2)


def test_a_stream_joined_is_the_whole_answer(client: openai.OpenAI) -> None:
    asked = {"model": "toy", "messages": MESSAGES, "temperature": 1.5, "seed": 7, "max_tokens": 30}
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks[:-1] if c.choices[0].finish_reason] == [
        whole.choices[0].finish_reason
    ]
    assert chunks[-1].usage == whole.usage and chunks[-1].choices == []
    assert len({chunk.id for chunk in chunks}) == 1


def test_several_choices_differ_and_repeat_with_the_seed(client: openai.OpenAI) -> None:
    def texts() -> list[str]:
        done = client.chat.completions.create(
            model="toy", messages=MESSAGES, temperature=2, seed=3, n=3, max_tokens=20
        )
        assert [choice.index for choice in done.choices] == [0, 1, 2]
        return [choice.message.content for choice in done.choices]

    assert texts() == texts() and len(set(texts())) == 3


def test_a_stop_string_ends_the_answer_and_is_never_sent(client: openai.OpenAI) -> None:
    stop = ANSWER[3:6]
    asked = {"model": "toy", "messages": MESSAGES, "temperature": 0, "stop": [stop, "nothing"]}
    whole = client.chat.completions.create(**asked)
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (ANSWER[:3], "stop")
    parts = [c.choices[0].delta.content or "" for c in client.chat.completions.create(**asked, stream=True)]
    assert "".join(parts) == ANSWER[:3]


def test_log_probabilities_add_up_and_name_the_likeliest(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(
        model="toy", messages=MESSAGES, temperature=0, logprobs=True, top_logprobs=3
    )
    told = done.choices[0].logprobs.content
    assert bytes(b for entry in told for b in entry.bytes).decode() == ANSWER
    for entry in told:
        assert len(entry.top_logprobs) == 3 and entry.top_logprobs[0].logprob == entry.logprob <= 0


def test_a_text_is_continued_and_its_own_tokens_can_be_scored(
    client: openai.OpenAI, slots: CheckpointSlots
) -> None:
    text = "The red fox lives at the barn."
    done = client.completions.create(
        model="toy", prompt=text, max_tokens=0, echo=True, logprobs=1, temperature=0
    )
    told = done.choices[0].logprobs
    assert done.choices[0].text == text == "".join(told.tokens) and told.token_logprobs[0] is None
    assert [text[at:] for at in told.text_offset][-1] == told.tokens[-1]
    likeliest = [max(top.values()) for top in told.top_logprobs[1:]]
    assert (np.array(likeliest) >= np.array(told.token_logprobs[1:])).all()
    more = client.completions.create(model="toy", prompt=[text, [1, 40, 41]], max_tokens=5, temperature=0)
    assert [choice.index for choice in more.choices] == [0, 1] and more.usage.completion_tokens <= 10


def test_the_score_of_a_text_is_that_of_the_model(client: openai.OpenAI) -> None:
    import torch

    from utils.models.load import load_model

    ids = [1, 60, 61, 62, 63]
    with torch.inference_mode():
        logs = load_model(tiny_model())(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = [float(logs[i, token]) for i, token in enumerate(ids[1:])]
    done = client.completions.create(model="toy", prompt=ids, max_tokens=0, echo=True, logprobs=0)
    assert done.choices[0].logprobs.token_logprobs[1:] == pytest.approx(expected, abs=1e-4)


def test_models_are_listed_and_another_name_is_not_found(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["toy"]
    assert client.models.retrieve("toy").owned_by == "lockstep"
    with pytest.raises(openai.NotFoundError, match='there is no model "gpt"'):
        client.chat.completions.create(model="gpt", messages=MESSAGES)


# sampling


def test_bias_and_penalties_reach_the_model(client: openai.OpenAI) -> None:
    asked = {"model": "toy", "messages": MESSAGES, "temperature": 0, "max_tokens": 6}
    plain = client.chat.completions.create(**asked)
    assert client.chat.completions.create(**asked, logit_bias={"5": 100}).choices[0].message.content == ""
    penalised = client.chat.completions.create(**asked, extra_body={"repetition_penalty": 9})
    assert penalised.choices[0].message.content != plain.choices[0].message.content


# our own routes


def test_generate_alone_in_a_batch_and_streamed_agree(url: str) -> None:
    prompts = [row[0]["content"] for row in ROWS[:6]]
    alone = [post(url, "/generate", {"prompt": prompt}).json() for prompt in prompts]
    together = post(url, "/generate/batch", {"prompts": prompts}).json()["results"]
    assert [one["response"] for one in alone] == [one["response"] for one in together]
    assert alone[0]["response"] == ANSWER and alone[0]["generation_config"]["temperature"] == 0
    lines = post(url, "/generate/stream", {"prompt": QUESTION}).text.split("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert "".join(event.get("text", "") for event in events) == events[-1]["response"] == ANSWER
    assert lines[-2] == "data: [DONE]"


def test_generate_samples_when_asked_and_continues_plain_text(url: str) -> None:
    sampled = post(url, "/generate", {"prompt": QUESTION, "do_sample": True, "seed": 1}).json()
    assert sampled["generation_config"]["temperature"] == 1
    forced = post(url, "/generate", {"prompt": QUESTION, "do_sample": False, "temperature": 2}).json()
    assert forced["response"] == ANSWER
    plain = post(url, "/generate", {"prompt": "The red fox lives", "template": False, "max_new_tokens": 4})
    assert plain.json()["response"].startswith(" at the")


def test_info_and_health_tell_digests_and_slots(url: str) -> None:
    health = requests.get(f"{url}/health").json()
    assert health["status"] == "ok" and health["output_digest"] == "d" * 64
    assert (health["slots"], health["slots_in_use"], health["queue"]) == (4, 0, 0)
    assert health["versions"]["torch"] and health["tokenizer_fingerprint"] == "f" * 64
    assert requests.get(f"{url}/info").json()["limits"]["max_tokens"] == 4096


# refusals


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 400, "messages: Field required"),
        ({"messages": []}, 400, "messages"),
        ({"messages": MESSAGES, "temperature": 3}, 400, "temperature"),
        ({"messages": MESSAGES, "n": 0}, 400, "n: "),
        ({"messages": MESSAGES, "max_tokens": 5000}, 400, "max_tokens is 5000, this server gives 4096"),
        ({"messages": [{"role": "user", "content": QUESTION * 20}]}, 400, "127 may be"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, 'role "robot"'),
        ({"messages": [*MESSAGES, {"role": "assistant", "content": "x"}]}, 400, "nothing to answer"),
        ({"messages": [*MESSAGES, *MESSAGES]}, 400, "user after user"),
        ({"messages": [{"role": "user", "content": "\ufdd0"}]}, 400, "noncharacter"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "surrogate"),
        ({"messages": MESSAGES, "tools": [{}]}, 400, "tools are not supported"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "type text"),
        ({"messages": MESSAGES, "response_format": {"type": "json_object"}}, 400, "only by GGUF files"),
        ({"messages": MESSAGES, "logit_bias": {"9999": 1}}, 400, "token 9999"),
        ([1], 400, "not a JSON object"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_a_400_that_names_it(url: str, body: object, status: int, message: str) -> None:
    answer = post(url, "/v1/chat/completions", body)
    error = answer.json()["error"]
    assert answer.status_code == status and message in error["message"]
    assert error["type"] == "invalid_request_error" and set(error) == {"message", "type", "param", "code"}


def test_broken_json_a_wrong_route_and_a_wrong_method(url: str) -> None:
    broken = requests.post(f"{url}/v1/completions", data=b'{"prompt": "\xff"}')
    assert broken.status_code == 400 and "not valid JSON" in broken.json()["error"]["message"]
    assert post(url, "/v1/nowhere", {}).status_code == 404
    assert requests.get(f"{url}/v1/completions").json()["error"]["message"].startswith("this route does not")
    assert post(url, "/v1/completions", {"prompt": [[999]]}).status_code == 400
    assert post(url, "/v1/completions", {"prompt": ["x"] * 65}).status_code == 400
    assert post(url, "/generate/batch", {"prompts": ["x"] * 65}).status_code == 400


def test_fields_that_nobody_reads_are_named(url: str) -> None:
    answer = post(url, "/v1/chat/completions", {"messages": MESSAGES, "user": "me", "store": True})
    assert answer.status_code == 200 and answer.headers["x-lockstep-ignored"] == "store, user"
    streamed = post(url, "/v1/chat/completions", {"messages": MESSAGES, "stream": True, "metadata": {}})
    assert streamed.headers["x-lockstep-ignored"] == "metadata"
    assert "x-lockstep-ignored" not in post(url, "/generate", {"prompt": QUESTION}).headers


def test_parts_of_text_and_null_fields_are_taken(url: str) -> None:
    parts = [{"type": "text", "text": QUESTION[:5]}, {"type": "text", "text": QUESTION[5:]}]
    body = {"messages": [{"role": "user", "content": parts}], "temperature": 0, "stop": None, "n": None}
    assert post(url, "/v1/chat/completions", body).json()["choices"][0]["message"]["content"] == ANSWER


# the door


def test_another_host_header_is_not_answered(url: str) -> None:
    for host, status in (("evil.example", 403), ("localhost:99", 200), ("127.0.0.1", 200), ("[::1]:80", 200)):
        assert requests.get(f"{url}/health", headers={"Host": host}).status_code == status, host


def test_the_key_is_asked_for_and_never_told(slots: CheckpointSlots, capsys: pytest.CaptureFixture) -> None:
    service = service_over(slots, log_prompts=True)
    with serving(service, Door(frozenset({"127.0.0.1"}), "geheim")) as url:
        for key in ("", "Bearer falsch", "geheim2", "Bearer gehe\u00efm".encode()):
            answer = requests.get(f"{url}/v1/models", headers={"Authorization": key})
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
        good = {"Authorization": "Bearer geheim"}
        assert requests.get(f"{url}/v1/models", headers=good).status_code == 200
        assert post(url, "/v1/chat/completions", {"messages": MESSAGES}, headers=good).status_code == 200
    said = capsys.readouterr().err
    assert "geheim" not in said + repr(service) and "POST /v1/chat/completions" in said and QUESTION in said


def test_prompts_are_not_written_down_unasked(slots: CheckpointSlots, capsys: pytest.CaptureFixture) -> None:
    with serving(service_over(slots)) as url:
        post(url, "/v1/chat/completions", {"messages": MESSAGES})
    assert QUESTION[:12] not in capsys.readouterr().err


def test_only_the_named_origin_may_read_answers(slots: CheckpointSlots) -> None:
    door = Door(frozenset({"127.0.0.1"}), origin="https://a.example")
    with serving(service_over(slots), door) as url:
        allowed = requests.options(f"{url}/generate", headers={"Origin": "https://a.example"})
        other = requests.get(f"{url}/health", headers={"Origin": "https://b.example"})
    assert (
        allowed.status_code == 204 and allowed.headers["Access-Control-Allow-Origin"] == "https://a.example"
    )
    assert "Access-Control-Allow-Origin" not in other.headers


def test_a_body_that_is_too_large_is_refused(slots: CheckpointSlots) -> None:
    with serving(service_over(slots, Limits(max_body_bytes=1000))) as url:
        assert post(url, "/generate", {"prompt": "x" * 2000}).status_code == 413
        assert post(url, "/generate", {"prompt": "x" * 20}).status_code == 200


def test_a_body_that_never_comes_is_not_waited_for(slots: CheckpointSlots) -> None:
    with serving(service_over(slots, Limits(idle_seconds=0.2))) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as sock:
            sock.sendall(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")
            assert b"408" in sock.recv(1000)


# load


class Slow:
    """Slots that write the letter of one token for ever, a step at a time when `go` lets them."""

    constraint = None

    def __init__(self, num_slots: int = 1, seconds: float = 0.01) -> None:
        self.num_slots, self.seconds = num_slots, seconds
        self.open: set[int] = set()

    def begin(self, slot: int, ids: Sequence[int], every: bool = False) -> np.ndarray:
        self.open.add(slot)
        return np.eye(512)[300]

    def step(self, tokens: Mapping[int, int]) -> dict[int, np.ndarray]:
        assert set(tokens) == self.open
        time.sleep(self.seconds)
        return {slot: np.eye(512)[300] for slot in tokens}

    def end(self, slot: int) -> None:
        self.open.discard(slot)

    def close(self) -> None: ...


def until(true: object, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def asking(url: str, **body: object) -> tuple[threading.Thread, list[requests.Response]]:
    answers: list[requests.Response] = []
    body = {"prompt": "Hi", **body}
    thread = threading.Thread(target=lambda: answers.append(post(url, "/generate", body)))
    thread.start()
    return thread, answers


def test_a_full_queue_is_a_429_with_a_time_to_come_back() -> None:
    service = service_over(Slow(), Limits(queue=1))
    with serving(service) as url:
        threads = [asking(url, max_new_tokens=60) for _ in range(2)]
        until(lambda: service.worker.num_running and service.worker.num_waiting)
        refused = post(url, "/generate", {"prompt": "Hi"})
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        assert refused.json()["error"]["type"] == "rate_limit_error"
        many = post(url, "/generate/batch", {"prompts": ["Hi"] * 3})
        assert many.status_code == 400 and "3 answers at once, 2 may be" in many.json()["error"]["message"]
        for thread, answers in threads:
            thread.join()
            assert answers[0].status_code == 200


def test_time_runs_out_during_an_answer_and_before_it() -> None:
    with serving(service_over(Slow(seconds=0.2), Limits(request_seconds=0.3))) as url:
        thread, answers = asking(url)
        time.sleep(0.05)
        late = post(url, "/generate", {"prompt": "Hi"})
        thread.join()
        assert answers[0].json()["finish_reason"] == "timeout" and answers[0].json()["response"]
        assert late.status_code == 408 and "no answer began within 0.3 s" in late.json()["error"]["message"]


def test_a_client_that_leaves_frees_its_slot_at_once() -> None:
    service = service_over(Slow(seconds=0.02))
    with serving(service) as url:
        for path, body in (("/generate/stream", {"prompt": "Hi"}), ("/generate", {"prompt": "Hi"})):
            host, port = url.removeprefix("http://").split(":")
            data = json.dumps(body).encode()
            with socket.create_connection((host, int(port))) as sock:
                head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
                sock.sendall(head.encode() + data)
                until(lambda: service.worker.num_running == 1)
            left = time.monotonic()
            until(lambda: service.worker.num_running == 0)
            assert time.monotonic() - left < 0.5


def test_a_client_that_takes_nothing_is_dropped() -> None:
    service = service_over(Slow(4, seconds=0.0), Limits(idle_seconds=0.3, max_tokens=10**9))
    service.context_tokens = service.worker._context_tokens = 10**9
    with serving(service) as url:
        host, port = url.removeprefix("http://").split(":")
        data = json.dumps(
            {"messages": MESSAGES, "stream": True, "n": 4, "logprobs": True, "top_logprobs": 20}
        )
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect((host, int(port)))
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            sock.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n{data}".encode())
            until(lambda: service.worker.num_running == 4)
            until(lambda: service.worker.num_running == 0, 30)


def test_a_model_that_fails_is_a_500_without_its_reason(capsys: pytest.CaptureFixture) -> None:
    class Failing(Slow):
        steps = 0

        def step(self, tokens: Mapping[int, int]) -> dict[int, np.ndarray]:
            self.steps += 1
            if self.steps % 4 == 0:
                raise RuntimeError("in /secret/place")
            return super().step(tokens)

    with serving(service_over(Failing(seconds=0.1))) as url:
        answer = post(url, "/generate", {"prompt": "Hi"})
        assert answer.status_code == 500 and "/secret" not in answer.text
        assert answer.json()["error"]["type"] == "server_error"
        streamed = post(url, "/v1/completions", {"prompt": "Hi", "stream": True}, stream=True)
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            for line in streamed.iter_lines():
                assert line != b"data: [DONE]"
        assert requests.get(f"{url}/health").json()["status"] == "ok"
    assert "in /secret/place" in capsys.readouterr().err


def test_four_at_once_get_the_text_that_they_get_alone(url: str) -> None:
    alone = [post(url, "/generate", {"prompt": row[0]["content"]}).json()["response"] for row in ROWS]
    threads = [asking(url, prompt=row[0]["content"]) for row in ROWS]
    for thread, _ in threads:
        thread.join()
    assert [answers[0].json()["response"] for _, answers in threads] == alone


def test_a_gguf_answers_like_its_checkpoint(url: str, tmp_path: Path) -> None:
    write_gguf(tiny_model(), tmp_path / "model-f16.gguf", "f16", Description("tiny"))
    engine = GGUFEngine(tmp_path / "model-f16.gguf", threads=1)
    body = {"prompts": [row[0]["content"] for row in ROWS]}
    with serving(service_over(GGUFSlots(engine, 4, threads=1))) as other:
        theirs = post(other, "/generate/batch", body).json()["results"]
        scored = {"prompt": QUESTION, "max_tokens": 0, "echo": True, "logprobs": 0}
        logprobs = [
            post(at, "/v1/completions", scored).json()["choices"][0]["logprobs"] for at in (url, other)
        ]
    engine.close()
    ours = post(url, "/generate/batch", body).json()["results"]
    assert [one["response"] for one in theirs] == [one["response"] for one in ours]
    assert logprobs[0]["tokens"] == logprobs[1]["tokens"]
    assert logprobs[0]["token_logprobs"][1:] == pytest.approx(logprobs[1]["token_logprobs"][1:], abs=2e-2)


def test_json_is_kept_to_its_schema_by_a_gguf(tmp_path: Path) -> None:
    write_gguf(tiny_model(), tmp_path / "model-f16.gguf", "f16", Description("tiny"))
    engine = GGUFEngine(tmp_path / "model-f16.gguf", threads=1)
    fields = {"colour": {"enum": ["mauve", "teal"]}, "sure": {"type": "boolean"}}
    schema = {"type": "object", "properties": fields, "required": ["colour", "sure"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    with serving(service_over(GGUFSlots(engine, 2, threads=1), constrains=True)) as url:
        asked = {"messages": MESSAGES, "temperature": 0.5, "seed": 1, "n": 2, "response_format": wanted}
        done = post(url, "/v1/chat/completions", asked).json()
        for choice in done["choices"]:
            answer = json.loads(choice["message"]["content"])
            assert set(answer) == {"colour", "sure"} and answer["colour"] in ("mauve", "teal")
            assert choice["finish_reason"] == "stop"
        loose = {"prompt": "x", "max_tokens": 3, "response_format": {"type": "json_object"}}
        assert post(url, "/v1/completions", loose).json()["choices"][0]["text"].startswith("{")
        wanted["json_schema"]["schema"] = {"type": "nonsense"}
        refused = post(url, "/v1/chat/completions", asked)
        assert refused.status_code == 400 and "cannot be followed" in refused.json()["error"]["message"]
    engine.close()


def test_parallel_clients_progress_together() -> None:
    service: Service = service_over(Slow(4, seconds=0.01))
    with serving(service) as url:
        threads = [asking(url, max_new_tokens=20) for _ in range(4)]
        until(lambda: service.worker.num_running == 4)
        for thread, answers in threads:
            thread.join()
            assert answers[0].json()["tokens"] == 20
