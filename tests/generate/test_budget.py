"""Counts, costs and the end of the money."""

import pytest

from tests.generate.providers import model
from utils.config.providers import BudgetSpec
from utils.generate.budget import Budget, price
from utils.generate.reply import Reply

MODELS = {
    "main": model(prompt_price=2.0, completion_price=10.0),
    "judge": model(prompt_price=0.5, completion_price=1.0),
    "free": model(),
}


def reply(prompt: int, completion: int) -> Reply:
    return Reply("text", "", "stop", prompt, completion)


class Clock:
    """Seconds that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def budget(clock: Clock | None = None, **limits: float) -> Budget:
    return Budget(BudgetSpec(**limits), MODELS, clock or Clock())


def test_the_price_is_per_million_tokens():
    assert price(MODELS["main"], 1_000_000, 0) == 2 and price(MODELS["main"], 0, 500_000) == 5


def test_usage_by_provider_model_and_step():
    spent = budget()
    for _ in range(3):
        spent.charge("lab", "main", "chosen", reply(100, 200))
    spent.charge("lab", "main", "prompts", reply(10, 20))
    spent.charge("other", "judge", "judge", reply(1000, 10))
    spent.charge("lab", "free", "rejected", reply(7, 8))
    assert spent.table() == {
        "lab": {
            "free": {"rejected": {"calls": 1, "prompt_tokens": 7, "completion_tokens": 8, "cost": 0.0}},
            "main": {
                "chosen": {"calls": 3, "prompt_tokens": 300, "completion_tokens": 600, "cost": 0.0066},
                "prompts": {"calls": 1, "prompt_tokens": 10, "completion_tokens": 20, "cost": 0.00022},
            },
        },
        "other": {
            "judge": {"judge": {"calls": 1, "prompt_tokens": 1000, "completion_tokens": 10, "cost": 0.00051}}
        },
    }
    assert list(spent.table()["lab"]) == ["free", "main"]
    assert (spent.total.calls, spent.total.tokens) == (6, 1955)
    assert spent.total.cost == pytest.approx(0.0066 + 0.00022 + 0.00051)


def test_without_limits_nothing_is_ever_reached():
    clock = Clock()
    spent = budget(clock)
    spent.charge("lab", "main", "chosen", reply(10**9, 10**9))
    clock.now += 10**9
    assert spent.reached() == ""


@pytest.mark.parametrize(
    "limits, reason",
    [
        ({"max_cost": 0.003}, "max_cost 0.003 reached: 0.0033 spent"),
        ({"max_tokens": 450}, "max_tokens 450 reached: 450 used"),
    ],
)
def test_money_and_tokens_end(limits, reason):
    spent = budget(**limits)
    spent.charge("lab", "main", "chosen", reply(50, 100))
    assert spent.reached() == ""
    spent.charge("lab", "main", "chosen", reply(100, 200))
    assert spent.reached() == reason


def test_minutes_count_from_the_start_of_this_run():
    clock = Clock()
    spent = budget(clock, max_minutes=1.5)
    clock.now += 89
    assert spent.reached() == ""
    clock.now += 1
    assert spent.reached() == "max_minutes 1.5 reached"
