"""The thinker is as right as the teacher, and hands its thinking over in every way there is."""

import json
from collections import Counter

from utils.generate.parse import parse_list
from utils.generate.teacher.asked import read_asked
from utils.generate.teacher.completion import completion_of, events
from utils.generate.teacher.replies import respond
from utils.generate.teacher.thinking import FORMS, MARK

COW = "What does a cow say?"


def thought(text: str, request_seed: int):
    return respond(0, "teacher-thinker", [{"role": "user", "content": text}], request_seed)


def form_of(answer) -> str:
    if answer.reasoning:
        return answer.reasoning_field
    head = answer.text.split("\n")[0]
    return {"<think>": "think", "<thinking>": "thinking"}.get(head, "unopened")


def test_each_form_occurs_about_equally_often():
    found = Counter(form_of(thought(COW, number)) for number in range(300))
    assert set(found) == set(FORMS) and min(found.values()) > 30


def test_the_answer_is_the_teachers_and_the_thinking_is_beside_or_before_it():
    for number in range(60):
        answer = thought(COW, number)
        assert answer.text.endswith("A cow says moo.")
        where = answer.reasoning if form_of(answer).startswith("reasoning") else answer.text
        assert where.count(MARK) == 1 and COW in where
        assert ("</think" in answer.text) == (not answer.reasoning)
        assert ("<think" in answer.text) == (form_of(answer) in ("think", "thinking"))
        assert form_of(answer) != "unopened" or answer.text.startswith(MARK)


def test_lists_are_thought_about_too():
    for number in range(30):
        answer = thought('Write 5 different questions about "opposites".', number)
        assert parse_list(answer.text) == list(answer.entries) and len(answer.entries) == 5


def body(request_seed: int, **more: object) -> bytes:
    messages = [{"role": "user", "content": COW}]
    return json.dumps(
        {"model": "teacher-thinker", "messages": messages, "seed": request_seed} | more
    ).encode()


def test_thinking_counts_as_tokens_and_uses_up_the_limit():
    number = next(number for number in range(50) if thought(COW, number).reasoning_field == "reasoning")
    asked = read_asked(body(number))
    answer = respond(0, asked.model, asked.messages, asked.seed)
    usage = completion_of(asked, answer, b"")["usage"]
    reasoning = len(answer.reasoning.split(" "))
    assert usage["completion_tokens_details"] == {"reasoning_tokens": reasoning}
    assert usage["completion_tokens"] == reasoning + 4
    cut = completion_of(read_asked(body(number, max_tokens=5)), answer, b"")["choices"][0]
    assert cut["finish_reason"] == "length" and cut["message"]["content"] is None
    assert cut["message"]["reasoning"] == "Let me think about this."


def test_a_stream_carries_thinking_in_its_own_field():
    for number in range(20):
        asked = read_asked(body(number, stream=True))
        completion = completion_of(asked, respond(0, asked.model, asked.messages, asked.seed), b"")
        message = completion["choices"][0]["message"]
        sent = [json.loads(event.removeprefix("data: ")) for event in events(completion, True)]
        deltas = [event["choices"][0]["delta"] for event in sent if event["choices"]]
        for field in ("reasoning", "reasoning_content", "content"):
            assert "".join(delta.get(field, "") for delta in deltas) == message.get(field, "")
