"""
What a run used and what it cost, by provider, model and step; and when enough is spent.

    budget = Budget(config.budget, config.models)
    budget.charge("lab", "main", "chosen", reply)       # recorded replies too: they were paid for
    if reason := budget.reached():                      # "max_cost 5 reached: 5.02 spent"
        ...
    stage.run_info(usage=budget.table())

Cost and tokens count over all runs of an artifact, because each run charges the recorded replies again;
minutes count for one run.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from utils.config.providers import BudgetSpec, ModelSpec
from utils.generate.reply import Reply

TOKENS_OF_A_PRICE = 1_000_000


@dataclass
class Usage:
    """Calls answered, their tokens, and what they cost in the currency of the prices."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def add(self, reply: Reply, cost: float, calls: int) -> None:
        self.calls += calls
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens
        self.cost += cost

    def shown(self) -> dict[str, int | float]:
        """For the manifest; cost to a millionth."""
        counts = {name: getattr(self, name) for name in ("calls", "prompt_tokens", "completion_tokens")}
        return counts | {"cost": round(self.cost, 6)}


class Budget:
    """Sums usage and says when a limit of the config is reached."""

    def __init__(
        self,
        spec: BudgetSpec,
        models: Mapping[str, ModelSpec],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spec, self._models, self._clock = spec, models, clock
        self._started = clock()
        self._parts: dict[tuple[str, str, str], Usage] = {}
        self.total = Usage()

    def charge(self, provider: str, model: str, step: str, reply: Reply, calls: int = 1) -> None:
        """
        Count one reply, or the sum of the tokens of several; `model` is its name in the config, which knows
        the prices.
        """
        cost = price(self._models[model], reply.prompt_tokens, reply.completion_tokens)
        self._parts.setdefault((provider, model, step), Usage()).add(reply, cost, calls)
        self.total.add(reply, cost, calls)

    def reached(self) -> str:
        """Which limit is reached, and by how much; "" while there is something left."""
        spec, total = self._spec, self.total
        minutes = (self._clock() - self._started) / 60
        if spec.max_cost and total.cost >= spec.max_cost:
            return f"max_cost {spec.max_cost:g} reached: {total.cost:.4g} spent"
        if spec.max_tokens and total.tokens >= spec.max_tokens:
            return f"max_tokens {spec.max_tokens:,} reached: {total.tokens:,} used"
        if spec.max_minutes and minutes >= spec.max_minutes:
            return f"max_minutes {spec.max_minutes:g} reached"
        return ""

    def table(self) -> dict[str, dict[str, dict[str, dict[str, int | float]]]]:
        """provider -> model -> step -> counts and cost, each level in the order of names."""
        found: dict[str, dict[str, dict[str, dict[str, int | float]]]] = {}
        for (provider, model, step), usage in sorted(self._parts.items()):
            found.setdefault(provider, {}).setdefault(model, {})[step] = usage.shown()
        return found


def price(model: ModelSpec, prompt_tokens: float, completion_tokens: float) -> float:
    """What so many tokens cost, in the currency of `budget.max_cost`."""
    cost = prompt_tokens * model.prompt_price + completion_tokens * model.completion_price
    return cost / TOKENS_OF_A_PRICE
