"""Replies read from whole bodies, and thinking told from answers."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.generate.errors import BrokenReply
from utils.generate.reply import Reply, read_reply, split_thinking, tokens_in, with_guessed_counts


def body(message: object, **more: object) -> bytes:
    document = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": None}
    return json.dumps(document | more).encode()


@pytest.mark.parametrize(
    "text, content, thoughts",
    [
        ("Four.", "Four.", ""),
        ("  Four.\n", "  Four.\n", ""),
        ("<think>2 and 2</think>Four.", "Four.", "2 and 2"),
        ("<think>\n2 and 2\n</think>\n\nFour.", "Four.", "2 and 2"),
        ("<thinking>2 and 2</thinking> Four.", "Four.", "2 and 2"),
        ("<THINK>2 and 2</Think> Four.", "Four.", "2 and 2"),
        ("2 and 2</think>Four.", "Four.", "2 and 2"),
        ("2 and 2\n</thinking >\nFour.", "Four.", "2 and 2"),
        ("<think></think>Four.", "Four.", ""),
        ("</think>Four.", "Four.", ""),
        ("<think>a</think>Four, <think>b</think>I say.", "Four, I say.", "a\nb"),
        ("<think>a <think>b</think> c</think> Four.", "Four.", "a\nb\nc"),
        ("<think><think>a</think>Four.", "Four.", "a"),
        ("<think>a</think></think>Four.", "Four.", "a"),
        ("<think>a</think>b</think>Four.", "Four.", "a\nb"),
        ("<think>cut off", "", "cut off"),
        ("Four. <think>or is it", "", "Four.\nor is it"),
        ("a</think>b<think>c", "", "b\na\nc"),
        ("I <b>think</b> so; x<think", "I <b>think</b> so; x<think", ""),
        ("", "", ""),
    ],
)
def test_thinking_is_told_from_the_answer(text, content, thoughts):
    assert split_thinking(text) == (content, thoughts)


@given(st.lists(st.sampled_from(["<think>", "</think>", "<thinking>", "</THINKING>", "a", " ", "<", "b\n"])))
def test_no_tag_of_thinking_is_ever_left(parts):
    content, thoughts = split_thinking("".join(parts))
    for text in (content, thoughts):
        assert split_thinking(text) == (text, "")


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thinking_in_a_field_of_its_own(name):
    reply = read_reply(body({"content": "Four.", name: "2 and 2"}))
    assert (reply.content, reply.reasoning) == ("Four.", "2 and 2")
    reply = read_reply(body({"content": "<think>more</think>Four.", name: "2 and 2"}))
    assert (reply.content, reply.reasoning) == ("Four.", "2 and 2\nmore")


def test_content_in_typed_parts():
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "2 and 2"}]}
    parts = [thinking, {"type": "text", "text": "Fo"}, {"type": "text", "text": "ur."}, {"type": "image"}, 7]
    reply = read_reply(body({"content": parts}))
    assert (reply.content, reply.reasoning) == ("Four.", "2 and 2")


def test_counts_and_finish_reason():
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    assert read_reply(body({"content": "moo"}, usage=usage)) == Reply("moo", "", "stop", 3, 5)
    odd = {"prompt_tokens": "3", "completion_tokens": -5}
    choices = [{"message": {"content": None}, "finish_reason": 7}]
    assert read_reply(body(None, usage=odd, choices=choices)) == Reply("", "", "", 0, 0)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{broken",
        b"[]",
        b"null",
        b"7",
        b'"text"',
        b'{"choices": []}',
        b'{"choices": null}',
        b'{"choices": [{"message": null}]}',
        b'{"choices": [{"text": "old style"}]}',
        b'{"error": {"message": "no"}}',
        b"\xff\xfe\xfa",
        b"[" * 100_000,
        body({"content": "half"}, choices=[{"error": {"code": 502}, "message": {"content": "half"}}]),
    ],
)
def test_a_body_without_a_reply_is_broken(data):
    with pytest.raises(BrokenReply):
        read_reply(data)


@given(st.binary(max_size=60))
def test_reading_raises_nothing_else(data):
    with contextlib.suppress(BrokenReply):
        assert isinstance(read_reply(data), Reply)


def test_halves_of_surrogate_pairs_can_be_written():
    lone = read_reply(b'{"choices": [{"message": {"content": "a\\ud83d", "reasoning": "\\ude00"}}]}')
    assert lone.content.encode() == b"a\xef\xbf\xbd" and lone.reasoning.encode() == b"\xef\xbf\xbd"


def test_counts_are_guessed_from_sizes():
    reply = with_guessed_counts(Reply("four", "2+2!", "stop", 0, 0), num_body_bytes=41)
    assert (reply.prompt_tokens, reply.completion_tokens, reply.tokens) == (11, 2, 13)
    assert [tokens_in(size) for size in (0, 1, 4, 5)] == [0, 1, 1, 2]
