"""Bodies are checked as OpenAI checks them."""

import json

import pytest

from utils.generate.teacher.asked import BadRequest, read_asked

GOOD = {"model": "teacher", "messages": [{"role": "user", "content": "Hi!"}]}


def body(**changes: object) -> bytes:
    return json.dumps(GOOD | changes).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"n": 1},
        {"n": None},
        {"temperature": 0, "top_p": 1.0, "seed": None},
        {"stop": "x"},
        {"stop": ["a", "b"]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"max_completion_tokens": 5, "some_other_field": {"is": "ignored"}},
        {"messages": [{"role": "system", "content": ""}, {"role": "user", "content": "Hi!"}]},
    ],
)
def test_good_bodies_are_read(changes):
    assert read_asked(body(**changes)).messages == (GOOD | changes)["messages"]


def test_what_is_read():
    asked = read_asked(
        body(max_tokens=7, stop="x", seed=3, stream=True, stream_options={"include_usage": True})
    )
    assert (asked.limit, asked.stops, asked.seed) == (7, ("x",), 3) and asked.stream and asked.include_usage
    plain = read_asked(body())
    assert (plain.limit, plain.stops, plain.seed) == (0, (), None) and not plain.stream


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"messages": []}, "non-empty list"),
        ({"messages": None}, "non-empty list"),
        ({"messages": ["Hi!"]}, "non-empty list"),
        ({"messages": [{"role": "robot", "content": "Hi!"}]}, "non-empty list of role"),
        ({"messages": [{"role": "user", "content": ["Hi!"]}]}, "and content"),
        ({"temperature": 3}, "temperature must be a number from 0 to 2"),
        ({"temperature": True}, "temperature must be a number"),
        ({"top_p": "high"}, "top_p must be a number"),
        ({"n": 2}, "n must be 1"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"max_tokens": "10"}, "max_tokens must be of type int"),
        ({"seed": 1.5}, "seed must be of type int"),
        ({"stream": "yes"}, "stream must be of type bool"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop must be a text or up to 4"),
        ({"stop": [""]}, "stop must be"),
        ({"response_format": {"type": "xml"}}, "response_format.type must be one of"),
        ({"stream_options": {"include_usage": True}}, "stream_options must be an object and needs stream"),
    ],
)
def test_bad_bodies_are_refused_by_name(changes, message):
    with pytest.raises(BadRequest, match=message) as caught:
        read_asked(body(**changes))
    assert caught.value.status == 400 and caught.value.kind == "invalid_request_error"


@pytest.mark.parametrize(
    ("data", "message"), [(b"{", "not JSON"), (b"\xff", "not JSON"), (b"[]", "JSON object")]
)
def test_what_is_no_object_is_refused(data, message):
    with pytest.raises(BadRequest, match=message):
        read_asked(data)


def test_a_model_that_is_not_there_is_a_404():
    with pytest.raises(BadRequest, match="no model 'gpt'; there are teacher, teacher-weak") as caught:
        read_asked(body(model="gpt"))
    assert caught.value.status == 404
