"""Text of an answer: whole characters, and no part of a stop string."""

from hypothesis import given
from hypothesis import strategies as st

from utils.serving.text import AnswerText


def shown(parts: list[bytes], stops: list[str]) -> tuple[list[str], bool]:
    text = AnswerText(stops)
    return [text.add(part) for part in parts] + [text.add(b"", final=True)], text.stopped


def test_what_may_begin_a_stop_string_waits() -> None:
    assert shown([b"a #", b"#", b"b ##", b"#c"], ["###"]) == (["a ", "", "##b ", "", ""], True)


def test_a_beginning_that_did_not_go_on_is_shown_at_the_end() -> None:
    assert shown([b"a ##"], ["###"]) == (["a ", "##"], False)


def test_the_first_of_several_stop_strings_wins() -> None:
    assert shown([b"one two three"], ["three", "two"])[0] == ["one ", ""]


def test_characters_and_stop_strings_split_over_bytes() -> None:
    parts = [bytes([byte]) for byte in "x\U0001f600\u4f60Y".encode()]
    assert "".join(shown(parts, ["\u4f60Y"])[0]) == "x\U0001f600"
    assert "".join(shown(parts[:3], [])[0]) == "x\ufffd"


@given(
    text=st.text("ab#", max_size=20),
    stop=st.text("ab#", min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 20), max_size=6),
)
def test_any_cutting_shows_the_text_before_the_stop(text: str, stop: str, cuts: list[int]) -> None:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    parts = [text[a:b].encode() for a, b in zip(places, places[1:], strict=False)]
    came, stopped = shown(parts, [stop])
    assert "".join(came) == text.partition(stop)[0] and stopped == (stop in text)
