"""
Preference pairs: one prompt, a chosen and a rejected answer, from several foreign shapes to token ids.

A pair becomes two documents that follow each other, prompt + chosen and prompt + rejected, in the same files
as conversations. The answer begins at the first trained token, known from rendering, never found in text.

    pair = from_dpo({"prompt": "2 + 2?", "chosen": "4", "rejected": "5"})
    encode_pairs(encoder, [pair], max_tokens=256, drop_old=True)   # [(pair, chosen, rejected)] or Rejection
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from utils.chat.conversation import (
    Message,
    Rejection,
    content_id,
    conversation,
    first_user_turn,
    without_oldest_turns,
)
from utils.chat.formats import Format, as_messages, hh_turns
from utils.chat.masks import ChatEncoder, Encoded


@dataclass(frozen=True)
class Pair:
    """Messages up to and with a user turn, and two answers to it."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    meta: tuple[tuple[str, str], ...] = ()

    @property
    def id(self) -> str:
        """First 32 hex of the SHA-256 of the canonical JSON of prompt and answers."""
        return content_id(self._content())

    @property
    def first_user_turn(self) -> str:
        return first_user_turn(self.prompt)

    def with_answer(self, answer: str) -> tuple[Message, ...]:
        return (*self.prompt, Message("assistant", answer))

    def with_meta(self, **fields: str) -> "Pair":
        return replace(self, meta=tuple(sorted((dict(self.meta) | fields).items())))

    def row(self) -> dict:
        return {"id": self.id, **self._content(), "meta": dict(self.meta)}

    def _content(self) -> dict:
        prompt = [message.row() for message in self.prompt]
        return {"prompt": prompt, "chosen": self.chosen, "rejected": self.rejected}


def make_pair(chosen: Sequence, rejected: Sequence) -> Pair | Rejection:
    """
    Two dialogues as (role, text) turns that must share all but the last turn, which is the assistant's
    (Q3).
    """
    sides = []
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        turns = [turn if isinstance(turn, Message) else Message(turn[0], turn[1]) for turn in turns]
        if (
            turns
            and turns[-1].role == "assistant"
            and isinstance(turns[-1].content, str)
            and not turns[-1].content.strip()
        ):
            return Rejection("empty_response", f"the {name} answer has no text")
        side = conversation(turns)
        if isinstance(side, Rejection):
            return replace(side, detail=f"{name}: {side.detail}")
        sides.append(side.messages)
    (*prompt, first), (*other, second) = sides
    if prompt != other:
        return Rejection("bad_order", "the two dialogues differ before the last assistant turn")
    if first.content == second.content:
        return Rejection("identical", "chosen and rejected are the same text")
    return Pair(tuple(prompt), first.content, second.content)


def from_dpo(row: Mapping) -> Pair | Rejection:
    """
    `prompt`, `chosen`, `rejected` as strings or as message lists; a list of answers may repeat the
    prompt.
    """
    prompt = _turns("user", row["prompt"])
    if isinstance(prompt, Rejection):
        return prompt
    sides = []
    for name in ("chosen", "rejected"):
        answer = _turns("assistant", row[name])
        if isinstance(answer, Rejection):
            return answer
        repeats_prompt = len(answer) > len(prompt) and answer[: len(prompt)] == prompt
        sides.append(answer if repeats_prompt else [*prompt, *answer])
    return make_pair(*sides)


def _turns(role: str, value: object) -> list[Message] | Rejection:
    if isinstance(value, list):
        return as_messages(value)
    return (
        [Message(role, value)]
        if isinstance(value, str)
        else Rejection("schema", f"the {role} text is not a string")
    )


def from_hh_pair(row: Mapping) -> Pair | Rejection:
    """Two "Human: / Assistant:" dialogues."""
    sides = [hh_turns(row[name]) for name in ("chosen", "rejected")]
    if problem := next((side for side in sides if isinstance(side, Rejection)), None):
        return problem
    return make_pair(*sides)


def _is_hh_pair(row: Mapping) -> bool:
    texts = [row.get("chosen"), row.get("rejected")]
    return "prompt" not in row and all(isinstance(text, str) and "Human:" in text for text in texts)


PAIR_FORMATS: dict[str, Format] = {
    "dpo": Format(
        lambda row: {"prompt", "chosen", "rejected"} <= set(row),
        from_dpo,
        frozenset({"prompt", "chosen", "rejected"}),
    ),
    "hh_rlhf": Format(_is_hh_pair, from_hh_pair, frozenset({"chosen", "rejected"})),
}


def pair_format(name: str) -> Format:
    """Stage 10 writes preference rows as `dpo` has them."""
    return PAIR_FORMATS["dpo" if name == "stage10" else name]


def encode_pairs(
    encoder: ChatEncoder, pairs: Sequence[Pair], max_tokens: int, drop_old: bool
) -> list[tuple[Pair, Encoded, Encoded] | Rejection]:
    """
    Token ids of both sides, prompt and answer with its end-of-turn; only answer tokens are `trained` (Q4).

    A prompt that is too long loses whole oldest exchanges if `drop_old`; an answer is never cut.
    """
    results: list = [None] * len(pairs)
    todo = dict(enumerate(pairs))
    while todo:
        both = [pair.with_answer(answer) for pair in todo.values() for answer in (pair.chosen, pair.rejected)]
        encoded = [_up_to_answer(row) for row in encoder.encode(both, "last_assistant")]
        longer = {}
        for n, (i, pair) in enumerate(todo.items()):
            chosen, rejected = encoded[2 * n], encoded[2 * n + 1]
            rest = without_oldest_turns(pair.prompt) if drop_old else None
            if max(len(chosen), len(rejected)) <= max_tokens:
                results[i] = _checked(pair, chosen, rejected)
            elif rest:
                longer[i] = replace(pair, prompt=rest).with_meta(dropped_old_turns="yes")
            else:
                results[i] = Rejection(
                    "too_long", f"{max(len(chosen), len(rejected)):,} tokens, at most {max_tokens:,}"
                )
        todo = longer
    return results


def _up_to_answer(row: Encoded) -> Encoded:
    """What the template writes after the end of the answer has no part in a preference."""
    end = int(np.flatnonzero(row.trained)[-1]) + 1
    return Encoded(row.ids[:end], row.trained[:end])


def _checked(pair: Pair, chosen: Encoded, rejected: Encoded) -> tuple[Pair, Encoded, Encoded]:
    begins = [int(np.argmax(row.trained)) for row in (chosen, rejected)]
    assert begins[0] == begins[1] and np.array_equal(chosen.ids[: begins[0]], rejected.ids[: begins[1]])
    return pair, chosen, rejected
