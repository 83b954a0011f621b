"""Pairs: adapters, reasons for rejection, and two sequences that share their prompt by id."""

import numpy as np
import pytest

from utils.chat.conversation import Message, Rejection
from utils.chat.formats import detect_format
from utils.chat.masks import ChatEncoder
from utils.chat.pairs import PAIR_FORMATS, Pair, encode_pairs, pair_format
from utils.pipeline.errors import ConfigError

DPO = {"prompt": "Q", "chosen": "good", "rejected": "bad"}
LISTS = {
    "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "Q"}],
    "chosen": [{"role": "assistant", "content": "good"}],
    "rejected": [{"role": "assistant", "content": "bad"}],
}
WHOLE = {side: LISTS["prompt"] + LISTS[side] for side in ("chosen", "rejected")} | {"prompt": LISTS["prompt"]}
HH = {
    "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: good",
    "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: bad",
}


@pytest.mark.parametrize(
    ("name", "row", "prompt"),
    [
        ("dpo", DPO, ["Q"]),
        ("stage10", DPO, ["Q"]),
        ("dpo", LISTS, ["s", "Q"]),
        ("dpo", WHOLE, ["s", "Q"]),
        ("hh_rlhf", HH, ["a", "b", "c"]),
    ],
)
def test_adapters(name: str, row: dict, prompt: list[str]) -> None:
    found = pair_format(name).convert(row)
    assert isinstance(found, Pair)
    assert ([m.content for m in found.prompt], found.chosen, found.rejected) == (prompt, "good", "bad")


REJECTED = [
    ("dpo", DPO | {"rejected": " good\n"}, "identical"),
    ("dpo", DPO | {"rejected": " "}, "empty_response"),
    ("dpo", DPO | {"prompt": ""}, "empty_text"),
    ("dpo", DPO | {"chosen": 5}, "schema"),
    ("dpo", DPO | {"chosen": "Q"}, "echo"),
    ("hh_rlhf", HH | {"rejected": HH["rejected"].replace("Human: a", "Human: x")}, "bad_order"),
    ("hh_rlhf", HH | {"rejected": "Human: a"}, "bad_order"),
    ("hh_rlhf", HH | {"rejected": "Human: a\n\nAssistant: "}, "empty_response"),
]


@pytest.mark.parametrize(("name", "row", "reason"), REJECTED)
def test_adapters_reject_with_a_reason(name: str, row: dict, reason: str) -> None:
    found = pair_format(name).convert(row)
    assert isinstance(found, Rejection) and found.reason == reason


def test_detection_tells_the_formats_apart_and_refuses_a_mixture() -> None:
    assert detect_format([DPO, WHOLE], PAIR_FORMATS, "f") == "dpo"
    assert detect_format([HH], PAIR_FORMATS, "f") == "hh_rlhf"
    with pytest.raises(ConfigError, match="1 dpo, 1 hh_rlhf"):
        detect_format([DPO, HH], PAIR_FORMATS, "f")


def pair(*prompt: str, chosen: str = "good one", rejected: str = "bad") -> Pair:
    messages = tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(prompt))
    return Pair(messages, chosen, rejected)


def test_both_sides_share_the_prompt_and_end_with_the_end_of_turn(encoder: ChatEncoder) -> None:
    ((_, chosen, rejected),) = encode_pairs(encoder, [pair("a", "b", "c")], 100, drop_old=False)
    prompt = encoder.prompt(pair("a", "b", "c").prompt)
    for side, answer in ((chosen, "good one"), (rejected, "bad")):
        assert np.array_equal(side.ids[: len(prompt)], prompt)
        assert side.trained.tolist() == [0] * len(prompt) + [1] * (len(side) - len(prompt))
        assert side.ids[-1] == encoder.stop_ids[-1]
        assert encoder.tokenizer.decode(side.ids[len(prompt) : -1]).strip() == answer


def test_prompts_lose_oldest_exchanges_and_answers_are_never_cut(encoder: ChatEncoder) -> None:
    long, short = pair("a" * 30, "b", "c"), pair("c")
    limit = max(len(side) for side in encode_pairs(encoder, [short], 1000, drop_old=False)[0][1:])
    ((fitted, chosen, _),) = encode_pairs(encoder, [long], limit, drop_old=True)
    assert [m.content for m in fitted.prompt] == ["c"] and dict(fitted.meta) == {"dropped_old_turns": "yes"}
    assert len(chosen) <= limit
    for drop_old, pairs, tokens in ((False, [long], limit), (True, [short], limit - 1)):
        (refused,) = encode_pairs(encoder, pairs, tokens, drop_old)
        assert isinstance(refused, Rejection) and refused.reason == "too_long"
        assert f"at most {tokens}" in refused.detail
