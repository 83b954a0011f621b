"""
The judge of one dataset: scores by the user's rubric, and whether a row may stay.

Answers are scored by as many judges as the rubric wants, both of a pair at the same time; but where one of
them can decide the matter (`min_chosen`, `max_rejected`) it goes first, and the other is asked about only if
it must be. What is said of a row depends on the replies alone, never on which came first.

    judge = Judge(config.judge, config.templates, calls.ask, "pairs", "dpo")
    judgement = await judge.judge_row(variables, "Four.", "Five.", FilterSpec(min_margin=1.0))
    judgement.verdict, judgement.margin        # ("keep", 3.5)
"""

import asyncio
from collections import Counter
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, Literal

from utils.config.answers import FilterSpec, JudgeSpec, TemplateSpec
from utils.generate.errors import Draining
from utils.generate.judge_calls import Ask, Fault, JudgeCalls, comparing, scoring
from utils.pipeline.errors import StageError

Scores = dict[str, float]
Side = Scores | Fault | None
"""What is known of one answer; None where nothing need be."""
_DIGITS = 6
"""Totals are rounded to so many, so that 3.9999999 misses no threshold of 4."""
_EXCERPT_CHARACTERS = 80


@dataclass(frozen=True)
class Judgement:
    """
    What became of a row. `reason` of a drop: min_chosen, max_rejected, min_margin, rejected_preferred,
    judges_disagree, judge_error; a side that the reason does not rest on has no scores. Totals are weighted
    means, margin = chosen_total - rejected_total; all three are 0 where there is nothing to tell.
    """

    verdict: Literal["keep", "drop", "unscored"]
    reason: str = ""
    chosen_scores: Scores = field(default_factory=dict)
    rejected_scores: Scores = field(default_factory=dict)
    chosen_total: float = 0.0
    rejected_total: float = 0.0
    margin: float = 0.0


class Judge:
    """Judges the rows of one dataset; `ask` is the `ask` of the run's calls."""

    def __init__(
        self, spec: JudgeSpec, templates: Mapping[str, TemplateSpec], ask: Ask, dataset: str, mode: str
    ) -> None:
        self._spec, self._templates = spec, templates
        self._calls = JudgeCalls(spec, ask, dataset)
        self._must_score = mode == "mo_dpo"

    async def judge_row(
        self, variables: Mapping[str, object], chosen: str, rejected: str | None, filter: FilterSpec
    ) -> Judgement:
        """
        Scores and verdict; only answers whose scores the filter or the mode needs are scored.

        `variables` are those of every template. StageError when scores cannot be had and `on_judge_error` is
        "fail".
        """
        sides = await self._sides(variables, chosen, rejected, filter)
        judgement = self._by_scores(*sides, filter, variables)
        if judgement.verdict != "keep" or rejected is None or not filter.pairwise:
            return judgement
        return await self._by_comparison(judgement, variables, chosen, rejected)

    async def _sides(
        self, variables: Mapping[str, object], chosen: str, rejected: str | None, filter: FilterSpec
    ) -> list[Side]:
        """The side that may decide comes first; what it decides must be what `_by_scores` looks at first."""
        both = self._must_score or filter.min_margin != "off"
        needs_chosen = both or filter.min_chosen != "off"
        needs_rejected = both or filter.max_rejected != "off"

        async def chosen_side() -> Side:
            return await self._scores(variables, chosen) if needs_chosen else None

        async def rejected_side() -> Side:
            if rejected is None or not needs_rejected:
                return None
            return await self._scores(variables, rejected)

        if filter.min_chosen != "off":
            first = await chosen_side()
            return [first, None if self._is_low(first, filter) else await rejected_side()]
        if filter.max_rejected != "off":
            second = await rejected_side()
            return [None if self._is_high(second, filter) else await chosen_side(), second]
        return await _all(chosen_side(), rejected_side())

    async def _scores(self, variables: Mapping[str, object], response: str) -> Scores | Fault:
        """The median of every criterion over all judges, each of which must have an opinion."""
        question = scoring(self._spec, self._templates[self._spec.template], variables, response)
        judges = range(self._spec.num_judges)
        said = await _all(*(self._calls.answer(question, number) for number in judges))
        if faults := [opinion for opinion in said if isinstance(opinion, Fault)]:
            return faults[0]
        return {name: median(opinion[name] for opinion in said) for name in said[0]}

    def _total(self, scores: Scores) -> float:
        weights = {criterion.name: criterion.weight for criterion in self._spec.criteria}
        total = sum(weights[name] * score for name, score in scores.items()) / sum(weights.values())
        return round(total, _DIGITS)

    def _is_low(self, chosen: Side, filter: FilterSpec) -> bool:
        wanted = filter.min_chosen
        return isinstance(chosen, dict) and wanted != "off" and self._total(chosen) < wanted

    def _is_high(self, rejected: Side, filter: FilterSpec) -> bool:
        wanted = filter.max_rejected
        return isinstance(rejected, dict) and wanted != "off" and self._total(rejected) > wanted

    def _by_scores(
        self, chosen: Side, rejected: Side, filter: FilterSpec, variables: Mapping[str, object]
    ) -> Judgement:
        if self._is_low(chosen, filter):
            return Judgement("drop", "min_chosen", chosen, chosen_total=self._total(chosen))
        if self._is_high(rejected, filter):
            total = self._total(rejected)
            return Judgement("drop", "max_rejected", rejected_scores=rejected, rejected_total=total)
        for side in (chosen, rejected):
            if isinstance(side, Fault):
                return self._without(side, Judgement("keep"), variables)
        totals = [self._total(side) if side else 0.0 for side in (chosen, rejected)]
        margin = round(totals[0] - totals[1], _DIGITS) if chosen and rejected else 0.0
        is_close = filter.min_margin != "off" and margin < filter.min_margin
        reason = "min_margin" if is_close else ""
        return Judgement("drop" if reason else "keep", reason, chosen or {}, rejected or {}, *totals, margin)

    async def _by_comparison(
        self, judgement: Judgement, variables: Mapping[str, object], chosen: str, rejected: str
    ) -> Judgement:
        """
        Every judge is asked in both orders: one that likes the first place best names two different answers.
        What more than half of them say in both orders counts.
        """
        template = self._templates[self._spec.pair_template]
        pairs = ((chosen, rejected), (rejected, chosen))
        questions = [comparing(self._spec, template, variables, *pair) for pair in pairs]
        judges = range(self._spec.num_judges)
        asked = [self._calls.answer(question, number) for number in judges for question in questions]
        said = await _all(*asked)
        if faults := [opinion for opinion in said if isinstance(opinion, Fault)]:
            return self._without(faults[0], judgement, variables)
        votes = Counter(zip(said[::2], said[1::2], strict=True))
        if 2 * votes["A", "B"] > len(judges):
            return judgement
        reason = "rejected_preferred" if 2 * votes["B", "A"] > len(judges) else "judges_disagree"
        return replace(judgement, verdict="drop", reason=reason)

    def _without(self, fault: Fault, judgement: Judgement, variables: Mapping[str, object]) -> Judgement:
        """What becomes of a row of which the judge did not say enough."""
        if self._spec.on_judge_error == "fail":
            row = str(variables["prompt"])[:_EXCERPT_CHARACTERS]
            raise StageError(
                f'the judge "{self._spec.model}" gave no usable opinion of "{row}": {fault.text}',
                fix='mend the template or the model, or set judge.on_judge_error to "retry_then_drop"',
            )
        is_kept = self._spec.on_judge_error == "keep_unscored" and not self._must_score
        return replace(judgement, verdict="unscored" if is_kept else "drop", reason="judge_error")


async def _all(*asked: Coroutine[Any, Any, Any]) -> list[Any]:
    """All answers, each waited for even when one raises: it is paid for, and may say why a run drains."""
    answers = await asyncio.gather(*asked, return_exceptions=True)
    errors = [answer for answer in answers if isinstance(answer, BaseException)]
    if errors:
        raise min(errors, key=lambda error: isinstance(error, Draining))
    return answers
