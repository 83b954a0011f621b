"""
Conversations to token ids and a mask of what is trained, from one rendering and one tokenisation.

Nothing is decoded, re-encoded or searched for: the template says where the assistant speaks, control tokens
are placed by id, and all other text is encoded as plain text, so `trained` is exact by construction.

    encoder = ChatEncoder(ChatTemplate.load(path), tokenizer)
    encoder.encode([conversation.messages])[0]    # Encoded(ids, trained)
    encoder.prompt(messages)                      # ids that end where the answer begins
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from utils.chat.conversation import Message, without_oldest_turns
from utils.chat.templates import ChatTemplate, Segment, Specials, check_template

TrainOn = Literal["all_assistant", "last_assistant"]


class TextTokenizer(Protocol):
    """The part of a tokenizer that chat needs."""

    def encode_text(self, texts: list[str]) -> list[np.ndarray]:
        """Ids of texts; no text ever becomes a control id."""

    def special(self, name: str) -> int:
        """Id of "bos", "eos", "pad", "unk" or a control symbol; -1 if there is none."""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Spelling of ids."""


@dataclass(frozen=True)
class Encoded:
    """Token ids of one conversation and, for each, 1 if it is a training target (not shifted)."""

    ids: np.ndarray
    trained: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def specials_of(tokenizer: TextTokenizer, markers: Iterable[str]) -> Specials:
    """The control ids that a template may emit: those of text and padding, and the markers that it spells."""
    found = {name: tokenizer.special(name) for name in ("unk", "bos", "eos", "pad")}
    spelled = {name: tokenizer.pieces([i])[0] for name, i in found.items() if i >= 0}
    ids = {spelled[name]: found[name] for name in spelled}
    ids |= {marker: tokenizer.special(marker) for marker in markers if tokenizer.special(marker) >= 0}
    return Specials(ids, spelled.get("bos", ""), spelled.get("eos", ""))


class ChatEncoder:
    """A template that fits a tokenizer. ConfigError from `check_template` if it does not."""

    def __init__(self, template: ChatTemplate, tokenizer: TextTokenizer) -> None:
        self.template = template
        self.tokenizer = tokenizer
        self.specials = specials_of(tokenizer, template.markers)
        self.end_of_turn = check_template(template, self.specials)

    @property
    def has_control_marks(self) -> bool:
        """Whether turns are marked by control ids, which no text can forge."""
        return bool(self.template.markers)

    @property
    def marker_ids(self) -> list[int]:
        """Ids of the template's own markers, which a base model has never seen."""
        return sorted(self.specials.ids[marker] for marker in self.template.markers)

    @property
    def stop_ids(self) -> list[int]:
        """Ids that end an answer: end of text and end of turn."""
        names = dict.fromkeys(name for name in (self.specials.eos_token, self.end_of_turn) if name)
        return [self.specials.ids[name] for name in names]

    def encode(
        self, conversations: Sequence[Sequence[Message]], train_on: TrainOn = "all_assistant"
    ) -> list[Encoded]:
        """Ids and masks of many conversations; the end-of-turn token of a trained turn is always trained."""
        rendered = [self.template.segments(messages, self.specials) for messages in conversations]
        pieces = self._tokenize(rendered)
        return [
            _join(segments, ids, _trained_turns(messages, train_on))
            for messages, segments, ids in zip(conversations, rendered, pieces, strict=True)
        ]

    def prompt(self, messages: Sequence[Message]) -> np.ndarray:
        """Ids of the messages followed by the header of the assistant's answer."""
        segments = self.template.segments(messages, self.specials, add_generation_prompt=True)
        return np.concatenate(self._tokenize([segments])[0])

    def _tokenize(self, rendered: list[list[Segment]]) -> list[list[np.ndarray]]:
        """One call to the tokenizer for the text segments of all conversations."""
        texts = [segment.text for segments in rendered for segment in segments if not segment.special]
        encoded = iter(self.tokenizer.encode_text(texts))
        return [
            [
                np.array([self.specials.ids[s.text]]) if s.special else np.asarray(next(encoded))
                for s in segments
            ]
            for segments in rendered
        ]


def _trained_turns(messages: Sequence[Message], train_on: TrainOn) -> set[int]:
    """Numbers of the assistant turns to train on; a message's own `train: false` wins."""
    answers = [message for message in messages if message.role == "assistant"]
    wanted = range(len(answers)) if train_on == "all_assistant" else [len(answers) - 1]
    return {turn for turn in wanted if answers[turn].train}


def _join(segments: list[Segment], ids: list[np.ndarray], turns: set[int]) -> Encoded:
    trained = [np.full(len(piece), s.turn in turns, np.uint8) for s, piece in zip(segments, ids, strict=True)]
    return Encoded(np.concatenate(ids).astype(np.int64), np.concatenate(trained))


def fit_conversations(
    encoder: ChatEncoder,
    conversations: Sequence[tuple[Message, ...]],
    max_tokens: int,
    train_on: TrainOn,
    drop_old: bool,
) -> list[tuple[tuple[Message, ...], Encoded] | None]:
    """
    Encode, and shorten what is too long by whole oldest exchanges if `drop_old` (S11).

    The system message stays; nothing is cut inside a turn. None where even the last exchange does not fit.
    """
    fitted: list = [None] * len(conversations)
    todo = dict(enumerate(conversations))
    while todo:
        encoded = encoder.encode(list(todo.values()), train_on)
        shorter = {}
        for (i, messages), row in zip(todo.items(), encoded, strict=True):
            if len(row) <= max_tokens:
                fitted[i] = (messages, row)
            elif drop_old and (rest := without_oldest_turns(messages)):
                shorter[i] = rest
        todo = shorter
    return fitted
