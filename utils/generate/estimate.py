"""
What a run will ask, use, cost and take, before it asks anything: the text of `--dry-run`.

    print(estimate(config).text())

Counts of calls follow from the config; sizes of answers and the time of a call are assumptions, which the
text states. Retries, failed answers and refills beyond `over_generation_buffer` are not in it.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self

from utils.config.answers import TemplateSpec
from utils.config.generate import DatasetSpec, GenerateConfig
from utils.config.providers import ModelSpec, ProviderSpec
from utils.generate.budget import price
from utils.generate.reply import tokens_in
from utils.generate.state import State

ENTRY_TOKENS = 12
"""Assumed length of a subtopic or prompt in a list."""
ANSWER_TOKENS = 250
"""Assumed length of an answer, when max_output_tokens allows it."""
SCORE_TOKENS, REASON_TOKENS = 10, 40
WRAPPING_TOKENS = 10
"""Assumed tokens that a chat template adds to a request."""
FIRST_TOKEN_SECONDS, TOKENS_PER_SECOND = 0.5, 50.0
"""Assumed speed of one call to an API."""
OFFLINE_CALLS_PER_SECOND = 1000.0
"""Assumed speed of an offline teacher, however many calls are in flight."""


@dataclass(frozen=True)
class Part:
    """The calls of one step of a dataset to one model; tokens are those of one call."""

    dataset: str
    step: str
    model: str
    calls: int
    prompt_tokens: int
    completion_tokens: int

    @property
    def tokens(self) -> int:
        return self.calls * (self.prompt_tokens + self.completion_tokens)


@dataclass(frozen=True)
class Made:
    """What earlier runs of a dataset have: accepted rows, subtopics, and prompts that wait to become rows."""

    rows: int = 0
    subtopics: int = 0
    prompts: int = 0

    @classmethod
    def of(cls, state: State) -> Self:
        """What the decisions about a dataset came to."""
        waiting = sum(subtopic.reserve for subtopic in state.subtopics)
        return cls(state.rows, len(state.subtopics), waiting)


NOTHING: Mapping[str, Made] = {}


@dataclass(frozen=True)
class Estimate:
    """The parts of a run with the config that prices and limits come from, and what is not in it: `made`."""

    config: GenerateConfig
    parts: list[Part]
    made: Mapping[str, Made] = field(default_factory=dict)

    @property
    def calls(self) -> int:
        return sum(part.calls for part in self.parts)

    @property
    def tokens(self) -> int:
        return sum(part.tokens for part in self.parts)

    @property
    def cost(self) -> float:
        return sum(self._cost(part, part.completion_tokens) for part in self.parts)

    @property
    def highest_cost(self) -> float:
        """If every answer were as long as its model may write."""
        return sum(self._cost(part, self._model(part).max_output_tokens) for part in self.parts)

    @property
    def minutes(self) -> float:
        """The busiest provider's time, and once through all steps of a dataset."""
        busiest = max((self._seconds_at(name) for name in self.config.providers), default=0.0)
        chains = dict.fromkeys(self.config.datasets, 0.0)
        for part in self.parts:
            chains[part.dataset] += self._call_seconds(part)
        return (busiest + max(chains.values())) / 60

    def text(self) -> str:
        """A table of the parts, the totals, and what was assumed."""
        rows = [("dataset", "step", "model", "calls", "prompt tok", "answer tok", "cost")]
        for part in self.parts:
            sizes = (part.calls, part.calls * part.prompt_tokens, part.calls * part.completion_tokens)
            cost = f"{self._cost(part, part.completion_tokens):,.4f}"
            rows.append((part.dataset, part.step, part.model, *(f"{size:,}" for size in sizes), cost))
        return "\n".join([*_aligned(rows), *self._totals()])

    def _totals(self) -> Iterator[str]:
        minutes = f"{self.minutes:.1f} minutes" if self.minutes >= 1 else f"{self.minutes * 60:.0f} seconds"
        yield f"about {self.calls:,} calls, {self.tokens:,} tokens, {minutes}"
        most = f"{self.highest_cost:,.4g} if every answer takes max_output_tokens"
        yield f"about {self.cost:,.4g} in the currency of the prices; {most}"
        budget = self.config.budget
        reached = {
            "max_cost": budget.max_cost and self.cost > budget.max_cost,
            "max_tokens": budget.max_tokens and self.tokens > budget.max_tokens,
            "max_minutes": budget.max_minutes and self.minutes > budget.max_minutes,
        }
        for name in (name for name, likely in reached.items() if likely):
            yield f"budget.{name} = {getattr(budget, name):,} will be reached before the end"
        yield (
            f"assumed: {ANSWER_TOKENS} tokens an answer, {ENTRY_TOKENS} an entry of a list, "
            f"{FIRST_TOKEN_SECONDS:g} s + 1 s per {TOKENS_PER_SECOND:g} tokens a call; no retries or failures"
        )
        if have := [f"{name} {made.rows:,}" for name, made in self.made.items() if made.rows]:
            yield f"not in it are rows that are there: {', '.join(have)}"
        else:
            yield "all of it for a new dataset; what an earlier run has in its journal is not asked again"

    def _model(self, part: Part) -> ModelSpec:
        return self.config.models[part.model]

    def _cost(self, part: Part, completion_tokens: int) -> float:
        return part.calls * price(self._model(part), part.prompt_tokens, completion_tokens)

    def _is_offline(self, part: Part) -> bool:
        return self.config.providers[self._model(part).provider].kind == "offline-teacher"

    def _call_seconds(self, part: Part) -> float:
        if self._is_offline(part):
            return 1 / OFFLINE_CALLS_PER_SECOND
        return FIRST_TOKEN_SECONDS + part.completion_tokens / TOKENS_PER_SECOND

    def _seconds_at(self, provider: str) -> float:
        """Time of a provider's calls under its limits and those of its models."""
        own = [part for part in self.parts if self._model(part).provider == provider]
        found = [self._seconds_under(self.config.providers[provider], own)]
        for name in {part.model for part in own}:
            parts = [part for part in own if part.model == name]
            found.append(self._seconds_under(self.config.models[name], parts))
        return max(found)

    def _seconds_under(self, limits: ProviderSpec | ModelSpec, parts: list[Part]) -> float:
        """How long the calls take under one set of limits, the tightest of which decides."""
        calls, tokens = sum(part.calls for part in parts), sum(part.tokens for part in parts)
        work = sum(part.calls * self._call_seconds(part) for part in parts)
        at_once = 1 if all(map(self._is_offline, parts)) else limits.max_in_flight
        return max(
            work / at_once if at_once else 0.0,
            60 * calls / limits.rate_limit_per_minute if limits.rate_limit_per_minute else 0.0,
            60 * tokens / limits.tokens_per_minute if limits.tokens_per_minute else 0.0,
        )


def estimate(config: GenerateConfig, num_topics: int = 0, made: Mapping[str, Made] = NOTHING) -> Estimate:
    """
    The estimate of a run; `num_topics` is how many subtopics a topics file gives, `made` what earlier runs
    have that still counts, by dataset.
    """
    there = {name: made.get(name, Made()) for name in config.datasets}
    parts = [part for name, have in there.items() for part in _parts_of(config, name, num_topics, have)]
    return Estimate(config, parts, made)


def _parts_of(config: GenerateConfig, name: str, num_topics: int, made: Made) -> Iterator[Part]:
    spec = config.datasets[name]
    num_subtopics = spec.subtopics_for(num_topics)
    rows = (spec.num_rows or num_subtopics * spec.num_prompts_per_subtopic) - made.rows
    if rows <= 0:
        return
    if not config.prompts_file:
        if not config.topics_file and num_subtopics > made.subtopics:
            yield _list_part(config, name, "subtopics", 1, num_subtopics - made.subtopics)
        if (prompts := rows - made.prompts) > 0:
            num_lists = min(num_subtopics, prompts)
            yield _list_part(config, name, "prompts", num_lists, math.ceil(prompts / num_lists))
    sides = {"chosen": spec.main_model} | ({"rejected": spec.rejected_model} if spec.has_rejected else {})
    for side, model in sides.items():
        asked = _template_tokens(config.template(name, side)) + ENTRY_TOKENS
        yield Part(name, side, model, rows, asked, _answer_tokens(config.models[model]))
    if spec.judged:
        yield from _judge_parts(config, name, spec, rows)


def _list_part(config: GenerateConfig, name: str, step: str, num_lists: int, num_entries: int) -> Part:
    """Lists are asked for in calls of `entries_per_call`; each leaves out what is known by then."""
    refill, model = config.refill, config.datasets[name].main_model
    wanted = math.ceil(num_entries * (1 + refill.over_generation_buffer))
    calls = math.ceil(wanted / refill.entries_per_call)
    excluded = min(refill.max_excluded, num_entries) if calls > 1 else 0
    asked = _template_tokens(config.template(name, step)) + ENTRY_TOKENS * (1 + excluded)
    answer = min(math.ceil(wanted / calls) * ENTRY_TOKENS, config.models[model].max_output_tokens)
    return Part(name, step, model, num_lists * calls, asked, answer)


def _judge_parts(config: GenerateConfig, name: str, spec: DatasetSpec, rows: int) -> Iterator[Part]:
    judge, wanted, both = config.judge, spec.judge, spec.mode == "mo_dpo" or spec.judge.min_margin != "off"
    answers = (both or wanted.min_chosen != "off") + (both or wanted.max_rejected != "off")
    rubric = sum(tokens_in(len(criterion.description.encode())) for criterion in judge.criteria)
    seen = _answer_tokens(config.models[spec.main_model]) + rubric + ENTRY_TOKENS
    asked = _template_tokens(config.templates[judge.template]) + seen
    said = len(judge.criteria) * SCORE_TOKENS + judge.with_reasons * REASON_TOKENS
    yield Part(name, "judge", judge.model, rows * answers * judge.num_judges, asked, said)
    if spec.judge.pairwise:
        asked = _template_tokens(config.templates[judge.pair_template]) + 2 * seen
        yield Part(name, "judge_pair", judge.model, 2 * rows * judge.num_judges, asked, SCORE_TOKENS)


def _answer_tokens(model: ModelSpec) -> int:
    return min(ANSWER_TOKENS, model.max_output_tokens)


def _template_tokens(template: TemplateSpec) -> int:
    return WRAPPING_TOKENS + tokens_in(len((template.system + template.user).encode()))


def _aligned(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Columns side by side: names to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            text.ljust(width) if column < 3 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
