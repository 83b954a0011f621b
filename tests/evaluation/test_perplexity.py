"""
Strided perplexity against a float64 reference that scores one token at a time, and against numbers known in
advance.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from tests.export.tiny_model import stories, tiny_model
from utils.evaluation import perplexity
from utils.evaluation.perplexity import document_nll, measure, plan_windows
from utils.models.load import load_model
from utils.tokenizer.frozen import FrozenTokenizer


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return load_model(tiny_model()).eval()


@pytest.fixture(scope="module")
def documents() -> list[np.ndarray]:
    tokenizer = FrozenTokenizer(tiny_model())
    texts = [*stories(3, seed=80), "\n".join(stories(6, seed=81)), "A"]
    return [np.array([1, *ids, 2]) for ids in tokenizer.encode_text(texts)]


def reference_nll(model: LlamaForCausalLM, ids: np.ndarray, window: int, stride: int) -> np.ndarray:
    """Unbatched, float64: for each target the window that the stride gives it, written down directly."""
    exact = model.double()
    scores = []
    for target in range(1, len(ids)):
        number = 0 if target < window else math.ceil((target + 1 - window) / stride)
        start = number * stride
        with torch.inference_mode():
            logits = exact(input_ids=torch.as_tensor(ids[start : target + 1])[None]).logits[0, -2]
        scores.append(-torch.log_softmax(logits, -1)[ids[target]].item())
    model.float()
    return np.array(scores)


def test_equals_an_unbatched_float64_reference(model: LlamaForCausalLM, documents: list[np.ndarray]) -> None:
    found = document_nll(model, documents, window=32, stride=16)
    for ids, scores in zip(documents, found, strict=True):
        np.testing.assert_allclose(scores, reference_nll(model, ids, 32, 16), atol=1e-4)
    total = sum(scores.sum() for scores in found)
    exact = sum(reference_nll(model, ids, 32, 16).sum() for ids in documents)
    assert total == pytest.approx(exact, rel=1e-6)


def test_batching_changes_nothing(
    model: LlamaForCausalLM, documents: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = document_nll(model, documents, window=64, stride=32)
    monkeypatch.setattr(perplexity, "MAX_LOGITS", 1)
    alone = document_nll(model, documents, window=64, stride=32)
    for first, second in zip(together, alone, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-4)


def test_uniform_model_gives_log_vocabulary(documents: list[np.ndarray]) -> None:
    config = LlamaConfig(
        vocab_size=512, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
    )
    model = LlamaForCausalLM(config).eval()
    torch.nn.init.zeros_(model.lm_head.weight)
    scores = np.concatenate(document_nll(model, documents, window=64, stride=32))
    np.testing.assert_allclose(scores, math.log(512), atol=1e-6)


@given(st.lists(st.integers(0, 60), max_size=6), st.integers(2, 20), st.data())
def test_every_target_is_scored_once_with_enough_context(
    lengths: list[int], window: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, window - 1))
    seen: list[tuple[int, int]] = []
    for w in plan_windows(lengths, window, stride):
        assert w.end - w.start <= window and w.end <= lengths[w.document]
        for target in range(w.first_target, w.end):
            assert target - w.start >= min(target, window - stride)
            seen.append((w.document, target))
    assert sorted(seen) == [(d, t) for d, length in enumerate(lengths) for t in range(1, length)]


@pytest.mark.parametrize("stride", [0, 8, 9])
def test_impossible_strides_are_refused(stride: int) -> None:
    with pytest.raises(ValueError, match="must lie between"):
        list(plan_windows([20], 8, stride))


def test_word_and_byte_measures_of_a_hand_computed_text() -> None:
    text = "caf\u00e9 au lait"  # 3 words, 13 bytes
    found = measure([np.array([1.0, 2.0, 3.0]), np.array([6.0])], [text, "x"])
    assert (found.documents, found.tokens, found.words, found.bytes, found.nll) == (2, 4, 4, 14, 12.0)
    assert found.nll_per_token == 3.0
    assert found.perplexity == pytest.approx(math.exp(3))
    assert found.word_perplexity == pytest.approx(math.exp(3))
    assert found.bits_per_byte == pytest.approx(12 / math.log(2) / 14)


def test_trained_model_is_far_under_a_uniform_one(
    model: LlamaForCausalLM, documents: list[np.ndarray]
) -> None:
    scores = np.concatenate(document_nll(model, documents[:3], window=128, stride=64))
    assert scores.mean() < 0.25 * math.log(512)
