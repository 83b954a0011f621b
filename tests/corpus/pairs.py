"""
Made-up texts of known similarity.

    first, second = pair_at(0.85, seed=3)
"""

import random


def vocabulary(seed: int, count: int) -> list[str]:
    """Words that no other seed has."""
    generator = random.Random(seed)
    return [f"w{generator.getrandbits(40):x}" for _ in range(count)]


def pair_at(similarity: float, seed: int, ngrams: int = 800) -> tuple[str, str]:
    """Two texts whose 5-gram sets have just about this Jaccard similarity: a shared start, different ends."""
    shared = round(2 * ngrams * similarity / (1 + similarity))
    start, first, second = (vocabulary(3 * seed + k, ngrams + 4) for k in range(3))
    rest = ngrams - shared
    return tuple(" ".join(start[: shared + 4] + end[:rest]) for end in (first, second))
