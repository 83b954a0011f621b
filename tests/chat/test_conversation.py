"""Roles, order and text of conversations; ids; the split that 60 and 80 share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.chat.conversation import (
    Conversation,
    Message,
    Rejection,
    conversation,
    split_of,
    split_share,
    without_oldest_turns,
)
from utils.pipeline.hashing import unit_hash

REFUSED = [
    ([("user", "hi"), ("robot", "ho")], "unknown_role", "turn 2 has role 'robot'"),
    ([("user", "  \n "), ("assistant", "ho")], "empty_text", "turn 1 (user) has no text"),
    ([("user", "hi")], "no_assistant", "1 turns, none of them from the assistant"),
    ([("user", "hi"), ("assistant", "ho"), ("user", "more")], "bad_order", "the last turn is user"),
    ([("assistant", "ho")], "bad_order", "turn 1 is assistant after nothing"),
    ([("user", "a"), ("system", "b"), ("assistant", "c")], "bad_order", "turn 2 is system after user"),
    ([("user", "a"), ("user", "b"), ("assistant", "c")], "bad_order", "turn 2 is user after user"),
    ([("user", "same"), ("assistant", " same ")], "echo", "turn 2 repeats the prompt"),
    ([("user", "a\ufdd0b"), ("assistant", "c")], "control_marker", "noncharacter"),
    ([("user", 3), ("assistant", "c")], "schema", "the text of a user turn is int"),
]


@pytest.mark.parametrize(("turns", "reason", "detail"), REFUSED)
def test_refuses_with_reason_and_detail(turns: list, reason: str, detail: str) -> None:
    found = conversation(turns)
    assert isinstance(found, Rejection)
    assert found.reason == reason
    assert detail in found.detail


def test_normalises_line_ends_and_outer_blanks_only() -> None:
    found = conversation([("user", "  a\r\n\r\nb  c \n"), ("assistant", "d")])
    assert isinstance(found, Conversation)
    assert found.messages[0].content == "a\n\nb  c"


def test_tools_answer_the_assistant() -> None:
    turns = [("user", "u"), ("assistant", "call"), ("tool", "result"), ("assistant", "answer")]
    assert isinstance(conversation(turns), Conversation)


def test_id_depends_on_the_messages_alone() -> None:
    one = conversation([("user", "a"), ("assistant", "b")], {"source": "x"})
    two = conversation([("user", " a"), ("assistant", "b\r\n")], {"source": "y"})
    other = conversation([("user", "a"), Message("assistant", "b", train=False)])
    assert one.id == two.id != other.id
    assert len(one.id) == 32


def test_oldest_exchange_goes_and_the_system_message_stays() -> None:
    found = conversation(
        [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    )
    shorter = without_oldest_turns(found.messages)
    assert [m.content for m in shorter] == ["s", "c", "d"]
    assert without_oldest_turns(shorter) is None


@given(st.text(min_size=1), st.integers(0, 5))
def test_split_ignores_case_and_blanks(prompt: str, seed: int) -> None:
    spaced = "  " + "\t ".join(prompt.split(" ")) + "\n"
    if " ".join(prompt.upper().lower().split()) == " ".join(prompt.lower().split()):
        assert split_share(prompt.upper(), seed) == split_share(prompt, seed)
    assert split_share(spaced, seed) == split_share(prompt, seed)


def test_split_uses_the_hash_of_the_specification() -> None:
    assert split_share("EMMA", 0) == unit_hash("split", 0, "emma") / 2**64
    assert [split_of(x, 0.1, 0.2) for x in (0.0, 0.0999, 0.1, 0.2999, 0.31, 0.9)] == ["val"] * 2 + [
        "test"
    ] * 2 + ["train"] * 2


def test_split_shares_match_the_fractions() -> None:
    splits = [split_of(split_share(f"prompt {i}", 0), 0.1, 0.1) for i in range(4000)]
    assert abs(splits.count("val") / 4000 - 0.1) < 0.02
    assert abs(splits.count("test") / 4000 - 0.1) < 0.02
