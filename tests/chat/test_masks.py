"""Ids and masks: BOS once, end-of-turn trained, markers that cannot be forged, prompts that are prefixes."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from utils.chat.conversation import Message
from utils.chat.masks import ChatEncoder, fit_conversations
from utils.tokenizer.frozen import FrozenTokenizer

U, A, S = (lambda text, role=role: Message(role, text) for role in ("user", "assistant", "system"))
TWO_TURNS = (S("Be brief."), U("Hi"), A("Hello."), U("2 + 2?"), A("It is 4."))
FIXTURES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
texts = (
    st.text(min_size=1, max_size=40)
    .map(str.strip)
    .filter(lambda t: t and not set(t) & set("\ufdd0\ufdd1\ufdd2"))
)


def trained_text(
    encoder: ChatEncoder, tokenizer: FrozenTokenizer, messages: tuple, **kwargs: str
) -> list[str]:
    """The pieces of each run of trained tokens, joined."""
    row = encoder.encode([messages], **kwargs)[0]
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.trained, [0]])))
    return ["".join(tokenizer.pieces(row.ids[a:b])) for a, b in edges.reshape(-1, 2)]


def test_chatml_golden(chatml: ChatEncoder, tokenizer: FrozenTokenizer) -> None:
    row = chatml.encode([(U("hello"), A("four"))])[0]
    text = "".join(tokenizer.pieces(row.ids))
    assert (
        text
        == "<s><|im_start|>user<0x0A>hello<|im_end|><0x0A><|im_start|>assistant<0x0A>four<|im_end|><0x0A>"
    )
    assert trained_text(chatml, tokenizer, (U("hello"), A("four"))) == ["four<|im_end|>"]


def test_bos_comes_exactly_once(encoder: ChatEncoder, tokenizer: FrozenTokenizer) -> None:
    row = encoder.encode([TWO_TURNS])[0]
    assert row.ids[0] == tokenizer.special("bos")
    assert (row.ids == tokenizer.special("bos")).sum() == 1


def test_every_trained_turn_ends_with_the_end_of_turn_and_nothing_after_it_is_trained(
    encoder: ChatEncoder,
) -> None:
    row = encoder.encode([TWO_TURNS])[0]
    ends = np.flatnonzero((row.trained[:-1] == 1) & (row.trained[1:] == 0))
    assert len(ends) == 2
    assert {int(row.ids[end]) for end in ends} == {encoder.stop_ids[-1]}
    assert row.trained[-1] == 0


def test_stop_ids_are_end_of_text_and_end_of_turn(chatml: ChatEncoder, tokenizer: FrozenTokenizer) -> None:
    assert chatml.stop_ids == [tokenizer.special("eos"), tokenizer.special("<|im_end|>")]


def test_last_assistant_and_train_false(encoder: ChatEncoder, tokenizer: FrozenTokenizer) -> None:
    both = trained_text(encoder, tokenizer, TWO_TURNS)
    assert len(both) == 2
    assert trained_text(encoder, tokenizer, TWO_TURNS, train_on="last_assistant") == both[1:]
    muted = (*TWO_TURNS[:4], Message("assistant", "It is 4.", train=False))
    assert trained_text(encoder, tokenizer, muted) == both[:1]


@pytest.mark.parametrize("marker", ["<|im_start|>", "<|im_end|>", "<s>", "</s>", "<pad>", "<unk>"])
def test_spelled_markers_are_text(encoder: ChatEncoder, tokenizer: FrozenTokenizer, marker: str) -> None:
    plain = encoder.encode([(U("x"), A("y"))])[0]
    forged = encoder.encode([(U(f"x{marker}"), A(f"{marker}y{marker}"))])[0]
    ids = [tokenizer.special(name) for name in ("unk", "bos", "eos", "pad", "<|im_start|>", "<|im_end|>")]
    for i in ids:
        assert (plain.ids == i).sum() == (forged.ids == i).sum()
    text = tokenizer.decode(i for i in forged.ids if int(i) not in ids)
    assert text.count(marker) == 3


@FIXTURES
@given(st.lists(texts, min_size=2, max_size=6).filter(lambda x: len(x) % 2 == 0))
def test_the_prompt_is_the_beginning_of_the_whole(encoder: ChatEncoder, turns: list[str]) -> None:
    messages = tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(turns))
    whole, prompt = encoder.encode([messages], "last_assistant")[0], encoder.prompt(messages[:-1])
    assert np.array_equal(whole.ids[: len(prompt)], prompt)
    assert not whole.trained[: len(prompt)].any()
    assert whole.trained[len(prompt)] == 1


@FIXTURES
@given(texts, texts)
def test_cutting_at_spans_changes_no_id(encoder: ChatEncoder, question: str, answer: str) -> None:
    """
    Tokenising the text between two control tokens in one piece gives the same ids as tokenising span by
    span.
    """
    messages = (Message("user", question), Message("assistant", answer))
    segments = encoder.template.segments(messages, encoder.specials)
    runs: list = [[]]
    for segment in segments:
        if segment.special:
            runs += [[encoder.specials.ids[segment.text]], []]
        else:
            runs[-1].append(segment.text)
    whole: list[int] = []
    for run in runs:
        is_text = bool(run) and isinstance(run[0], str)
        whole += encoder.tokenizer.encode_text(["".join(run)])[0].tolist() if is_text else run
    assert encoder.encode([messages])[0].ids.tolist() == whole


def test_batches_equal_single_calls(encoder: ChatEncoder) -> None:
    rows = [TWO_TURNS, (U("a"), A("b")), (U("x y"), A("z"))]
    for together, messages in zip(encoder.encode(rows), rows, strict=True):
        alone = encoder.encode([messages])[0]
        assert np.array_equal(together.ids, alone.ids) and np.array_equal(together.trained, alone.trained)


def test_too_long_loses_whole_oldest_exchanges(encoder: ChatEncoder) -> None:
    short = (S("Be brief."), *TWO_TURNS[3:])
    limit = len(encoder.encode([short])[0])
    (fitted,) = fit_conversations(encoder, [TWO_TURNS], limit, "all_assistant", drop_old=True)
    assert fitted[0] == short and len(fitted[1]) == limit
    assert fit_conversations(encoder, [TWO_TURNS], limit, "all_assistant", drop_old=False) == [None]
    assert fit_conversations(encoder, [TWO_TURNS], limit - 1, "all_assistant", drop_old=True) == [None]
