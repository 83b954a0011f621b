"""
One protocol for every model: the same documents, questions and pairs, and one set of numbers from them.

    tests = HeldOut(texts, questions, prompts, pairs)
    scores = {name: score_model(load(name), tests, answer) for name in ("base", "sft", "dpo")}
    results = summarise(scores, tests, reference={"dpo": "sft"}, resamples=10_000, seed=7)

Log-probabilities and greedy answers are taken once for each model; every metric and comparison is computed
from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Protocol

import numpy as np

from utils.evaluation.answers import majority_share, score_answers
from utils.evaluation.compare import Estimate, paired_bootstrap, share, weighted_mean
from utils.evaluation.held_out import Question
from utils.evaluation.perplexity import document_nll, measure
from utils.evaluation.preference import implicit_reward, pair_log_probabilities, prefers_chosen

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROTOCOL_VERSION = 1


@dataclass(frozen=True)
class TextSet:
    """Documents as text and as ids with BOS and EOS."""

    name: str
    texts: list[str]
    documents: list[np.ndarray]


class TextTokenizer(Protocol):
    """The part of a frozen tokenizer that scoring texts needs."""

    def encode_text(self, texts: list[str]) -> list[np.ndarray]:
        """Ids of plain text, without BOS and EOS."""

    def special(self, name: str) -> int:
        """Id of "bos" or "eos"; -1 if there is none."""


def text_set(name: str, texts: Iterable[str], tokenizer: TextTokenizer, limit_tokens: int = 0) -> TextSet:
    """
    Whole documents in order until `limit_tokens` (0 = all) are reached, each with BOS and EOS as in stage
    40.
    """
    bos, eos = ([i] if i >= 0 else [] for i in (tokenizer.special("bos"), tokenizer.special("eos")))
    kept, documents, tokens = [], [], 0
    for text in texts:
        ids = np.concatenate([bos, tokenizer.encode_text([text])[0], eos]).astype(np.int64)
        kept.append(text)
        documents.append(ids)
        tokens += len(ids)
        if limit_tokens and tokens >= limit_tokens:
            break
    return TextSet(name, kept, documents)


@dataclass(frozen=True)
class PairSet:
    """
    Held-out pairs: documents alternate prompt + chosen and prompt + rejected, `trained` marks the
    answers.
    """

    documents: list[np.ndarray]
    trained: list[np.ndarray]


@dataclass(frozen=True)
class HeldOut:
    """What every model is asked."""

    texts: list[TextSet]
    questions: list[Question]
    prompts: list[np.ndarray]
    pairs: PairSet


@dataclass(frozen=True)
class Written:
    """A model's answer to one question."""

    text: str
    tokens: int
    stopped: bool


@dataclass(frozen=True)
class ModelScores:
    """Everything that was measured on one model."""

    nll: dict[str, list[np.ndarray]]
    answers: list[Written]
    pairs: np.ndarray


Answer = Callable[["PreTrainedModel", Sequence[np.ndarray]], list[Written]]


def score_model(model: PreTrainedModel, held_out: HeldOut, answer: Answer) -> ModelScores:
    """
    Score texts, answer questions and score pairs with one model; `answer` writes greedily and in batches.
    """
    window = model.config.max_position_embeddings
    pair_nll = document_nll(model, held_out.pairs.documents, window, window // 2)
    return ModelScores(
        nll={s.name: document_nll(model, s.documents, window, window // 2) for s in held_out.texts},
        answers=answer(model, held_out.prompts),
        pairs=pair_log_probabilities(pair_nll, held_out.pairs.trained),
    )


def summarise(
    scores: Mapping[str, ModelScores],
    held_out: HeldOut,
    reference: Mapping[str, str],
    resamples: int,
    seed: int,
) -> dict:
    """
    Every metric of every model with its interval and baseline, and every pair of models compared.

    `reference` names the model whose log-probabilities turn another's into implicit rewards.
    """
    blocks = _metrics(scores, held_out, reference)
    metrics, comparisons = {}, []
    for block in blocks:
        metrics[block.name] = {
            "baseline": block.baseline,
            "baseline_means": block.baseline_means,
            "lower_is_better": block.lower_is_better,
            "models": {
                name: asdict(block.estimate(values, resamples, seed)) for name, values in block.values.items()
            },
        }
        for second, first in combinations(block.values, 2):
            found = paired_bootstrap(
                block.values[first],
                block.values[second],
                resamples,
                seed,
                block.weights,
                block.lower_is_better,
            )
            comparisons.append({"metric": block.name, "model": first, "against": second, **asdict(found)})
    return {
        "protocol_version": PROTOCOL_VERSION,
        "metrics": metrics,
        "comparisons": comparisons,
        "texts": {
            s.name: {name: _text_measures(found, s) for name, found in scores.items()} for s in held_out.texts
        },
        "answers": {name: _answer_measures(found.answers) for name, found in scores.items()},
    }


@dataclass(frozen=True)
class Metric:
    """
    One number per item and model; with `weights` the values are totals and the metric is per unit of
    weight.
    """

    name: str
    values: dict[str, np.ndarray]
    baseline: float | None
    baseline_means: str
    weights: np.ndarray | None = None
    lower_is_better: bool = False

    def estimate(self, values: np.ndarray, resamples: int, seed: int) -> Estimate:
        if values.dtype == bool:
            return share(values)
        weights = np.ones(len(values)) if self.weights is None else self.weights
        return weighted_mean(values, weights, resamples, seed)


def _metrics(
    scores: Mapping[str, ModelScores], held_out: HeldOut, reference: Mapping[str, str]
) -> list[Metric]:
    metrics = [metric for texts in held_out.texts for metric in _text_metrics(scores, texts)]
    references = [question.reference for question in held_out.questions]
    answers = {
        name: score_answers([written.text for written in found.answers], references)
        for name, found in scores.items()
    }
    majority = majority_share(references)
    exact = {name: found.exact for name, found in answers.items()}
    metrics.append(Metric("exact_match", exact, majority, "always the commonest answer"))
    metrics.append(Metric("token_f1", {name: found.token_f1 for name, found in answers.items()}, None, ""))
    ordered = {name: prefers_chosen(found.pairs) for name, found in scores.items()}
    metrics.append(Metric("preference_accuracy", ordered, 0.5, "a coin"))
    rewards = {
        name: prefers_chosen(implicit_reward(scores[name].pairs, scores[other].pairs))
        for name, other in reference.items()
        if name in scores and other in scores
    }
    if rewards:
        metrics.append(Metric("implicit_reward_accuracy", rewards, 0.5, "a coin"))
    return metrics


def _text_metrics(scores: Mapping[str, ModelScores], texts: TextSet) -> list[Metric]:
    nats = {name: np.array([nll.sum() for nll in found.nll[texts.name]]) for name, found in scores.items()}
    bits = {name: values / math.log(2) for name, values in nats.items()}
    tokens = np.array([float(len(ids) - 1) for ids in texts.documents])
    size = np.array([float(len(text.encode("utf-8"))) for text in texts.texts])
    return [
        Metric(f"nll_per_token:{texts.name}", nats, None, "", tokens, lower_is_better=True),
        Metric(f"bits_per_byte:{texts.name}", bits, None, "", size, lower_is_better=True),
    ]


def _text_measures(found: ModelScores, texts: TextSet) -> dict:
    measured = measure(found.nll[texts.name], texts.texts)
    derived = ("nll_per_token", "perplexity", "word_perplexity", "bits_per_byte")
    return asdict(measured) | {name: getattr(measured, name) for name in derived}


def _answer_measures(answers: Sequence[Written]) -> dict:
    return {
        "n": len(answers),
        "stopped_share": sum(answer.stopped for answer in answers) / len(answers),
        "mean_tokens": sum(answer.tokens for answer in answers) / len(answers),
    }
