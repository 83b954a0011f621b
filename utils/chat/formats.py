"""
Chat formats: pure functions from a foreign row to a Conversation or a Rejection, in one table.

    chat_format("alpaca").convert({"instruction": "Add.", "input": "1 and 2", "output": "3"})
    detect_format(rows, FORMATS, "mine.jsonl")      # "alpaca", or ConfigError with the counts per format
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from utils.chat.conversation import Conversation, Message, Rejection, conversation
from utils.pipeline.errors import ConfigError

PROBE_ROWS = 1000
MIN_MATCH = 0.99
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
}
QUESTION_FIELDS = ("question", "prompt", "query", "user", "input")
ANSWER_FIELDS = ("answer", "response", "completion", "target", "assistant")
ALPACA_ANSWERS = ("output", "response")
HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
META_FIELDS = frozenset({"id", "main_topic", "subtopic", "source", "category"})


class Format(NamedTuple):
    """How rows of one shape are recognised and converted, and which of their fields that uses."""

    recognises: Callable[[Mapping], bool]
    convert: Callable[[Mapping], Conversation | Rejection]
    uses: frozenset[str]


def _has_list(row: Mapping, name: str, *keys: str) -> bool:
    value = row.get(name)
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(x, dict) and set(keys) <= set(x) for x in value)
    )


def _first(row: Mapping, names: Iterable[str]) -> object:
    """The first of the named fields that is there and not empty; "" when none is."""
    return next((row[name] for name in names if row.get(name) not in (None, "")), "")


def _messages_field(row: Mapping) -> str:
    return "messages" if "messages" in row else "conversation"


def as_messages(value: object) -> list[Message] | Rejection:
    """A list of {role, content} objects as messages."""
    if not isinstance(value, list) or not all(
        isinstance(m, dict) and {"role", "content"} <= set(m) for m in value
    ):
        return Rejection("schema", "expected a list of objects with role and content")
    return [Message(str(m["role"]), m["content"], m.get("train", True) is not False) for m in value]


def from_messages(row: Mapping) -> Conversation | Rejection:
    messages = as_messages(row.get(_messages_field(row)))
    return messages if isinstance(messages, Rejection) else conversation(messages)


def from_sharegpt(row: Mapping) -> Conversation | Rejection:
    turns = []
    for turn in row["conversations"]:
        role = SHAREGPT_ROLES.get(turn["from"])
        if role is None:
            return Rejection("unknown_role", f'"from" is {turn["from"]!r}')
        turns.append((role, turn["value"]))
    return conversation(turns)


def from_alpaca(row: Mapping) -> Conversation | Rejection:
    instruction, context = row["instruction"], row.get("input") or ""
    if not isinstance(instruction, str) or not isinstance(context, str):
        return Rejection("schema", "instruction and input must be strings")
    question = f"{instruction}\n\n{context}" if context.strip() else instruction
    turns: list[tuple[str, object]] = [("system", row["system"])] if row.get("system") else []
    for pair in row.get("history") or []:
        turns += zip(("user", "assistant"), pair, strict=True)
    return conversation([*turns, ("user", question), ("assistant", _first(row, ALPACA_ANSWERS))])


def from_qa(row: Mapping) -> Conversation | Rejection:
    return conversation([("user", _first(row, QUESTION_FIELDS)), ("assistant", _first(row, ANSWER_FIELDS))])


def hh_turns(text: object) -> list[tuple[str, str]] | Rejection:
    """The turns of a dialogue written as paragraphs that begin with "Human:" or "Assistant:"."""
    if not isinstance(text, str):
        return Rejection("schema", f"the dialogue is {type(text).__name__}, not text")
    before, *parts = HH_TURN.split(text)
    turns = [
        ("user" if who == "Human" else "assistant", said)
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    if before.strip() or not turns or turns[0][0] != "user":
        return Rejection("bad_order", 'the dialogue does not start with "Human:"')
    if turns[-1][0] != "assistant":
        return Rejection("bad_order", 'the dialogue does not end with "Assistant:"')
    return turns


def from_hh_rlhf(row: Mapping) -> Conversation | Rejection:
    turns = hh_turns(_first(row, ("chosen", "text")))
    return turns if isinstance(turns, Rejection) else conversation(turns)


def from_stage10(row: Mapping) -> Conversation | Rejection:
    """Rows of a generated dataset: any of its three SFT shapes, or the chosen side of a preference row."""
    if {"prompt", "chosen"} <= set(row):
        return _chosen_side(row)
    for name in ("messages", "sharegpt", "alpaca"):
        if FORMATS[name].recognises(row):
            return FORMATS[name].convert(row)
    return Rejection("schema", f"no chat in a row with fields {', '.join(sorted(row))}")


def _chosen_side(row: Mapping) -> Conversation | Rejection:
    turns: list = []
    for role, value in (("user", row["prompt"]), ("assistant", row["chosen"])):
        part = as_messages(value) if isinstance(value, list) else [(role, value)]
        if isinstance(part, Rejection):
            return part
        turns += part
    return conversation(turns)


def _qa_fields(row: Mapping) -> bool:
    return (
        bool(_first(row, QUESTION_FIELDS)) and bool(_first(row, ANSWER_FIELDS)) and "instruction" not in row
    )


def _is_alpaca(row: Mapping) -> bool:
    return "instruction" in row and any(name in row for name in ALPACA_ANSWERS)


def _is_hh(row: Mapping) -> bool:
    text = _first(row, ("chosen", "text"))
    return isinstance(text, str) and "Human:" in text and "Assistant:" in text


FORMATS: dict[str, Format] = {
    "messages": Format(
        lambda row: _has_list(row, _messages_field(row), "role", "content"),
        from_messages,
        frozenset({"messages", "conversation"}),
    ),
    "sharegpt": Format(
        lambda row: _has_list(row, "conversations", "from", "value"),
        from_sharegpt,
        frozenset({"conversations"}),
    ),
    "alpaca": Format(
        _is_alpaca, from_alpaca, frozenset({"instruction", "input", "system", "history", *ALPACA_ANSWERS})
    ),
    "qa": Format(_qa_fields, from_qa, frozenset(QUESTION_FIELDS + ANSWER_FIELDS)),
    "hh_rlhf": Format(_is_hh, from_hh_rlhf, frozenset({"chosen", "rejected", "text"})),
}
STAGE10 = Format(
    lambda row: True,
    from_stage10,
    frozenset({"prompt", "chosen", "rejected"}).union(
        *(FORMATS[n].uses for n in ("messages", "sharegpt", "alpaca"))
    ),
)


def chat_format(name: str) -> Format:
    return STAGE10 if name == "stage10" else FORMATS[name]


def detect_format(rows: list[Mapping], table: Mapping[str, Format], where: str) -> str:
    """The one format that at least 99 % of the rows match (S4). ConfigError with the counts otherwise."""
    counts = Counter(name for row in rows for name in [_recognised(row, table)])
    name, matched = counts.most_common(1)[0] if counts else ("", 0)
    if name and matched >= MIN_MATCH * len(rows):
        return name
    shown = ", ".join(f"{count} {name or 'of no known format'}" for name, count in counts.most_common())
    raise ConfigError(
        f"{where}: no single chat format fits (of {len(rows)} rows: {shown or 'none'})",
        fix=f'state "format" for this source ({", ".join(table)}), map its "fields", or split the file',
    )


def _recognised(row: Mapping, table: Mapping[str, Format]) -> str:
    return next((name for name, fmt in table.items() if fmt.recognises(row)), "")


def map_fields(row: Mapping, fields: Mapping[str, str]) -> dict:
    """
    The row with foreign names mapped by dotted path (S5): {"answer": "responses.0.text"}.

    The mapped-from top-level fields are removed, so they do not count as unused.
    """
    found = {name: value for name, path in fields.items() if (value := _at_path(row, path)) is not None}
    roots = {path.split(".")[0] for path in fields.values()}
    return {name: value for name, value in row.items() if name not in roots} | found


def _at_path(value: object, path: str) -> object:
    for part in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def check_paths(rows: list[Mapping], fields: Mapping[str, str], where: str) -> None:
    """
    Every mapped path occurs in at least one of the rows, else ConfigError naming the fields that are
    there.
    """
    for name, path in fields.items():
        if not any(_at_path(row, path) is not None for row in rows):
            there = ", ".join(sorted({key for row in rows for key in row}))
            raise ConfigError(
                f'{where}: field "{name}" is mapped from "{path}", '
                f"which none of the first {len(rows)} rows has",
                fix=f"the fields that are there: {there}",
            )


def unused_text(row: Mapping, used: frozenset[str], ignored: Iterable[str]) -> list[str]:
    """Fields holding text that the adapter would lose in silence."""
    known = used | META_FIELDS | set(ignored)
    return sorted(
        name for name, value in row.items() if isinstance(value, str) and value.strip() and name not in known
    )


def check_unused(rows: list[Mapping], used: frozenset[str], ignored: Iterable[str], where: str) -> None:
    """ConfigError when the probed rows hold text that the format does not use (S4)."""
    unused = Counter(name for row in rows for name in unused_text(row, used, ignored))
    if unused:
        shown = ", ".join(f'"{name}" ({count} rows)' for name, count in sorted(unused.items()))
        raise ConfigError(
            f"{where}: text would be lost, the format does not use {shown}",
            fix='list these names in "ignore_fields" of the source, or map them with "fields"',
        )
