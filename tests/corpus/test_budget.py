"""Budgets: shares, what is read next, what is taken, refusals with their numbers."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.config.corpus import CorpusConfig
from utils.corpus.budget import Budget, take
from utils.pipeline.errors import DataError

NAMES = ("books", "web", "teacher")


def budget(tokens: int = 6_000, weights: tuple[float, ...] = (3, 2, 1), **changes: object) -> Budget:
    sources = [
        {"name": name, "kind": "local", "paths": ["x"], "weight": weight}
        for name, weight in zip(NAMES, weights, strict=False)
    ]
    asked = {"tokens": tokens, "bytes_per_token": 4.0} | changes
    return Budget.of(CorpusConfig.model_validate({"output": "o", "sources": sources, "budget": asked}))


def test_shares_are_by_weight_in_bytes_or_tokens():
    assert budget().shares([None] * 3) == [12_000, 8_000, 4_000]
    assert budget(bytes_per_token=4.3).shares([None] * 3)[2] == Fraction(4_300)
    assert budget().amount_column == "text_bytes"
    assert budget().tokens(4_003) == 1_000


def test_what_a_source_lacks_goes_to_the_others_as_they_are_weighted():
    short = budget(on_shortfall="redistribute")
    assert short.shares([None, 5_000, None]) == [14_250, 5_000, 4_750]
    assert short.shares([14_000, 5_000, None]) == [14_000, 5_000, 5_000]
    assert budget().shares([None, 5_000, None]) == [12_000, 8_000, 4_000]


@given(
    st.lists(st.floats(0.01, 50), min_size=3, max_size=3),
    st.lists(st.one_of(st.none(), st.integers(0, 50_000)), min_size=3, max_size=3),
)
def test_shares_sum_up_and_ask_no_more_than_there_is(weights: list[float], supply: list[int | None]):
    asked = budget(weights=tuple(weights), on_shortfall="redistribute")
    shares = asked.shares(supply)
    if any(have is None for have in supply) or sum(supply) >= asked.total:
        assert sum(shares) == asked.total
        assert all(have is None or share <= have for share, have in zip(shares, supply, strict=True))


def test_blocks_needed_are_missing_tokens_over_tokens_per_block():
    needed = budget().blocks_needed
    assert needed(Fraction(1_000), 0, 0) == 1
    assert needed(Fraction(1_000), 100, 1) == 10  # 1,020 - 100 at 100 a block, rounded up
    assert needed(Fraction(1_000), 1_000, 10) == 1
    assert needed(Fraction(1_000), 1_020, 10) == 0
    assert needed(Fraction(1_000), 0, 4) == 4


def test_short_supply_is_refused_with_the_numbers():
    asked = budget()
    asked.check([0, 0, 0], [False, False, False], "so far")
    asked.check([12_000, 8_000, 4_000], [True] * 3, "in all")
    with pytest.raises(DataError) as error:
        asked.check([12_000, 6_000, 9_000], [False, True, True], "after deduplication")
    assert str(error.value) == (
        'source "web" (weight 2 of 6) has 1,500 tokens (estimated) after deduplication, '
        "the budget asks for 2,000"
    )
    assert error.value.fix == (
        'set budget.tokens to 4,500 or less, or add text, or set budget.on_shortfall to "redistribute"'
    )
    largest = budget(tokens=4_500)
    largest.check([12_000, 6_000, 9_000], [True] * 3, "now")


def test_redistribution_needs_enough_in_all():
    asked = budget(on_shortfall="redistribute")
    asked.check([24_000, 0, 0], [True] * 3, "now")
    asked.check([0, 0, 0], [True, True, False], "now")
    with pytest.raises(
        DataError, match=r"all sources together have 5,999 tokens \(estimated\) now, the budget"
    ):
        asked.check([23_999, 0, 0], [True] * 3, "now")


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 50)), max_size=40), st.integers(0, 900))
def test_take_is_by_hash_and_within_one_document(documents: list[tuple[int, int]], share: int):
    orders = np.array([order for order, _ in documents], np.uint64)
    amounts = np.array([amount for _, amount in documents], np.uint32)
    taken = take(orders, amounts, Fraction(share) - Fraction(1, 3) if share else Fraction(0))
    total = int(amounts[taken].sum())
    if amounts.sum() >= share:
        assert share <= total < share + (int(amounts[taken].max()) if taken.any() else 1)
    else:
        assert taken.all()
    if taken.any() and not taken.all():
        assert orders[taken].max() <= orders[~taken].min()
