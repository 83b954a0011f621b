"""
Config parts for what makes an answer good enough: checks, duplicates, the judge's rubric, templates.

    {"validation": {"min_words": 3},
     "judge": {"criteria": [{"name": "correct", "description": "Is it right?"}]}}

Shared by stage 10 and by `tools/transform.py`.
"""

import itertools
import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from utils.config.providers import LimitsSpec, Name, within
from utils.pipeline.config import Runtime, Section

VARIABLES = ("main_topic", "subtopic", "prompt", "count", "exclude", "is_retry", "index")
"""What every template may use; what a step does not have is empty there."""
VARIANTS: dict[str, tuple[object, ...]] = {
    "subtopic": ("subtopic", ""),
    "count": (1, 50),
    "exclude": (["known"], [], ["known", "more", "most"]),
    "is_retry": (False, True),
    "index": (0, 1),
    "other_response": ("other", ""),
    "with_reasons": (False, True),
}
"""Values that decide what a template says in another step or a later call, tried in every combination."""
JUDGE_VARIABLES = (*VARIABLES, "response", "other_response", "criteria", "with_reasons")
"""What the judge's template may use besides; `other_response` is "" unless two answers are compared."""
Threshold = float | Literal["off"]


class TemplateSpec(Section):
    """A jinja template (sandboxed) for one step; available everywhere: the names in `VARIABLES`."""

    system: str = ""
    """System message; "" sends none."""
    user: str = Field(min_length=1)
    """User message."""


class ValidationSpec(Section):
    """What an answer must be to become part of a row."""

    attempts_per_row: int = Field(default=2, ge=1, le=20)
    """Answers asked for one prompt before it is replaced by another."""
    accept_truncated: bool = False
    """Keep answers that ended at max_output_tokens."""
    refusals: bool = True
    """Reject answers that decline in English ("I'm sorry, but I cannot"); not asked of rejected answers."""
    refusal_patterns: list[str] = []
    """More beginnings that count as declining: regular expressions, matched at the start, case ignored."""
    min_characters: int = Field(default=1, ge=1)
    """Shortest answer in characters."""
    max_characters: int = Field(default=0, ge=0)
    """Longest answer in characters; 0 = no limit."""
    min_words: int = Field(default=0, ge=0)
    """Shortest answer in words."""
    max_words: int = Field(default=0, ge=0)
    """Longest answer in words; 0 = no limit."""
    max_repetition: float = Field(default=0.5, gt=0, le=1)
    """Largest share of an answer's word 4-grams that one of them may have, from 40 words on; 1 = no check."""
    max_similarity: float = Field(default=0.9, gt=0, le=1)
    """Largest word 3-gram Jaccard similarity of a chosen and a rejected answer; 1 = only equality counts."""
    languages: list[str] = []
    """ISO 639-1 codes of accepted languages, found offline from 20 words on; [] = all."""
    forbidden_patterns: list[str] = []
    """Regular expressions that must not occur in an answer."""
    must_match: str = ""
    """A regular expression that must occur in an answer; "" = none. Not asked of rejected answers."""

    @field_validator("languages")
    @classmethod
    def _can_be_found(cls, value: list[str]) -> list[str]:
        """py3langid, whose model takes most of a second to load, is loaded only by configs that use it."""
        if value:
            import py3langid

            known = sorted(name for name, _ in py3langid.rank(""))
            if unknown := [name for name in value if name not in known]:
                raise ValueError(f'"{unknown[0]}" is no language that can be told ({", ".join(known)})')
        return value

    @field_validator("refusal_patterns", "forbidden_patterns", "must_match")
    @classmethod
    def _compiles(cls, value: list[str] | str) -> list[str] | str:
        for pattern in [value] if isinstance(value, str) else value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f'"{pattern}" is not a regular expression: {error}') from None
        return value


class DuplicatesSpec(Section):
    """From which estimated Jaccard similarity of word 3-grams two units count as one; 1 = only equal ones."""

    subtopics: float = Field(default=0.8, gt=0, le=1)
    """For subtopics of a dataset."""
    prompts: float = Field(default=0.8, gt=0, le=1)
    """For prompts of a dataset."""
    rows: float = Field(default=0.9, gt=0, le=1)
    """For rows: the text in mode `text`, else the prompt together with its answers."""
    exclude_file: Runtime[str] = ""
    """
    File with texts, one per line, that no subtopic, no prompt and no text of mode `text` may repeat; answers
    to prompts are not compared. Enters the key by content.
    """


class Criterion(Section):
    """One thing that the judge scores."""

    name: Name
    """Name in rows and reports."""
    description: str = Field(min_length=1)
    """What the judge is told about it."""
    weight: float = Field(default=1.0, gt=0)
    """Share in the total, relative to the other criteria."""
    lowest: float = 1.0
    """Worst score."""
    highest: float = 5.0
    """Best score."""

    @model_validator(mode="after")
    def _range_is_one(self) -> Self:
        if self.lowest >= self.highest:
            raise ValueError(f"{self.name}: lowest {self.lowest:g} must be below highest {self.highest:g}")
        return self


class JudgeSpec(Section):
    """The rubric: total = mean of the scores, weighted; margin = chosen total - rejected total."""

    model: str = "judge"
    """Name of an entry of `models`."""
    template: str = "judge"
    """Template of a scoring call."""
    pair_template: str = "judge_pair"
    """Template of a call that compares two answers (`pairwise`)."""
    criteria: list[Criterion] = []
    """What is scored; names differ."""
    with_reasons: bool = False
    """Ask for a sentence of reasons before the scores; costs tokens, often scores better."""
    num_judges: int = Field(default=1, ge=1, le=15)
    """Opinions of each answer, whose median counts by criterion, and of each pair that is compared."""
    on_judge_error: Literal["retry_then_drop", "keep_unscored", "fail"] = "retry_then_drop"
    """What becomes of a row whose scores cannot be had; mo_dpo rows are never kept unscored."""

    @property
    def lowest_total(self) -> float:
        return self._mean([criterion.lowest for criterion in self.criteria])

    @property
    def highest_total(self) -> float:
        return self._mean([criterion.highest for criterion in self.criteria])

    def _mean(self, values: list[float]) -> float:
        weights = [criterion.weight for criterion in self.criteria]
        return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [criterion.name for criterion in self.criteria]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f'two criteria are called "{doubled[0]}"')
        return self


class FilterSpec(Section):
    """What the judge must say of a row for it to be kept; "off" asks nothing."""

    min_chosen: Threshold = "off"
    """Lowest total of the chosen answer."""
    max_rejected: Threshold = "off"
    """Highest total of the rejected answer."""
    min_margin: Threshold = "off"
    """Lowest margin."""
    pairwise: bool = False
    """
    Also ask each judge twice, with the order swapped, which answer is better; keep a pair if more than half
    of the judges name the chosen one both times.
    """

    @property
    def active(self) -> bool:
        thresholds = (self.min_chosen, self.max_rejected, self.min_margin)
        return self.pairwise or any(value != "off" for value in thresholds)


def check_filter(where: str, filter: FilterSpec, judge: JudgeSpec, has_rejected: bool) -> None:
    """ValueError for a threshold that no total can meet or miss, or that has no answer to look at."""
    if filter.pairwise and not has_rejected:
        raise ValueError(f"{where}.pairwise: this mode has no rejected answer")
    low, high = judge.lowest_total, judge.highest_total
    ranges = {"min_chosen": (low, high), "max_rejected": (low, high), "min_margin": (low - high, high - low)}
    for name, (least, most) in ranges.items():
        value = getattr(filter, name)
        if value == "off":
            continue
        if name != "min_chosen" and not has_rejected:
            raise ValueError(f"{where}.{name}: this mode has no rejected answer")
        if not least <= value <= most:
            raise ValueError(f"{where}.{name}: {value:g} is outside the rubric's range {least:g} to {most:g}")


def check_template(where: str, text: str, variables: tuple[str, ...], limits: LimitsSpec) -> None:
    """
    Refuse now what would fail at some request; jinja2 is loaded only by configs with templates. A branch that
    hangs on what a model says is not tried.
    """
    from jinja2 import StrictUndefined, TemplateError, meta
    from jinja2.sandbox import SandboxedEnvironment

    within(where, len(text.encode()), limits.max_template_bytes, "max_template_bytes")
    environment = SandboxedEnvironment(undefined=StrictUndefined)
    try:
        used = meta.find_undeclared_variables(environment.parse(text))
        template = environment.from_string(text)
    except TemplateError as error:
        raise ValueError(f"{where}: {error}") from None
    if unknown := sorted(used - set(variables)):
        known = ", ".join(variables)
        raise ValueError(f'{where}: there is no variable "{unknown[0]}" (there are: {known})')
    varied = sorted(used & VARIANTS.keys())
    for values in itertools.product(*(VARIANTS[name] for name in varied)):
        chosen = dict(zip(varied, values, strict=True))
        try:
            template.render(sample_variables() | chosen)
        except Exception as error:  # a template is a program of the user's: anything may go wrong in it
            when = ", ".join(f"{name} = {value!r}" for name, value in chosen.items())
            raise ValueError(f"{where}: {error}" + (f" (with {when})" if when else "")) from None


def variables_of(template: TemplateSpec) -> set[str]:
    """The variables that a template which `check_template` accepted mentions."""
    from jinja2 import Environment, meta

    return meta.find_undeclared_variables(Environment().parse(f"{template.system}\n{template.user}"))


def sample_variables() -> dict[str, object]:
    """A value of the right type for every variable."""
    criterion = Criterion(name="correct", description="Is it right?")
    values: tuple[object, ...] = ("topic", "subtopic", "prompt", 1, ["known"], False, 0)
    more: tuple[object, ...] = ("response", "other", [criterion], False)
    return dict(zip(JUDGE_VARIABLES, values + more, strict=True))
