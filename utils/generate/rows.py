"""
From a prompt to a row: the chosen answer, the rejected one beside it, and the checks on both.

    row = await RowMaker(config, "pairs", calls).make(Prompt("animals", "What does a cow say?"))
"""

import asyncio
from dataclasses import dataclass

from utils.config.generate import GenerateConfig
from utils.generate.calls import Calls, Request
from utils.generate.errors import CallFailed
from utils.generate.templates import render
from utils.generate.validate import answer_text, fault_of, normalised
from utils.pipeline.hashing import canonical_json, sha256_hex


@dataclass(frozen=True)
class Prompt:
    """One accepted prompt and the subtopic that it belongs to."""

    subtopic: str
    text: str


@dataclass(frozen=True)
class Row:
    """One finished row; `rejected` is "" unless the dataset holds pairs."""

    prompt: Prompt
    chosen: str
    rejected: str = ""


@dataclass(frozen=True)
class Failure:
    """Why a prompt gave no row; goes to failures.jsonl."""

    dataset: str
    unit: str
    reason: str
    excerpt: str
    attempts: int


class RowMaker:
    """Makes the rows of one dataset."""

    def __init__(self, config: GenerateConfig, dataset: str, calls: Calls) -> None:
        self._config = config
        self._name = dataset
        self._spec = config.datasets[dataset]
        self._calls = calls

    async def make(self, prompt: Prompt) -> Row | Failure:
        """A row, or why there is none after `attempts_per_row` tries; halves of a pair run together."""
        sides = [self._side("chosen", self._spec.main_model, prompt)]
        if self._spec.mode == "dpo":
            sides.append(self._side("rejected", self._spec.rejected_model, prompt))
        answers = await asyncio.gather(*sides, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, CallFailed):
                return Failure(self._name, prompt.text, answer.reason, answer.excerpt, answer.attempts)
            if isinstance(answer, BaseException):
                raise answer
        row = Row(prompt, *answers)
        return await self._different(row) if self._spec.mode == "dpo" else row

    async def _side(self, step: str, model: str, prompt: Prompt, first_sample: int = 0) -> str:
        """One answer that passes the checks; each further attempt has the next sampling seed."""
        attempts = self._config.validation.attempts_per_row
        fault, seen = "no_attempt_left", ""
        for sample in range(first_sample, attempts):
            reply = await self._calls.ask(self._request(step, model, prompt, sample))
            fault, seen = fault_of(reply, self._config.validation), reply.content
            if not fault:
                return answer_text(reply)
        raise CallFailed(fault, seen[:300], attempts)

    async def _different(self, row: Row) -> Row | Failure:
        """Ask for another rejected answer while it equals the chosen one."""
        sample = 1
        while normalised(row.chosen) == normalised(row.rejected):
            try:
                again = await self._side("rejected", self._spec.rejected_model, row.prompt, sample)
            except CallFailed:
                return Failure(self._name, row.prompt.text, "equals_chosen", row.chosen[:300], sample)
            row = Row(row.prompt, row.chosen, again)
            sample += 1
        return row

    def _request(self, step: str, model: str, prompt: Prompt, sample: int) -> Request:
        template = self._config.templates[getattr(self._spec.templates, step)]
        variables = {
            "main_topic": self._config.main_topic,
            "subtopic": prompt.subtopic,
            "prompt": prompt.text,
            "count": 1,
            "exclude": [],
            "is_retry": sample > 0,
            "index": sample,
        }
        return Request(self._name, step, model, render(template, variables), prompt.text, sample)


def row_record(config: GenerateConfig, dataset: str, row: Row) -> dict:
    """The line of dataset.jsonl: the same keys in every row of a dataset."""
    spec = config.datasets[dataset]
    record: dict[str, object] = {"id": sha256_hex(canonical_json([dataset, row.prompt.text, 0]))[:32]}
    if spec.mode == "text":
        record |= {"text": row.chosen}
    elif spec.mode == "sft":
        user, assistant = (
            {"role": "user", "content": row.prompt.text},
            {"role": "assistant", "content": row.chosen},
        )
        record |= {"messages": [user, assistant]}
    else:
        record |= {"prompt": row.prompt.text, "chosen": row.chosen, "rejected": row.rejected}
    if spec.include_topic_columns:
        record |= {"main_topic": config.main_topic, "subtopic": row.prompt.subtopic}
    return record


def row_content(row: Row, mode: str) -> str:
    """What must not occur twice in a dataset: a text, else the prompt with its answers."""
    parts = [row.chosen] if mode == "text" else [row.prompt.text, row.chosen, row.rejected]
    return "\n".join(normalised(part) for part in parts)
