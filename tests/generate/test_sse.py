"""Event streams: cut anywhere, written in any of the allowed ways, broken in all others."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.generate.errors import BrokenReply
from utils.generate.reply import Reply
from utils.generate.sse import EventReader, StreamedReply


def read_all(*pieces: bytes) -> list[bytes]:
    reader = EventReader()
    return [data for piece in pieces for data in reader.feed(piece)] + reader.close()


def chunk(content: object = None, finish_reason: str | None = None, **more: object) -> bytes:
    delta = {"content": content} if content is not None else {}
    document = {"choices": [{"index": 0, "delta": delta | more, "finish_reason": finish_reason}]}
    return json.dumps(document, ensure_ascii=False).encode()


def stream(*events: bytes, end: bytes = b"\n") -> bytes:
    return b"".join(b"data: " + event + end + end for event in events)


def reply_of(data: bytes, *cuts: int) -> Reply:
    """The reply in a stream that comes in pieces, cut at these places."""
    reader, reply = EventReader(), StreamedReply()
    places = [0, *sorted(cuts), len(data)]
    for start, stop in zip(places, places[1:], strict=False):
        for event in reader.feed(data[start:stop]):
            reply.add(event)
    for event in reader.close() if not reply.complete else ():
        reply.add(event)
    return reply.reply()


@pytest.mark.parametrize(
    "data, events",
    [
        (b"data: a\n\ndata:b\n\n", [b"a", b"b"]),
        (b"data:  a\n\n", [b" a"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data: a\ndata\ndata: b\n\n", [b"a\n\nb"]),
        (b": a comment\n\ndata: a\n: another\n\n", [b"a"]),
        (b"event: x\nid: 1\nretry: 5\ndata: a\n\n", [b"a"]),
        (b"database: a\n\ndata: b\n\n", [b"b"]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b"\n\n\ndata: a\n\n\n\n", [b"a"]),
        (b"data: a", [b"a"]),
        (b"data: a\n", [b"a"]),
        (b"data: a:b: c\n\n", [b"a:b: c"]),
        (b"", []),
    ],
)
def test_events_of_a_stream(data, events):
    assert read_all(data) == events
    assert read_all(*(data[place : place + 1] for place in range(len(data)))) == events


def test_a_return_and_its_newline_may_come_apart():
    assert read_all(b"data: a\r", b"\n", b"\n", b"data: b\n\n") == [b"a", b"b"]
    assert read_all(b"data: a\r", b"", b"\n\r", b"\ndata: b\r", b"data: c\r\n\r\n") == [b"a", b"b\nc"]


SPOKEN = stream(
    chunk("", role="assistant"),
    chunk("K\u00fche "),
    chunk("sagen \U0001f404"),
    chunk(None, "stop"),
    json.dumps({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}).encode(),
    b"[DONE]",
)


@given(st.lists(st.integers(0, len(SPOKEN)), max_size=12), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_a_stream_may_be_cut_anywhere(cuts, end):
    data = SPOKEN.replace(b"\n", end)
    assert reply_of(data, *cuts) == Reply("K\u00fche sagen \U0001f404", "", "stop", 3, 4)


def test_thinking_in_pieces():
    apart = stream(chunk(reasoning_content="2 and"), chunk(reasoning=" 2"), chunk("Four.", "stop"))
    assert reply_of(apart) == Reply("Four.", "2 and 2", "stop", 0, 0)
    inline = stream(chunk("<thi"), chunk("nk>2 and 2</th"), chunk("ink>Four."), chunk(None, "stop"))
    assert reply_of(inline) == Reply("Four.", "2 and 2", "stop", 0, 0)


def test_a_character_in_two_halves_is_whole_again():
    halves = stream(
        b'{"choices":[{"delta":{"content":"\\ud83d"}}]}', b'{"choices":[{"delta":{"content":"\\udc04"}}]}'
    )
    assert reply_of(halves + stream(chunk(None, "stop"))).content == "\U0001f404"


def test_usage_of_the_last_chunk_counts():
    growing = [
        json.dumps(
            {"choices": [{"delta": {"content": "a"}}], "usage": {"prompt_tokens": 9, "completion_tokens": n}}
        )
        for n in (1, 2, 3)
    ]
    data = stream(*(text.encode() for text in growing), chunk(None, "length"))
    assert reply_of(data) == Reply("aaa", "", "length", 9, 3)


def test_other_choices_and_unknown_events_are_passed_over():
    other = json.dumps({"choices": [{"index": 1, "delta": {"content": "no"}}]}).encode()
    data = stream(b'{"type": "ping"}', other, chunk("yes", "stop"), b"[DONE]")
    assert reply_of(data).content == "yes"


def test_a_missing_end_is_accepted_after_a_finish_reason():
    assert reply_of(stream(chunk("moo"), chunk(None, "stop"))).content == "moo"
    assert reply_of(stream(chunk("moo", "stop"))[:-2]).content == "moo", "nor is the last blank line missed"


def test_an_end_is_accepted_without_a_finish_reason():
    assert reply_of(stream(chunk("moo"), b"[DONE]")) == Reply("moo", "", "", 0, 0)


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "truncated"),
        (stream(chunk("moo")), "truncated"),
        (stream(b"[DONE]"), "truncated"),
        (stream(chunk("moo")) + b'data: {"choices": [{"del', "broken_reply"),
        (stream(b"not json"), "broken_reply"),
        (stream(b"[1]"), "broken_reply"),
        (stream(b'{"choices": [7]}'), "broken_reply"),
        (stream(chunk("moo"), b'{"error": {"message": "overloaded"}}'), "error_in_stream"),
        (stream(b'{"choices": [{"delta": {}, "error": "x", "finish_reason": "error"}]}'), "error_in_stream"),
    ],
)
def test_a_stream_without_a_whole_reply_is_broken(data, reason):
    with pytest.raises(BrokenReply) as caught:
        reply_of(data)
    assert caught.value.reason == reason


@given(st.binary(max_size=80))
def test_reading_raises_nothing_else(data):
    with contextlib.suppress(BrokenReply):
        reply_of(b"data: " + data + b"\n\n", len(data) // 2)
