"""
The last step of preparation: encode a block of converted rows and keep each, or reject it with its reason.

    admit_conversations(build, items, encoder, Limits(256, drop_old=True), "all_assistant", source=0)
    admit_pairs(build, items, encoder, Limits(256, drop_old=True), source=0)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from utils.chat.build import DatasetBuild
from utils.chat.conversation import Conversation, Rejection
from utils.chat.masks import ChatEncoder, Encoded, TrainOn, fit_conversations
from utils.chat.pairs import Pair, encode_pairs
from utils.chat.prepare import Item
from utils.chat.templates import count_spelled_markers


@dataclass(frozen=True)
class Limits:
    """Longest sequence in tokens, and whether oldest exchanges may go to make one fit."""

    max_tokens: int
    drop_old: bool


def admit_conversations(
    build: DatasetBuild,
    items: Iterable[Item],
    encoder: ChatEncoder,
    limits: Limits,
    train_on: TrainOn,
    source: int,
) -> None:
    """One document per conversation."""
    good = _reject_bad(build, items)
    conversations = [item.result.messages for item in good]
    fitted = fit_conversations(encoder, conversations, limits.max_tokens, train_on, limits.drop_old)
    for item, found in zip(good, fitted, strict=True):
        if found is None:
            build.reject(item, Rejection("too_long", f"more than {limits.max_tokens:,} tokens"))
        elif not found[1].trained.any():
            build.reject(item, Rejection("no_trained_token", "no assistant turn is trained"))
        else:
            _keep_conversation(build, item.result, *found, encoder, source)


def _keep_conversation(
    build: DatasetBuild,
    row: Conversation,
    messages: tuple,
    encoded: Encoded,
    encoder: ChatEncoder,
    source: int,
) -> None:
    if len(messages) < len(row.messages):
        row = replace(row, messages=messages).with_meta(dropped_old_turns="yes")
        build.notes["dropped_old_turns"] += 1
    build.notes["spelled_markers"] += count_spelled_markers(messages, encoder.specials)
    build.keep(row, [encoded], turns=len(messages), source=source)


def admit_pairs(
    build: DatasetBuild, items: Iterable[Item], encoder: ChatEncoder, limits: Limits, source: int
) -> None:
    """Two documents per pair, chosen first."""
    good = _reject_bad(build, items)
    encoded = encode_pairs(encoder, [item.result for item in good], limits.max_tokens, limits.drop_old)
    for item, found in zip(good, encoded, strict=True):
        if isinstance(found, Rejection):
            build.reject(item, found)
        else:
            _keep_pair(build, *found, encoder, source)


def _keep_pair(
    build: DatasetBuild, pair: Pair, chosen: Encoded, rejected: Encoded, encoder: ChatEncoder, source: int
) -> None:
    lengths = int(chosen.trained.sum()), int(rejected.trained.sum())
    build.notes["dropped_old_turns"] += "dropped_old_turns" in dict(pair.meta)
    build.notes["spelled_markers"] += count_spelled_markers(pair.with_answer(pair.chosen), encoder.specials)
    build.notes["longer_chosen"] += lengths[0] > lengths[1]
    build.notes["length_difference_tokens"] += lengths[0] - lengths[1]
    build.keep(pair, [chosen, rejected], turns=len(pair.prompt) + 1, source=source)


def _reject_bad(build: DatasetBuild, items: Iterable[Item]) -> Sequence[Item]:
    """Count every item as read, write down those that are rejections already, return the others."""
    good = []
    for item in items:
        build.tally.read[item.source] += 1
        if isinstance(item.result, Rejection):
            build.reject(item, item.result)
        else:
            good.append(item)
    return good
