"""
Rejected answers for chats: what the model is asked, what makes an answer good enough, and what is written.

    maker = RejectedMaker(config, ask=calls.ask, knows=known, tried={})
    made = await maker.make(row)                # Pair or Failure
    writer.add(made)

A row is `SourceRow`: the turns up to and with the last user turn, and the chosen answer. Where rows come from
is the caller's business.
"""

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from utils.config.transform import TransformConfig
from utils.generate.calls import Request
from utils.generate.errors import CallFailed
from utils.generate.reply import Reply, split_thinking
from utils.generate.templates import render
from utils.generate.validate import answer_text, fault_of, too_similar
from utils.pipeline.hashing import canonical_json, sha256_hex

EXCERPT_CHARACTERS = 300
FAILURES = "failures.jsonl"
Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class SourceRow:
    """
    Row `number` (1, 2, ... over all sources): turns up to the answer, and the answer. `problem` and `detail`
    say why it cannot be used, then there are no turns.
    """

    number: int
    where: str
    turns: tuple[Message, ...] = ()
    chosen: str = ""
    problem: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """A row with its rejected answer, and the thinking before it."""

    row: SourceRow
    rejected: str
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a row has no rejected answer; `samples` are the replies that did not do, never asked for again."""

    row: int
    where: str
    unit: str
    reason: str
    excerpt: str
    samples: int = 0


class RejectedMaker:
    """
    Asks for rejected answers. `tried` says how many replies each row that failed before has used up: a rerun
    gives it `attempts_per_row` more. `knows` tells whether a reply is there already.
    """

    def __init__(
        self,
        config: TransformConfig,
        ask: Callable[[Request], Awaitable[Reply]],
        knows: Callable[[Request], bool],
        tried: Mapping[int, int],
    ) -> None:
        self._config, self._ask, self._knows, self._tried = config, ask, knows, tried

    async def make(self, row: SourceRow) -> Pair | Failure:
        """The row with the first good answer, or why there is none."""
        if problem := row.problem or problem_of(row, self._config):
            return _failure(row, problem, row.detail or row.chosen)
        sample, fault, seen = 0, "", ""
        limit = self._tried.get(row.number, 0) + self._config.validation.attempts_per_row
        while True:
            request = self._request(row, sample)
            if sample >= limit and not self._knows(request):
                return _failure(row, fault, seen, sample)
            try:
                reply = await self._ask(request)
            except CallFailed as failure:
                return _failure(row, failure.reason, failure.excerpt, sample)
            fault, seen = self._fault(row, reply), reply.content
            if not fault:
                return Pair(row, answer_text(reply), reply.reasoning)
            sample += 1

    def _fault(self, row: SourceRow, reply: Reply) -> str:
        spec = self._config.validation
        if fault := fault_of(reply, spec, "rejected"):
            return fault
        chosen = split_thinking(row.chosen)[0]
        return "equals_chosen" if too_similar(chosen, answer_text(reply), spec) else ""

    def _request(self, row: SourceRow, sample: int) -> Request:
        messages = messages_for(row, self._config, sample)
        unit = messages[-1]["content"]
        return Request(self._config.dataset, "rejected", self._config.rejected_model, messages, unit, sample)


def messages_for(row: SourceRow, config: TransformConfig, sample: int) -> list[Message]:
    """The conversation as the model gets it: without thinking, the template around its last user turn."""
    turns = [_without_thinking(turn) for turn in row.turns]
    last = max(index for index, turn in enumerate(turns) if turn["role"] == "user")
    variables = {
        "prompt": turns[last]["content"],
        "response": split_thinking(row.chosen)[0],
        "is_retry": sample > 0,
        "index": sample,
    }
    *system, user = render(config.template, variables)
    turns[last] = user
    if system and turns[0]["role"] == "system":
        system[0]["content"] += f"\n\n{turns.pop(0)['content']}"
    return [*system, *turns]


def problem_of(row: SourceRow, config: TransformConfig) -> str:
    """Why a row cannot be asked about or written, or ""."""
    if not any(turn["role"] == "user" for turn in row.turns):
        return "no_user_turn"
    if not config.conversational and len(row.turns) > 1:
        return "not_a_single_question"
    return "" if split_thinking(row.chosen)[0].strip() else "empty_chosen"


def pair_record(pair: Pair, config: TransformConfig, times_before: int = 0) -> dict:
    """
    The line of dataset.jsonl: the same keys in every row. `times_before` tells apart rows with the same
    prompt and chosen answer: how many stand before it.
    """
    row, keep = pair.row, config.reasoning == "keep"
    turns = [turn if keep else _without_thinking(turn) for turn in row.turns]
    chosen = row.chosen if keep else split_thinking(row.chosen)[0].strip()
    rejected = with_thinking(pair.rejected, pair.reasoning) if keep else pair.rejected
    what = [list(turns), chosen, *([times_before] if times_before else [])]
    found = {"id": sha256_hex(canonical_json(what))[:32]} if config.include_id else {}
    if not config.conversational:
        return found | {"prompt": turns[0]["content"], "chosen": chosen, "rejected": rejected}
    answers = {"chosen": chosen, "rejected": rejected}
    return found | {"prompt": turns} | {side: [_assistant(text)] for side, text in answers.items()}


def with_thinking(text: str, reasoning: str) -> str:
    """An answer with its thinking before it."""
    return f"<think>\n{reasoning}\n</think>\n\n{text}" if reasoning else text


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _without_thinking(turn: Message) -> Message:
    if turn["role"] != "assistant":
        return dict(turn)
    return turn | {"content": split_thinking(turn["content"])[0].strip()}


def _failure(row: SourceRow, reason: str, seen: str, samples: int = 0) -> Failure:
    unit = row.turns[-1]["content"] if row.turns else ""
    return Failure(
        row.number, row.where, unit[:EXCERPT_CHARACTERS], reason, seen[:EXCERPT_CHARACTERS], samples
    )


@dataclass
class PairWriter:
    """Writes rows and failures below a folder; `finish` puts the failures of a complete pass in place."""

    config: TransformConfig
    folder: Path
    rows: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    _seen: Counter[bytes] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        (self.folder / self.config.dataset).mkdir(parents=True, exist_ok=True)
        self._pending = self.folder / f"{FAILURES}.new"
        place = self.folder / self.config.dataset / "dataset.jsonl"
        self._rows = open(place, "w", encoding="utf-8", newline="\n")  # noqa: SIM115 - closed by close()
        self._failures = open(self._pending, "w", encoding="utf-8", newline="\n")  # noqa: SIM115

    def add(self, made: Pair | Failure) -> None:
        if isinstance(made, Failure):
            self.reasons[made.reason] += 1
            self._failures.write(json.dumps(asdict(made), ensure_ascii=False) + "\n")
        else:
            self.rows += 1
            record = pair_record(made, self.config)
            if again := self._times_before(record):
                record = pair_record(made, self.config, again)
            self._rows.write(json.dumps(record, ensure_ascii=False) + "\n")

    def _times_before(self, record: dict) -> int:
        """How many rows with the id of this one were written before it."""
        if "id" not in record:
            return 0
        key = bytes.fromhex(record["id"])[:8]
        self._seen[key] += 1
        return self._seen[key] - 1

    def close(self) -> None:
        self._rows.close()
        self._failures.close()

    def finish(self) -> None:
        """Every row was decided: the failures are those of this pass."""
        self.close()
        self._pending.replace(self.folder / FAILURES)


def samples_tried(folder: Path) -> dict[int, int]:
    """Row number -> replies that did not do, by the failures of the last complete pass."""
    path = folder / FAILURES
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8") as file:
        return {found["row"]: found["samples"] for found in map(json.loads, file)}
