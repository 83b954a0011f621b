"""The compact index against exact Jaccard similarity and against datasketch."""

import random

import numpy as np
import pytest
from datasketch import MinHash
from hypothesis import given
from hypothesis import strategies as st

from utils.generate.similarity import (
    NUM_HASHES,
    Known,
    SignatureIndex,
    band_rows,
    similarity,
    sketch_of,
)

VOCABULARY = [f"word{number}" for number in range(2000)]
MARGIN = 0.1
"""More than twice the standard error of an estimate from 128 hashes."""


def text(rng: random.Random, length: int) -> list[str]:
    return [rng.choice(VOCABULARY) for _ in range(length)]


def altered(rng: random.Random, words: list[str], share: float) -> list[str]:
    return [rng.choice(VOCABULARY) if rng.random() < share else word for word in words]


def jaccard(first: list[str], second: list[str]) -> float:
    one, other = (set(zip(words, words[1:], words[2:], strict=False)) for words in (first, second))
    return len(one & other) / len(one | other)


def pairs(count: int, seed: int = 0) -> list[tuple[list[str], list[str], float]]:
    """Texts and alterations of them, from nearly equal to unlike, with their exact similarity."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        first = text(rng, rng.randrange(10, 120))
        second = altered(rng, first, rng.choice([0.005, 0.01, 0.02, 0.05, 0.1, 0.3]))
        found.append((first, second, jaccard(first, second)))
    return found


def test_estimates_are_as_good_as_those_of_datasketch():
    ours, theirs = [], []
    for first, second, exact in pairs(300):
        one, other = (sketch_of(" ".join(words)).signature for words in (first, second))
        ours.append(similarity(one, other) - exact)
        hashes = []
        for words in (first, second):
            sketch = MinHash(num_perm=NUM_HASHES)
            sketch.update_batch(
                [" ".join(gram).encode() for gram in zip(words, words[1:], words[2:], strict=False)]
            )
            hashes.append(sketch)
        theirs.append(hashes[0].jaccard(hashes[1]) - exact)
    assert abs(np.mean(ours)) < 0.01 and np.std(ours) < 1.25 * np.std(theirs) + 0.002


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.9])
def test_pairs_above_the_threshold_are_found_and_those_below_are_not(threshold):
    rng = random.Random(1)
    others = [sketch_of(" ".join(text(rng, 40))) for _ in range(3000)]
    made = pairs(600, seed=2)
    known = Known(threshold)
    for sketch in others:
        known.add(sketch)
    for first, _, _ in made:
        known.add(sketch_of(" ".join(first)))
    found = [(known.holds(sketch_of(" ".join(second))), exact) for _, second, exact in made if exact < 1]
    above = [hit for hit, exact in found if exact >= threshold + MARGIN * (1 - threshold)]
    below = [hit for hit, exact in found if exact < threshold - MARGIN]
    assert len(above) >= 30 and len(below) >= 30
    assert np.mean(above) > 0.85 and np.mean(below) < 0.01
    assert not any(known.holds(sketch_of(" ".join(text(rng, 40)))) for _ in range(500))


def test_equal_texts_are_known_in_any_dress():
    known = Known(1)
    known.add(sketch_of("What does a cow say?"))
    assert known.holds(sketch_of("  what DOES a cow say")) and not known.holds(
        sketch_of("What does a dog say?")
    )
    assert not Known(0.1).holds(sketch_of("anything at all"))


def test_texts_of_one_or_two_words_are_compared_as_a_whole():
    known = Known(0.3)
    known.add(sketch_of("red apples"))
    assert not sketch_of("red apples").signature
    assert not known.holds(sketch_of("red pears")) and known.holds(sketch_of("Red apples!"))


def test_scripts_without_blanks_have_signatures_too():
    first = sketch_of("\u732b\u306f\u9b5a\u304c\u597d\u304d\u3067\u3059" * 3)
    second = sketch_of("\u732b\u306f\u9b5a\u304c\u597d\u304d\u3067\u3059\u3002" * 3)
    assert first.signature and similarity(first.signature, second.signature) > 0.5


def test_a_sketch_is_the_same_everywhere():
    sketch = sketch_of("What does a cow say when it is hungry?")
    assert (sketch.key, sketch.signature[:8].hex()) == (4998624318289550170, "fb3a081434ec0907")


@given(st.text(max_size=200))
def test_any_text_has_a_sketch_that_it_matches(written):
    known = Known(0.5)
    known.add(sketch_of(written))
    assert known.holds(sketch_of(written))


def test_long_texts_are_worked_off_in_blocks():
    rng = random.Random(3)
    words = text(rng, 10_000)
    near = words[:5000] + ["other"] + words[5000:]
    assert similarity(sketch_of(" ".join(words)).signature, sketch_of(" ".join(near)).signature) > 0.97


@pytest.mark.parametrize("threshold", [0.15, 0.5, 0.7, 0.9])
def test_loading_at_once_is_adding_one_by_one(threshold):
    rng = random.Random(4)
    signatures = [sketch_of(" ".join(text(rng, 12))).signature for _ in range(2500)]
    asked = [sketch_of(" ".join(altered(rng, text(rng, 12), 0.1))).signature for _ in range(50)] + signatures[
        ::50
    ]
    single, at_once, mixed = (SignatureIndex(threshold) for _ in range(3))
    for signature in signatures:
        single.add(signature)
    at_once.load(b"".join(signatures))
    for signature in signatures[:100]:
        mixed.add(signature)
    mixed.load(b"".join(signatures[100:2000]))
    for signature in signatures[2000:]:
        mixed.add(signature)
    answers = [[index.holds(signature) for signature in asked] for index in (single, at_once, mixed)]
    assert answers[0] == answers[1] == answers[2] and len(single) == len(at_once) == len(mixed) == 2500
    assert any(answers[0]) and all(answers[0][50:])


def test_an_entry_takes_few_bytes():
    """datasketch's own index takes more than 1,000."""
    index = SignatureIndex(0.8)
    index.load(np.random.default_rng(0).integers(0, 256, (8191, NUM_HASHES), dtype=np.uint8).tobytes())
    held = index._signatures.nbytes + index._heads.nbytes + index._next.nbytes + index._far.nbytes
    assert held / len(index) < 390


@pytest.mark.parametrize("crowd", [1, 7, 8, 9, 127, 128, 300])
@pytest.mark.parametrize("at_once", [False, True])
def test_the_latest_128_of_a_crowded_bucket_are_looked_at(crowd, at_once):
    others = np.random.default_rng(0).integers(0, 256, (crowd, NUM_HASHES), dtype=np.uint8)
    others[:, :8] = 7  # one band of eight bytes in common
    index = SignatureIndex(0.8)
    if at_once:
        index.load(others.tobytes())
    else:
        for signature in others:
            index.add(signature.tobytes())
    asked = bytes([7] * 8 + [0] * (NUM_HASHES - 8))
    heads = index._heads[index._places(asked)]
    reached = index._sharing_a_band(heads, np.frombuffer(asked, np.uint64))
    assert sorted(reached.tolist()) == list(range(max(0, crowd - 128), crowd))
    assert [index.holds(signature.tobytes()) for signature in others] == [True] * crowd


def test_bands_follow_the_threshold():
    assert [band_rows(threshold) for threshold in (0.95, 0.8, 0.6, 0.3, 0.05)] == [8, 8, 4, 2, 1]
