"""
The canonical conversation: what every chat format becomes before it meets a template or a tokenizer.

All rules about roles, order and text stand here once, so an adapter only has to find the words.

    conversation([("user", "Hi"), ("assistant", "Hello.")])   -> Conversation
    conversation([("assistant", "Hello.")])                   -> Rejection("bad_order", "...")
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from utils.pipeline.hashing import canonical_json, unit_hash

ROLES = ("system", "user", "assistant", "tool")
SPLITS = ("train", "val", "test")
Split = Literal["train", "val", "test"]
Reason = Literal[
    "bad_json", "bad_utf8", "missing_field", "unknown_role", "empty_text", "no_assistant", "bad_order",
    "echo", "schema", "control_marker", "duplicate", "too_long", "no_trained_token",
    "identical", "empty_response", "duplicate_pair",
]  # fmt: skip

# Unicode noncharacters, which no text should hold; templates.py marks spans and defuses markers with them.
NONCHARACTERS = "\ufdd0\ufdd1\ufdd2"
FOLLOWS = {
    "system": {""},
    "user": {"", "system", "assistant"},
    "assistant": {"user", "tool"},
    "tool": {"assistant", "tool"},
}


@dataclass(frozen=True)
class Message:
    """One turn; `train` false keeps an assistant turn as context only."""

    role: str
    content: str
    train: bool = True

    def row(self) -> dict:
        """As it stands in rows.jsonl and goes into the id; the default of `train` is left out."""
        row: dict = {"role": self.role, "content": self.content}
        return row if self.train else row | {"train": False}


@dataclass(frozen=True)
class Conversation:
    """Messages in order, ending with the assistant; `meta` is carried along and never trained on."""

    messages: tuple[Message, ...]
    meta: tuple[tuple[str, str], ...] = ()

    @property
    def id(self) -> str:
        """First 32 hex of the SHA-256 of the canonical JSON of the messages: equal content, equal id."""
        return content_id([message.row() for message in self.messages])

    @property
    def first_user_turn(self) -> str:
        return first_user_turn(self.messages)

    def with_meta(self, **fields: str) -> "Conversation":
        return replace(self, meta=tuple(sorted((dict(self.meta) | fields).items())))

    def row(self) -> dict:
        return {
            "id": self.id,
            "messages": [message.row() for message in self.messages],
            "meta": dict(self.meta),
        }


@dataclass(frozen=True)
class Rejection:
    """Why a row is not used: a reason that is counted and a detail for the person who reads it."""

    reason: Reason
    detail: str


def content_id(value: object) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()[:32]


def first_user_turn(messages: Iterable[Message]) -> str:
    return next(message.content for message in messages if message.role == "user")


def clean_text(text: str) -> str:
    """CRLF to LF and outer whitespace off; nothing else is ever changed (S9)."""
    return text.replace("\r\n", "\n").strip()


def conversation(
    turns: Iterable[tuple[str, object] | Message], meta: dict[str, str] | None = None
) -> "Conversation | Rejection":
    """Check and normalise (role, text) turns into a Conversation, or say what is wrong with them."""
    messages = []
    for turn in turns:
        message = turn if isinstance(turn, Message) else Message(str(turn[0]), turn[1])  # type: ignore[arg-type]
        if not isinstance(message.content, str):
            return Rejection(
                "schema", f"the text of a {message.role} turn is {type(message.content).__name__}"
            )
        messages.append(replace(message, content=clean_text(message.content)))
    problem = check_messages(messages)
    if problem is None and messages[-1].role != "assistant":
        problem = Rejection("bad_order", f"the last turn is {messages[-1].role}, not assistant")
    return problem or Conversation(tuple(messages), tuple(sorted((meta or {}).items())))


def check_messages(messages: list[Message]) -> Rejection | None:
    """The first rule that the messages break, or None."""
    previous = ""
    for number, message in enumerate(messages, start=1):
        if message.role not in ROLES:
            return Rejection("unknown_role", f"turn {number} has role {message.role!r}")
        if not message.content:
            return Rejection("empty_text", f"turn {number} ({message.role}) has no text")
        if any(character in message.content for character in NONCHARACTERS):
            return Rejection(
                "control_marker", f"turn {number} holds a Unicode noncharacter (U+FDD0 to U+FDD2)"
            )
        if previous not in FOLLOWS[message.role]:
            return Rejection("bad_order", f"turn {number} is {message.role} after {previous or 'nothing'}")
        if (
            message.role == "assistant"
            and previous == "user"
            and message.content == messages[number - 2].content
        ):
            return Rejection("echo", f"turn {number} repeats the prompt")
        previous = message.role
    if not any(message.role == "assistant" for message in messages):
        return Rejection("no_assistant", f"{len(messages)} turns, none of them from the assistant")
    return None


def without_oldest_turns(messages: tuple[Message, ...]) -> tuple[Message, ...] | None:
    """
    The messages less the oldest exchange (a user turn and all up to the next one), or None if one is
    left.
    """
    users = [i for i, message in enumerate(messages) if message.role == "user"]
    if len(users) < 2:
        return None
    return messages[: users[0]] + messages[users[1] :]


def split_share(prompt: str, seed: int) -> float:
    """
    Where in [0, 1) everything that starts with this user turn falls (S14).

    The turn is lower-cased and its blanks collapsed first. Row order, other rows and workers cannot move it,
    and stages 60 and 80 share this function, so a prompt held out in one is held out in both.
    """
    return unit_hash("split", seed, " ".join(prompt.lower().split())) / 2**64


def split_of(share: float, val_fraction: float, test_fraction: float) -> Split:
    """The split of a share: validation first, then test, the rest is for training."""
    if share < val_fraction:
        return "val"
    return "test" if share < val_fraction + test_fraction else "train"
