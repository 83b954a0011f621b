"""What is sent: the exact body of an answer, a list and a judge's call, for every key of a model."""

import asyncio
import json

import pytest

from tests.generate.helpers import config
from utils.config.generate import GenerateConfig
from utils.generate.calls import Calls, Request
from utils.generate.client import encode
from utils.generate.journal import Journal
from utils.generate.lists import SCHEMA
from utils.generate.reply import Reply
from utils.pipeline.hashing import unit_hash

MESSAGES = [{"role": "user", "content": "What is a cow?"}]
PLAIN = {"model": "big-1", "messages": MESSAGES, "temperature": 1.0, "top_p": 1.0, "max_tokens": 1024}
STEPS = {"answer": "chosen", "list": "prompts", "judge": "judge"}


class Listening:
    """A client that keeps what it is given to send."""

    last_failure = ""

    def __init__(self) -> None:
        self.sent: list[dict] = []

    async def complete(self, body: dict, model: object, *, estimate_tokens: int) -> Reply:
        self.sent.append(json.loads(encode(body, model)))
        return Reply("yes", "", "stop", 1, 1)


def asking(**model: object) -> GenerateConfig:
    models = {name: {"provider": "p", "model": "big-1"} for name in ("main", "rejected")}
    return config(models=models | {"main": models["main"] | model})


def asked(step: str, unit: str = "a cow", sample: int = 0) -> Request:
    return Request("d", step, "main", MESSAGES, unit, sample, None if step == "chosen" else SCHEMA)


@pytest.fixture
def sent(tmp_path):
    """`sent(model keys, request)` is the body that goes over the wire."""

    def send(model: dict, request: Request) -> dict:
        configured, client = asking(**model), Listening()
        journal = Journal(tmp_path / "journal.jsonl", configured.journal, lambda entry: None)
        try:
            asyncio.run(Calls(configured, {"p": client}, journal).ask(request))
        finally:
            journal.close()
        (tmp_path / "journal.jsonl").unlink()
        return client.sent[0]

    return send


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_model_without_further_keys_sends_what_is_needed_and_nothing_else(sent, step):
    assert sent({}, asked(step)) == PLAIN


@pytest.mark.parametrize(
    ("keys", "fields"),
    [
        ({"top_p": 0.7}, {"top_p": 0.7}),
        ({"top_k": 40}, {"top_k": 40}),
        ({"min_p": 0.05}, {"min_p": 0.05}),
        ({"stop": ["\n\n", "END"]}, {"stop": ["\n\n", "END"]}),
        ({"max_output_tokens": 77}, {"max_tokens": 77}),
        ({"extra_body": {"top_a": {"deep": [1]}}}, {"top_a": {"deep": [1]}}),
        ({"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}),
        ({"stream": True, "include_usage": False}, {"stream": True}),
    ],
    ids=lambda value: next(iter(value)),
)
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_each_key_of_a_model_is_sent_with_every_call(sent, step, keys, fields):
    assert sent(keys, asked(step)) == PLAIN | fields


def test_the_limit_has_the_name_that_the_provider_expects(sent):
    body = sent({"max_tokens_field": "max_completion_tokens", "max_output_tokens": 9}, asked("chosen"))
    assert body["max_completion_tokens"] == 9 and "max_tokens" not in body


@pytest.mark.parametrize(
    ("step", "temperature"), [("chosen", 0.0), ("rejected", 0.0), ("prompts", 0.4), ("judge", 0.4)]
)
def test_answers_and_lists_have_temperatures_of_their_own_and_zero_is_zero(sent, step, temperature):
    body = sent({"temperature": 0, "structure_temperature": 0.4}, asked(step))
    assert body["temperature"] == temperature


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("json_object", {"type": "json_object"}),
        (
            "json_schema",
            {"type": "json_schema", "json_schema": {"name": "prompts", "strict": True, "schema": SCHEMA}},
        ),
    ],
)
def test_a_response_format_is_asked_for_lists_and_never_for_answers(sent, wanted, expected):
    assert sent({"response_format": wanted}, asked("prompts"))["response_format"] == expected
    assert "response_format" not in sent({"response_format": wanted}, asked("chosen"))


def test_the_seed_of_a_request_follows_from_seed_and_call(sent):
    body = sent({"seed": 5}, asked("chosen"))
    assert body["seed"] == unit_hash("request", 5, "d\nchosen\na cow\n0") % 2**31
    others = [
        sent({"seed": 6}, asked("chosen")),
        sent({"seed": 5}, asked("rejected")),
        sent({"seed": 5}, asked("chosen", unit="a dog")),
        sent({"seed": 5}, asked("chosen", sample=1)),
    ]
    assert len({body["seed"], *(other["seed"] for other in others)}) == 5


def test_the_same_call_is_known_again_and_any_other_is_not(tmp_path):
    configured = asking()
    journal = Journal(tmp_path / "journal.jsonl", configured.journal, lambda entry: None)
    calls = Calls(configured, {"p": Listening()}, journal)
    same = calls.identity(asked("chosen"))
    assert same == Calls(asking(stream=True, timeout_seconds=3), {}, journal).identity(asked("chosen"))
    others = [asked("rejected"), asked("chosen", "a dog"), asked("chosen", sample=1)]
    identities = {same, *map(calls.identity, others)}
    for keys in ({"temperature": 0.5}, {"top_k": 3}, {"stop": ["x"]}, {"seed": 1}, {"extra_body": {"a": 1}}):
        identities.add(Calls(asking(**keys), {}, journal).identity(asked("chosen")))
    journal.close()
    assert len(identities) == 9
