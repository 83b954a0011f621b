"""From scores to results: what stands in results.json and table.md, computed from planted scores."""

import json
import math

import numpy as np
import pytest

from tests.export.tiny_model import chat_ids, conversations, stories, tiny_model
from utils.evaluation.held_out import Question
from utils.evaluation.protocol import (
    HeldOut,
    ModelScores,
    PairSet,
    TextSet,
    Written,
    score_model,
    summarise,
    text_set,
)
from utils.evaluation.table import render_samples, render_table
from utils.models.load import load_model
from utils.serving.batch import greedy_answers
from utils.tokenizer.frozen import FrozenTokenizer

REFERENCES = ["red", "blue", "red", "gold"] * 10


def planted(right: int, margin: float, nll: float) -> ModelScores:
    """A model that answers the first `right` of 40 questions and orders every pair by `margin`."""
    answers = [Written(ref if i < right else "no", 2, True) for i, ref in enumerate(REFERENCES)]
    noise = np.random.default_rng(0).normal(0, 1, 40)
    pairs = np.stack([noise + margin, np.zeros(40)], axis=1)
    return ModelScores({"corpus": [np.full(4, nll), np.full(2, nll)]}, answers, pairs)


@pytest.fixture(scope="module")
def tests() -> HeldOut:
    questions = [
        Question(f"{i:032x}", [{"role": "user", "content": f"q{i}"}], ref) for i, ref in enumerate(REFERENCES)
    ]
    texts = TextSet("corpus", ["four tokens", "ab"], [np.arange(5), np.arange(3)])
    return HeldOut([texts], questions, [], PairSet([], []))


@pytest.fixture(scope="module")
def results(tests: HeldOut) -> dict:
    scores = {"base": planted(2, -1.0, 2.0), "sft": planted(30, 0.0, 2.0), "dpo": planted(31, 3.0, 2.1)}
    found = summarise(scores, tests, {"dpo": "sft"}, resamples=500, seed=7)
    return found | {
        "models": dict.fromkeys(scores, "ab" * 32),
        "validation": {"val_loss": 2.0, "bigram_loss": 3.5},
    }


def test_every_model_has_value_interval_and_n(results: dict) -> None:
    exact = results["metrics"]["exact_match"]["models"]
    assert [exact[name]["value"] for name in ("base", "sft", "dpo")] == [0.05, 0.75, 0.775]
    assert all(
        found["low"] <= found["value"] <= found["high"] and found["n"] == 40 for found in exact.values()
    )
    assert results["metrics"]["exact_match"]["baseline"] == 0.5
    assert results["metrics"]["nll_per_token:corpus"]["models"]["base"]["value"] == pytest.approx(2.0)
    bits = results["metrics"]["bits_per_byte:corpus"]["models"]["base"]["value"]
    assert bits == pytest.approx(12 / math.log(2) / 13)


def test_verdicts_say_better_only_when_it_is_seen(results: dict) -> None:
    verdicts = {(c["metric"], c["model"], c["against"]): c["verdict"] for c in results["comparisons"]}
    assert verdicts["exact_match", "sft", "base"] == "better"
    assert verdicts["exact_match", "dpo", "sft"] == "no difference seen"
    assert verdicts["preference_accuracy", "dpo", "sft"] == "better"
    assert verdicts["nll_per_token:corpus", "dpo", "base"] == "worse"


def test_implicit_reward_is_for_models_with_a_reference(results: dict) -> None:
    assert list(results["metrics"]["implicit_reward_accuracy"]["models"]) == ["dpo"]
    assert results["metrics"]["implicit_reward_accuracy"]["models"]["dpo"]["value"] == 1.0


def test_results_are_json_and_repeatable(results: dict, tests: HeldOut) -> None:
    scores = {"base": planted(2, -1.0, 2.0), "sft": planted(30, 0.0, 2.0), "dpo": planted(31, 3.0, 2.1)}
    again = summarise(scores, tests, {"dpo": "sft"}, resamples=500, seed=7)
    assert json.dumps(again, sort_keys=True, allow_nan=False) == json.dumps(
        {key: results[key] for key in again}, sort_keys=True
    )


def test_table_puts_models_side_by_side(results: dict) -> None:
    table = render_table(results)
    assert "| metric | n | base | sft | dpo | baseline |" in table
    exact = next(line for line in table.splitlines() if line.startswith("| exact_match | 40 |"))
    assert "| 5.0 % [1.4 %, 16.5 %] |" in exact and "50.0 % (always the commonest answer)" in exact
    assert "| perplexity:corpus | 2 | 7.39 [7.39, 7.39] |" in table
    assert "- bigram loss: 3.5000" in table
    assert "| exact_match | sft against base | +70.0 % |" in table


def test_samples_have_every_answer_worst_first(tests: HeldOut) -> None:
    answers = {"base": planted(2, 0, 1).answers, "sft": planted(30, 0, 1).answers}
    lines = [
        json.loads(line) for line in render_samples(tests.questions, answers, worst_first="sft").splitlines()
    ]
    assert len(lines) == 40
    assert lines[0]["answers"]["sft"] == {"text": "no", "exact": False}
    assert lines[-1]["answers"]["sft"]["exact"] is True


def test_texts_are_whole_documents_with_bos_and_eos() -> None:
    tokenizer = FrozenTokenizer(tiny_model())
    found = text_set("corpus", iter(stories(50, seed=3)), tokenizer, limit_tokens=100)
    assert sum(map(len, found.documents[:-1])) < 100 <= sum(map(len, found.documents))
    assert all(ids[0] == 1 and ids[-1] == 2 for ids in found.documents)
    assert tokenizer.decode(found.documents[0]) == found.texts[0] == stories(50, seed=3)[0]


def test_a_trained_model_is_scored_on_everything() -> None:
    from sentencepiece import SentencePieceProcessor

    folder = tiny_model()
    model, tokenizer = load_model(folder).eval(), FrozenTokenizer(folder)
    pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    chats = conversations(4, seed=5)
    chosen = [np.array(chat_ids(pieces, chat)[:-1]) for chat in chats]
    rejected = [np.concatenate([ids[:-6], ids[-6:][::-1]]) for ids in chosen]
    documents = [ids for pair in zip(chosen, rejected, strict=True) for ids in pair]
    trained = [np.r_[np.zeros(len(ids) - 6), np.ones(6)] for ids in documents]
    tests = HeldOut(
        [text_set("corpus", stories(4, seed=9), tokenizer)],
        [Question("0", chat[:1], chat[1]["content"]) for chat in chats],
        [np.array(chat_ids(pieces, chat[:1], prompt=True)) for chat in chats],
        PairSet(documents, trained),
    )

    def answer(model, prompts) -> list[Written]:
        found = greedy_answers(model, prompts, 16, {2, 5})
        return [Written(tokenizer.decode(a.ids), len(a.ids), a.stopped) for a in found]

    scores = score_model(model, tests, answer)
    assert (scores.pairs[:, 0] > scores.pairs[:, 1]).all()
    assert all(written.text.startswith("It is ") and written.stopped for written in scores.answers)
    assert len(scores.nll["corpus"]) == 4
