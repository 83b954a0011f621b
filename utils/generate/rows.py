"""
From a prompt to a row: the chosen answer, the rejected one beside it, the checks on both, the judge.

    made = await RowMaker(config, "pairs", calls).make("animals", "What does a cow say?")

What comes back holds no texts: they lie in the journal, under the identities of the calls.
"""

import asyncio
from dataclasses import asdict, dataclass, field

from utils.config.generate import GenerateConfig
from utils.generate.calls import Calls, Request, used_calls
from utils.generate.errors import CallFailed
from utils.generate.similarity import Sketch, sketch_of
from utils.generate.templates import Renderer
from utils.generate.validate import Side, answer_text, fault_of, too_similar

EXCERPT_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Made:
    """
    A row that passed every check of its own: identities of its replies, its sketch, the judge's numbers.
    """

    chosen: str
    rejected: str
    sketch: Sketch
    scores: dict[str, object] = field(default_factory=dict)
    used: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a prompt gave no row."""

    reason: str
    excerpt: str
    attempts: int
    used: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A prompt, and the number of its first sample."""

    subtopic: str
    prompt: str
    first: int


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer that passed its checks, and the number of its sample."""

    identity: str
    text: str
    sample: int


class RowMaker:
    """Makes the rows of one dataset."""

    def __init__(self, config: GenerateConfig, dataset: str, calls: Calls) -> None:
        self._name, self._spec = dataset, config.datasets[dataset]
        self._checks = config.validation
        self._renderer = Renderer(config, dataset)
        self._calls = calls
        self._judge = None
        if self._spec.judged:
            from utils.generate.judge import Judge

            self._judge = Judge(config.judge, config.templates, calls.ask, dataset, self._spec.mode)

    async def make(self, subtopic: str, prompt: str, tries: int = 0) -> Made | Failure:
        """
        A row, or why there is none after `attempts_per_row` samples; both sides are asked together. A prompt
        that failed before has had `tries` times as many samples.
        """
        asked = _Asked(subtopic, prompt, tries * self._checks.attempts_per_row)
        with used_calls() as used:
            try:
                made = await self._made(asked)
            except CallFailed as failed:
                made = Failure(failed.reason, failed.excerpt, failed.attempts)
        return _with_used(made, used.record())

    async def _made(self, asked: _Asked) -> Made | Failure:
        chosen = self._side("chosen", self._spec.main_model, asked, asked.first)
        if not self._spec.has_rejected:
            answer = await chosen
            content = answer.text if self._spec.mode == "text" else f"{asked.prompt}\n{answer.text}"
            return await self._judged(asked, answer, None, content)
        pair = await _both(chosen, self._side("rejected", self._spec.rejected_model, asked, asked.first))
        other = await self._different(asked, *pair)
        if isinstance(other, Failure):
            return other
        content = f"{asked.prompt}\n{pair[0].text}\n{other.text}"
        return await self._judged(asked, pair[0], other, content)

    async def _side(self, step: Side, model: str, asked: _Asked, first: int) -> _Answer:
        """One answer that passes the checks; each further attempt has the next sampling seed."""
        attempts = self._checks.attempts_per_row
        fault, seen = "", ""
        for sample in range(first, asked.first + attempts):
            identity, reply = await self._calls.named(self._request(step, model, asked, sample))
            fault, seen = fault_of(reply, self._checks, step), reply.content
            if not fault:
                return _Answer(identity, answer_text(reply), sample)
        raise CallFailed(fault, seen[:EXCERPT_CHARACTERS], attempts)

    async def _different(self, asked: _Asked, chosen: _Answer, rejected: _Answer) -> _Answer | Failure:
        """Ask for another rejected answer while it says the same as the chosen one."""
        while too_similar(chosen.text, rejected.text, self._checks):
            following = rejected.sample + 1
            attempts = following - asked.first
            if attempts == self._checks.attempts_per_row:
                return Failure("equals_chosen", rejected.text[:EXCERPT_CHARACTERS], attempts)
            rejected = await self._side("rejected", self._spec.rejected_model, asked, following)
        return rejected

    async def _judged(
        self, asked: _Asked, chosen: _Answer, rejected: _Answer | None, content: str
    ) -> Made | Failure:
        scores: dict[str, object] = {}
        if self._judge:
            variables = self._renderer.variables(subtopic=asked.subtopic, prompt=asked.prompt)
            other = rejected.text if rejected else None
            verdict = await self._judge.judge_row(variables, chosen.text, other, self._spec.judge)
            if verdict.verdict == "drop":
                attempts = chosen.sample - asked.first + 1
                return Failure(verdict.reason, chosen.text[:EXCERPT_CHARACTERS], attempts)
            if verdict.verdict == "keep":
                scores = {name: value for name, value in asdict(verdict).items() if name not in _UNWRITTEN}
        return Made(chosen.identity, rejected.identity if rejected else "", sketch_of(content), scores)

    def _request(self, step: Side, model: str, asked: _Asked, sample: int) -> Request:
        messages = self._renderer.messages(
            step, subtopic=asked.subtopic, prompt=asked.prompt, is_retry=sample > 0, index=sample
        )
        return Request(self._name, step, model, messages, asked.prompt, sample)


_UNWRITTEN = ("verdict", "reason")


async def _both(chosen, rejected) -> tuple[_Answer, _Answer]:
    """Both answers; both calls are waited for also when one fails, since both are paid for."""
    answers = await asyncio.gather(chosen, rejected, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return answers[0], answers[1]


def _with_used(made: Made | Failure, used: dict[str, list[int]]) -> Made | Failure:
    if isinstance(made, Failure):
        return Failure(made.reason, made.excerpt, made.attempts, used)
    return Made(made.chosen, made.rejected, made.sketch, made.scores, used)
