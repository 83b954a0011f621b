"""Batched greedy answers: neighbours do not matter, and transformers' own generate writes the same."""

import pytest
import torch

from tests.export.tiny_model import CONTEXT, chat_ids, conversations, stories, tiny_model
from utils.models.load import load_model
from utils.serving.batch import greedy_answers
from utils.tokenizer.frozen import FrozenTokenizer


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.set_num_threads(1)
    return load_model(tiny_model()).eval()


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(tiny_model() / "tokenizer.model"))
    chats = [chat_ids(pieces, messages[:1], prompt=True) for messages in conversations(6, seed=44)]
    texts = FrozenTokenizer(tiny_model()).encode_text(stories(4, seed=45))
    return [*chats, *([1, *map(int, ids[:cut])] for ids, cut in zip(texts, (3, 9, 17, 30), strict=True))]


def test_equals_transformers_generate(model, prompts) -> None:
    found = greedy_answers(model, prompts, 20, {2, 5})
    for prompt, answer in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        whole = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=[2, 5],
            pad_token_id=3,
        )
        assert answer.ids == whole[0, len(prompt) :].tolist()
        assert answer.stopped == (answer.ids[-1] in {2, 5})
        assert len(answer.gaps) == len(answer.ids)


@pytest.mark.parametrize("batch_tokens", [1, 120, 100_000])
def test_neighbours_do_not_change_an_answer(model, prompts, batch_tokens: int) -> None:
    alone = [greedy_answers(model, [prompt], 20, {2, 5})[0] for prompt in prompts]
    together = greedy_answers(model, prompts, 20, {2, 5}, batch_tokens)
    for first, second in zip(alone, together, strict=True):
        unclear = next((i for i, gap in enumerate(first.gaps) if gap < 1e-3), len(first.ids))
        assert first.ids[:unclear] == second.ids[:unclear]
        assert first.gaps[:unclear] == pytest.approx(second.gaps[:unclear], abs=1e-3)


def test_answers_end_at_the_context_of_their_own_prompt(model) -> None:
    prompts = [[1] * (CONTEXT - 2), [1] * (CONTEXT - 9), [1] * CONTEXT]
    lengths = [len(answer.ids) for answer in greedy_answers(model, prompts, 20, set())]
    assert lengths == [2, 9, 0]


def test_nothing_is_added_once_it_is_to_stop(model, prompts) -> None:
    """In the middle of the second of several batches."""
    whole = greedy_answers(model, prompts, 20, set(), batch_tokens=120)
    asked = []
    cut = greedy_answers(model, prompts, 20, set(), 120, stopping=lambda: asked.append(1) or len(asked) > 25)
    lengths = [len(answer.ids) for answer in cut]
    assert 0 in lengths and 20 in lengths and set(lengths) - {0, 20}
    for first, second in zip(cut, whole, strict=True):
        assert first.ids == second.ids[: len(first.ids)]


def test_gaps_are_distances_of_the_two_best_logits(model, prompts) -> None:
    answer = greedy_answers(model, prompts[:1], 1, set())[0]
    with torch.inference_mode():
        best = model(torch.tensor([prompts[0]])).logits[0, -1].topk(2).values
    assert answer.gaps[0] == pytest.approx(float(best[0] - best[1]), abs=1e-4)
