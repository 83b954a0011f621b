"""
Language identification: py3langid's model on three windows of a text, the same answer in every run.

The model walks a finite automaton over bytes, one Python step a byte. Here the windows of a whole block walk
in lockstep, a numpy step a byte position for all of them, and scores are summed without BLAS, whose order of
additions depends on its threads: a third of the time, and the same bits with any number of cores.

    >>> identify(["Der Hund schlief den ganzen Tag in der Sonne vor dem alten Haus."])
    [[Guess(language='de', confidence=0.9999)]]
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

import numpy as np

WINDOW, WHOLE_BELOW, MIN_LETTERS = 1_000, 3_000, 20
UNKNOWN = "unknown"
_IN_STEP = 512  # windows that walk together: their visits stay below 20 MB


class Guess(NamedTuple):
    """The likeliest language of a window and its probability, rounded to 4 decimals."""

    language: str
    confidence: float


class Verdict(NamedTuple):
    """
    Language of a document ("unknown" for few letters), mean confidence of its windows, whether it stays.
    """

    language: str
    confidence: float
    keep: bool


@dataclass(frozen=True)
class LanguageSettings:
    """Which languages stay; no `keep` identifies nothing."""

    keep: tuple[str, ...] = ()
    min_confidence: float = 0.65
    keep_unknown: bool = True


@dataclass(frozen=True)
class _Model:
    next_state: np.ndarray
    row_start: np.ndarray
    feature: np.ndarray
    weights: np.ndarray
    priors: np.ndarray
    languages: list[str]
    aliases: list[tuple[int, int]]


@lru_cache(maxsize=1)
def _model() -> _Model:
    """The model that comes with py3langid, read once per process (1 s, 100 MB)."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    found = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    return _Model(
        np.frombuffer(found.tk_nextmove, np.dtype(f"u{found.tk_nextmove.itemsize}")),
        np.array(found._rowbase, np.int64),
        np.array(found.tk_output, np.int32),
        found.nb_ptc.astype(np.float32),
        found.nb_pc.astype(np.float32),
        found.nb_classes,
        found._alias_pairs,
    )


def identify(texts: Sequence[str]) -> list[list[Guess]]:
    """Return the guesses on the windows of every text: one, or three for a long text."""
    windows = [windows_of(text) for text in texts]
    guesses = _guess([window for of_text in windows for window in of_text])
    return [list(islice(guesses, len(of_text))) for of_text in windows]


def windows_of(text: str) -> list[str]:
    """Return start, middle and end of a text, or all of a short one; nothing for too few letters."""
    if sum(1 for _ in islice(filter(str.isalpha, text), MIN_LETTERS)) < MIN_LETTERS:
        return []
    if len(text) < WHOLE_BELOW:
        return [text]
    middle = (len(text) - WINDOW) // 2
    return [text[:WINDOW], text[middle : middle + WINDOW], text[-WINDOW:]]


def decide(guesses: Sequence[Guess], settings: LanguageSettings) -> Verdict:
    """Kept when most windows are in a wanted language and these are sure enough of it on average."""
    if not guesses:
        return Verdict(UNKNOWN, 0.0, settings.keep_unknown)
    wanted = [guess for guess in guesses if guess.language in settings.keep]
    most = 2 * len(wanted) > len(guesses)
    judged = wanted if most else list(guesses)
    counts = Counter(guess.language for guess in judged)  # of equally frequent ones the first window's
    language = counts.most_common(1)[0][0]
    counted = judged if most else [guess for guess in judged if guess.language == language]
    confidence = round(math.fsum(guess.confidence for guess in counted) / len(counted), 4)
    return Verdict(language, confidence, most and confidence >= settings.min_confidence)


def _guess(windows: Sequence[str]) -> Iterator[Guess]:
    from py3langid.langid import LanguageIdentifier

    encoded = [LanguageIdentifier._encode(window) for window in windows]
    by_length = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]))
    guesses: list[Guess | None] = [None] * len(encoded)
    for start in range(0, len(by_length), _IN_STEP):
        together = by_length[start : start + _IN_STEP]
        for i, features in zip(together, _walk([encoded[i] for i in together]), strict=True):
            guesses[i] = _score(features, len(encoded[i]))
    return iter(guesses)


def _walk(windows: list[bytes]) -> Iterator[np.ndarray]:
    """Yield the features (i32, repeated as often as seen) of byte strings that are ordered longest first."""
    model, lengths = _model(), np.array([len(window) for window in windows])
    padded = np.zeros((len(windows), lengths[0]), np.uint8)
    for row, window in zip(padded, windows, strict=True):
        row[: len(window)] = np.frombuffer(window, np.uint8)
    steps = np.ascontiguousarray(padded.T)
    walking = np.searchsorted(-lengths, -np.arange(lengths[0]), side="left")  # windows longer than the step
    states = np.zeros(len(windows), np.int64)
    seen = np.full(steps.shape, -1, np.int32)
    for step, count in enumerate(walking.tolist()):
        moved = model.next_state[model.row_start[states[:count]] + steps[step, :count]]
        states[:count] = moved
        seen[step, :count] = model.feature[moved]
    for features in np.ascontiguousarray(seen.T):
        yield features[features >= 0]


def _score(features: np.ndarray, num_bytes: int) -> Guess:
    """Naive Bayes over counted features, with py3langid's temperature of the square root of the bytes."""
    model = _model()
    distinct, counts = np.unique(features, return_counts=True)
    scores = np.einsum("i,ij->j", np.log1p(counts.astype(np.float32)), model.weights[distinct])
    scores = (scores + model.priors) / math.sqrt(num_bytes) if len(features) else scores
    odds = np.exp(scores - scores.max())
    odds /= odds.sum()
    for kept, other in model.aliases:
        odds[kept] += odds[other]
        odds[other] = 0
    best = int(odds.argmax())
    return Guess(model.languages[best], round(float(odds[best]), 4))
