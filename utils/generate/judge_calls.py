"""
One judge, asked until its reply can be read: again with the error shown, then (if the config says so) afresh.

    calls = JudgeCalls(config.judge, calls.ask, "pairs")
    said = await calls.answer(scoring(config.judge, template, variables, "Four."), number=0)
    # {"correct": 5.0}, or Fault("correct: no score")
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from utils.config.answers import JudgeSpec, TemplateSpec
from utils.generate.calls import Request
from utils.generate.errors import CallFailed
from utils.generate.parse import parse_object
from utils.generate.reply import Reply
from utils.generate.scores import parse_scores
from utils.generate.templates import render

Ask = Callable[[Request], Awaitable[Reply]]
Said = TypeVar("Said")
_BETTER_KEYS = ("better", "winner", "preferred", "choice")
_ANSWER = r"[\s\"'*`]*(?:answer|response)?[\s\"'*`]*([ab])[\s\"'*`.!]*"
_ONLY_AN_ANSWER = re.compile(_ANSWER, re.IGNORECASE)
_SAID_BETTER = re.compile(rf"\b(?:{'|'.join(_BETTER_KEYS)})\b[\"'*`]*\s*[:=]{_ANSWER}(?!\w)", re.IGNORECASE)


@dataclass(frozen=True)
class Fault:
    """Why a judge's opinion cannot be had."""

    text: str


@dataclass(frozen=True)
class Question(Generic[Said]):
    """What a judge is asked, how its reply is read, and what it is told when that failed."""

    step: Literal["judge", "judge_pair"]
    template: TemplateSpec
    variables: Mapping[str, object]
    schema: dict
    read: Callable[[Reply], Said | Fault]
    again: str


class JudgeCalls:
    """Asks the judge of one dataset."""

    def __init__(self, spec: JudgeSpec, ask: Ask, dataset: str) -> None:
        self._spec, self._ask, self._dataset = spec, ask, dataset

    async def answer(self, question: Question[Said], number: int) -> Said | Fault:
        """What judge `number` says. Draining and StageError of `ask` pass; CallFailed is a Fault."""
        said = await self._tried(question, number)
        if isinstance(said, Fault) and self._spec.on_judge_error == "retry_then_drop":
            return await self._tried(question, self._spec.num_judges + number)
        return said

    async def _tried(self, question: Question[Said], sample: int) -> Said | Fault:
        is_retry = sample >= self._spec.num_judges
        variables = {**question.variables, "is_retry": is_retry, "index": sample}
        name = self._spec.template if question.step == "judge" else self._spec.pair_template
        messages = render(question.template, variables, f"templates.{name}")
        said = await self._read(question, messages, sample)
        if not isinstance(said, _Unreadable):
            return said
        messages = [
            *messages,
            {"role": "assistant", "content": said.reply.content or "-"},
            {"role": "user", "content": f"That cannot be used ({said.text}). {question.again}"},
        ]
        return await self._read(question, messages, sample)

    async def _read(
        self, question: Question[Said], messages: list[dict[str, str]], sample: int
    ) -> Said | Fault:
        unit = str(question.variables["prompt"])
        request = Request(
            self._dataset, question.step, self._spec.model, messages, unit, sample, question.schema
        )
        try:
            reply = await self._ask(request)
        except CallFailed as failed:
            return Fault(str(failed))
        said = question.read(reply)
        return _Unreadable(said.text, reply) if isinstance(said, Fault) else said


@dataclass(frozen=True)
class _Unreadable(Fault):
    """A reply that came and could not be read: worth showing to the judge."""

    reply: Reply


def scoring(
    spec: JudgeSpec, template: TemplateSpec, variables: Mapping[str, object], response: str
) -> Question[dict[str, float]]:
    """The question for the scores of one answer."""

    def read(reply: Reply) -> dict[str, float] | Fault:
        scores = parse_scores(reply.content, spec.criteria, is_cut=reply.finish_reason == "length")
        return Fault(scores) if isinstance(scores, str) else scores

    filled = _filled(spec, variables, response, "")
    again = "Answer again with one JSON object, criterion to number."
    return Question("judge", template, filled, scores_schema(spec), read, again)


def comparing(
    spec: JudgeSpec, template: TemplateSpec, variables: Mapping[str, object], first: str, second: str
) -> Question[str]:
    """The question which of two answers is better: "A" is the first, "B" the second."""
    schema = {
        "type": "object",
        "properties": {"better": {"type": "string", "enum": ["A", "B"]}},
        "required": ["better"],
        "additionalProperties": False,
    }
    filled = _filled(spec, variables, first, second)
    again = 'Answer again: {"better": "A"} or {"better": "B"}.'
    return Question("judge_pair", template, filled, schema, lambda reply: better_of(reply.content), again)


def _filled(
    spec: JudgeSpec, variables: Mapping[str, object], response: str, other_response: str
) -> dict[str, object]:
    rubric = {"criteria": spec.criteria, "with_reasons": spec.with_reasons}
    return {**variables, **rubric, "response": response, "other_response": other_response}


def scores_schema(spec: JudgeSpec) -> dict:
    """The JSON schema of a scoring reply; ranges are checked here, since not every provider takes them."""
    numbers = {criterion.name: {"type": "number"} for criterion in spec.criteria}
    properties = ({"reasons": {"type": "string"}} if spec.with_reasons else {}) | numbers
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def better_of(text: str) -> str | Fault:
    """ "A" or "B" out of a comparing reply: JSON, the letter alone, or "better: A"."""
    found = parse_object(text) or {}
    named = [value for key, value in found.items() if str(key).lower() in _BETTER_KEYS]
    letter = _ONLY_AN_ANSWER.fullmatch(str(named[0]) if named else text)
    letter = letter or (None if named else _SAID_BETTER.search(text))
    return letter[1].upper() if letter else Fault('it does not say which answer is better, "A" or "B"')
