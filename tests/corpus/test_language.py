"""Language identification: labelled texts, parity with py3langid, windows, and the same answer everywhere."""

import json
import random
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from utils.corpus.language import Guess, LanguageSettings, Verdict, decide, identify, windows_of

SENTENCES = json.loads((Path(__file__).parent / "sentences.json").read_text())
ENGLISH = LanguageSettings(("en",))


def long_texts(language: str) -> list[str]:
    """Twenty texts of 1,000 characters made of twenty sentences of a language."""
    texts = []
    for seed in range(20):
        shuffled = random.Random(seed).sample(SENTENCES[language], 20) * 2
        texts.append(" ".join(shuffled)[:1_000])
    return texts


def test_there_are_200_labelled_sentences():
    assert [len(sentences) for sentences in SENTENCES.values()] == [20] * 10
    assert len({sentence for sentences in SENTENCES.values() for sentence in sentences}) == 200


def test_texts_of_1000_characters_are_told_apart():
    labels = [language for language in SENTENCES for _ in range(20)]
    guesses = identify([text for language in SENTENCES for text in long_texts(language)])
    right = sum(guess[0].language == label for guess, label in zip(guesses, labels, strict=True))
    assert right >= 0.95 * len(labels)


def test_most_single_sentences_are_told_apart():
    rows = [(language, sentence) for language, sentences in SENTENCES.items() for sentence in sentences]
    guesses = identify([sentence for _, sentence in rows])
    assert sum(guess[0].language == label for guess, (label, _) in zip(guesses, rows, strict=True)) >= 180


ODD = [
    "ALL CAPITALS ARE READ AS LOWER CASE BY THE MODEL", "e\u0301t\u00e9 " * 30, "x" * 25,
    "\u4f60\u597d" * 15,
    "1234567890 " * 10 + "abcdefghijklmnopqrstuvwxyz", "q\x00z" * 20,
    "\U0001f600" * 5 + "some more letters here",
    "\u0437\u0434\u0440\u0430\u0432\u0441\u0442\u0432\u0443\u0439 " * 400, "the end of it all, " * 300,
]  # fmt: skip


def test_guesses_equal_those_of_py3langid():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    peer = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    texts = [sentence for sentences in SENTENCES.values() for sentence in sentences] + ODD
    for text, guesses in zip(texts, identify(texts), strict=True):
        expected = [peer.classify(window) for window in windows_of(text)]
        assert [guess.language for guess in guesses] == [language for language, _ in expected]
        confidences = [confidence for _, confidence in expected]
        assert [guess.confidence for guess in guesses] == pytest.approx(confidences, abs=1e-4)


def test_a_guess_does_not_depend_on_its_neighbours_or_the_process():
    texts = [text for language in ("en", "sv") for text in long_texts(language)] + ODD
    together = identify(texts)
    assert [identify([text])[0] for text in texts] == together
    assert identify(texts[::-1]) == together[::-1]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        halves = list(pool.map(identify, [texts[:20], texts[20:]]))
    assert halves[0] + halves[1] == together


def test_more_windows_than_walk_together(monkeypatch: pytest.MonkeyPatch):
    texts = [sentence for sentences in SENTENCES.values() for sentence in sentences]
    before = identify(texts)
    monkeypatch.setattr("utils.corpus.language._IN_STEP", 7)
    assert identify(texts) == before


def test_windows():
    assert windows_of("a" * 19 + " 123 .") == []
    assert windows_of("a" * 20) == ["a" * 20]
    assert windows_of("a" * 2_999) == ["a" * 2_999]
    text = "a" * 1_000 + "b" * 1_500 + "c" * 1_000
    assert windows_of(text) == ["a" * 1_000, "b" * 1_000, "c" * 1_000]
    assert identify(["", "a b c", "1" * 5_000]) == [[], [], []]


def guesses(*pairs: tuple[str, float]) -> list[Guess]:
    return [Guess(*pair) for pair in pairs]


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (guesses(("en", 0.9)), Verdict("en", 0.9, True)),
        (guesses(("en", 0.6499)), Verdict("en", 0.6499, False)),
        (guesses(("en", 0.65)), Verdict("en", 0.65, True)),
        (guesses(("de", 0.9)), Verdict("de", 0.9, False)),
        (guesses(("en", 0.9), ("de", 1.0), ("en", 0.6)), Verdict("en", 0.75, True)),
        (guesses(("en", 0.9), ("en", 0.3), ("de", 1.0)), Verdict("en", 0.6, False)),
        (guesses(("en", 0.9), ("de", 0.8), ("de", 0.6)), Verdict("de", 0.7, False)),
        (guesses(("en", 0.9), ("de", 0.8), ("fr", 0.6)), Verdict("en", 0.9, False)),
        ([], Verdict("unknown", 0.0, True)),
    ],
)
def test_two_windows_of_three_decide(found: list[Guess], verdict: Verdict):
    assert decide(found, ENGLISH) == verdict


def test_several_languages_may_stay_and_unknown_ones_may_go():
    both = LanguageSettings(("en", "de"))
    assert decide(guesses(("en", 0.9), ("de", 0.8), ("fr", 1.0)), both) == Verdict("en", 0.85, True)
    assert not decide([], LanguageSettings(("en",), keep_unknown=False)).keep
