"""
What has been decided about one dataset: the sum of its decisions, and nothing else.

A decision is a line of the journal. The same `apply` runs when a decision is made and when the journal is
read again, so a run that continues stands exactly where the order of decisions stopped.

Rows are decided in level order: level 0 gives each subtopic a turn to reach its quota, level 1 gives another
to those that lack rows, and so on. A turn asks for as many prompts as lack (with a buffer) in chunks.

    state = State("chat")
    state.apply("deal", {"rows": 3000, "subtopics": 39, "quotas": [77, 77, ...]}, offset)
"""

from array import array
from collections import Counter
from dataclasses import dataclass, field

MOST_DRY_TURNS = 2
"""Turns in a row without a single new prompt after which a subtopic counts as exhausted."""


@dataclass(slots=True)
class Turn:
    """
    Turn `number` of a subtopic, in a level: `lacking` prompts are asked for beside those in reserve, with
    some of the first `num_known` entries of what is known left out.
    """

    level: int
    number: int
    lacking: int
    num_known: int
    chunks: int = 0
    fresh: int = 0


@dataclass(slots=True)
class Subtopic:
    """One subtopic; `prompts` up to `used` have become rows or failures, those behind are the reserve."""

    name: str
    quota: int = 0
    rows: array = field(default_factory=lambda: array("q"))
    prompts: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    blocks: int = 0
    used: int = 0
    dry_turns: int = 0
    turn: Turn | None = None

    @property
    def lack(self) -> int:
        """Rows missing to the quota."""
        return self.quota - len(self.rows)

    @property
    def reserve(self) -> int:
        """Prompts that were admitted and not used yet."""
        return len(self.prompts) - self.used

    @property
    def exhausted(self) -> bool:
        return self.dry_turns >= MOST_DRY_TURNS

    def label(self, position: int) -> str:
        """Subtopic of a prompt; a file of prompts names one for each."""
        return self.labels[position] if self.labels else self.name


@dataclass(slots=True)
class Round:
    """A round of asking for subtopics: `lacking` of them, with the first `num_known` left out."""

    number: int
    lacking: int
    num_known: int
    chunks: int = 0
    fresh: int = 0


class State:
    """The decisions of one dataset, summed; `decided` counts them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.decided = 0
        self.subtopics: list[Subtopic] = []
        self.quotas: list[int] = []
        self.num_subtopics = 0
        self.round: Round | None = None
        self.idle_rounds = 0
        self.level = -1
        self.order: list[int] = []
        self.position = 0
        self.next_order: list[int] = []
        self.idle_levels = 0
        self.rows = self._rows_before_level = 0
        self.failures = {level: array("q") for level in ("subtopic", "prompt", "row")}
        self.tries = self.tried = 0
        self.reasons: Counter[str] = Counter()
        self.used: dict[str, list[int]] = {}
        self.scored = 0

    def apply(self, kind: str, record: dict, offset: int) -> None:
        """Take in one decision."""
        self.decided += 1
        for name, counts in record.get("used", {}).items():
            known = self.used.setdefault(name, [0, 0, 0])
            self.used[name] = [a + b for a, b in zip(known, counts, strict=True)]
        getattr(self, f"_apply_{kind}")(record, offset)

    def members(self, level: int) -> list[int]:
        """Subtopics with a turn in a level, in order, as far as they are known."""
        return self.order if level == self.level else self.next_order if level == self.level + 1 else []

    # subtopics

    def _apply_deal(self, record: dict, offset: int) -> None:
        if self.level >= 0:
            self._end_level()
        self.num_subtopics, self.quotas = record["subtopics"], record["quotas"]
        self.level += 1
        self.order, self.next_order, self.position = [], [], 0
        for number, subtopic in enumerate(self.subtopics):
            subtopic.quota = self.quotas[number] if number < len(self.quotas) else len(subtopic.rows)
            if subtopic.lack > 0:
                self._open_turn(number, self.level, self.order)
        if self.round is None or not self.round.chunks:
            self._open_round(self.round.number if self.round else 0)

    def _open_round(self, number: int) -> None:
        lacking = self.num_subtopics - len(self.subtopics)
        self.round = Round(number, lacking, len(self.subtopics))

    def _apply_subtopics(self, record: dict, offset: int) -> None:
        assert self.round is not None
        self._count_list(record, "subtopic", offset)
        for name in record["names"]:
            number = len(self.subtopics)
            self.subtopics.append(Subtopic(name, self.quotas[number]))
            if self.quotas[number]:
                self._open_turn(number, self.level, self.order)
        self.round.chunks += 1
        self.round.fresh += len(record["names"])
        if record.get("last"):
            self.idle_rounds = 0 if self.round.fresh else self.idle_rounds + 1
            self._open_round(self.round.number + 1)

    # prompts

    def _open_turn(self, number: int, level: int, order: list[int]) -> None:
        subtopic = self.subtopics[number]
        lacking = max(0, subtopic.lack - subtopic.reserve)
        following = subtopic.turn.number + 1 if subtopic.turn else 0
        subtopic.turn = Turn(level, following, lacking, len(subtopic.known))
        order.append(number)

    def _apply_prompts(self, record: dict, offset: int) -> None:
        subtopic = self.subtopics[record["subtopic"]]
        assert subtopic.turn is not None
        self._count_list(record, "prompt", offset)
        subtopic.prompts += record["prompts"]
        subtopic.labels += record.get("labels", [])
        if "dropped" in record:  # a list of a model: what is known will be left out of the next
            subtopic.known += record["prompts"] + record["dropped"]
        subtopic.blocks += 1
        subtopic.turn.chunks += 1
        subtopic.turn.fresh += len(record["prompts"])

    def _count_list(self, record: dict, what: str, offset: int) -> None:
        self.reasons[f"duplicate_{what}"] += record.get("duplicates", 0)
        self.reasons[f"{what}_too_long"] += record.get("too_long", 0)
        if "reason" in record:
            self.reasons[f"list_{record['reason']}"] += 1
            self.failures[what].append(offset)

    # rows

    def _apply_row(self, record: dict, offset: int) -> None:
        subtopic = self._use_prompt(record)
        subtopic.rows.append(offset)
        self.rows += 1
        self.scored += "chosen_total" in record

    def _apply_failure(self, record: dict, offset: int) -> None:
        self._use_prompt(record)
        self.reasons[record["reason"]] += 1
        self.failures["row"].append(offset)

    def _use_prompt(self, record: dict) -> Subtopic:
        subtopic = self.subtopics[record["subtopic"]]
        subtopic.prompts[subtopic.used] = ""
        if subtopic.labels:
            subtopic.labels[subtopic.used] = ""
        subtopic.used += 1
        return subtopic

    def _apply_closed(self, record: dict, offset: int) -> None:
        """A subtopic's turn is over; one that lacks rows and may know more prompts gets another."""
        number = record["subtopic"]
        subtopic = self.subtopics[number]
        assert subtopic.turn is not None
        if subtopic.turn.lacking:
            subtopic.dry_turns = 0 if subtopic.turn.fresh else subtopic.dry_turns + 1
        self.position += 1
        if subtopic.lack > 0 and not subtopic.exhausted:
            self._open_turn(number, self.level + 1, self.next_order)

    def _apply_level(self, record: dict, offset: int) -> None:
        """Every turn of a level is over."""
        self._end_level()
        self.level += 1
        self.order, self.next_order, self.position = self.next_order, [], 0

    @property
    def idle_at_end(self) -> int:
        """Levels in a row without a new row, were the present one over."""
        return 0 if self.rows > self._rows_before_level else self.idle_levels + 1

    def _end_level(self) -> None:
        self.idle_levels = self.idle_at_end
        self._rows_before_level = self.rows

    def _apply_short(self, record: dict, offset: int) -> None:
        """The dataset was given up; a run that asks again starts to count afresh, with new questions."""
        self.idle_rounds, self.idle_levels = 0, -1  # the level that was given up does not count again
        for subtopic in self.subtopics:
            subtopic.dry_turns = 0
        if "again" in record:  # prompts that a user gave are tried again, with other samples
            self.tries += 1
            self.tried = len(self.failures["row"])
            self.subtopics[0].prompts += [prompt for prompt, _ in record["again"]]
            self.subtopics[0].labels += [label for _, label in record["again"]]


def deal(have: list[int], able: list[bool], total: int) -> list[int]:
    """
    Quotas that add up to `total`, as even as what each subtopic has allows: the poorest able ones get more
    first, and earlier ones before later ones. With none able, nothing is dealt.

    >>> deal([0, 5, 0], [True, True, False], 12)
    [6, 6, 0]
    """
    quotas = list(have)
    left = total - sum(have)
    takers = sorted((number for number, can in enumerate(able) if can), key=lambda number: have[number])
    while left > 0 and takers:
        lowest = quotas[takers[0]]
        group = [number for number in takers if quotas[number] == lowest]
        rest = takers[len(group) :]
        step = min(left // len(group), quotas[rest[0]] - lowest) if rest else left // len(group)
        if step == 0:
            for number in sorted(group)[:left]:
                quotas[number] += 1
            break
        for number in group:
            quotas[number] += step
        left -= step * len(group)
    return quotas
