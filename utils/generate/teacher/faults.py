"""
Faults by schedule, to test clients: a share of the calls is refused, dropped, cut or badly written, the same
calls in every run.

    >>> Faults.parse("429:0.1:0.5,drop:0.05").draw(b"a call", "text", False, "teacher").delivery
    ''

A schedule is `KIND:SHARE` or `KIND:SHARE:AMOUNT`, comma between them, or the path of a JSON file:

    {"faults": [{"kind": "500", "share": 0.5, "model": "teacher-judge"}, {"kind": "latency", "share": 1,
                 "amount": 250}], "most_in_a_row": 3}

`all` spreads its share evenly over every kind that the call can suffer and that is not named beside it. How
the n-th attempt of a call is delivered depends on (seed, call, n) alone, and at most `most_in_a_row` attempts
of a call fail, so a client that retries gets through. What is in the reply depends on (seed, call) alone: a
call that is repeated after a crash is told the same, so a crash never changes which rows a run ends with.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from utils.generate.teacher.forms import LISTS, PAIRS, SCORES, THINKING, WHOLE, content_kinds
from utils.pipeline.errors import ConfigError

STATUSES = ("429", "500", "503", "529")
AMOUNTS = {"429": 0.0, "latency": 200.0, "slow": 300.0}
"""Kinds that take an amount, with its default: seconds of Retry-After, milliseconds for the others."""
ANYWHERE = (*STATUSES, "error-200", "drop", "cut", "truncate", "empty", "latency", "slow")
IN_STREAMS = ("stream-error", "stream-no-done", "stream-odd")
BROKEN = ("error-200", "drop", "cut", "truncate", "empty", "stream-error")
"""Kinds that leave the client without a reply although the status may be 200."""
DELIVERY = (*ANYWHERE, *IN_STREAMS)
KINDS = tuple(dict.fromkeys((*DELIVERY, *WHOLE, *THINKING, *LISTS, *SCORES, *PAIRS, "all")))
WORST_IN_A_ROW = 3


@dataclass(frozen=True)
class Entry:
    """A kind of fault: share of calls, amount (see `AMOUNTS`), and the one model it hits ("" = every one)."""

    kind: str
    share: float
    amount: float = 0.0
    model: str = ""


@dataclass(frozen=True)
class Drawn:
    """What one attempt suffers, "" for nothing; `luck` in [0, 1) is for jitter."""

    delivery: str = ""
    content: str = ""
    amount: float = 0.0
    luck: float = 0.0


@dataclass
class Faults:
    """A schedule, and how often each call was tried."""

    entries: tuple[Entry, ...] = ()
    seed: int = 0
    most_in_a_row: int = WORST_IN_A_ROW
    attempts: dict[bytes, int] = field(default_factory=dict)
    _tables: dict[tuple[str, bool, str], tuple[list[Entry], list[Entry]]] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, seed: int = 0) -> "Faults":
        """A schedule or the path of a JSON file that holds one; ConfigError says what makes no sense."""
        if text.endswith(".json"):
            return cls._from_file(Path(text), seed)
        return cls(_checked([_inline(entry) for entry in filter(None, text.split(","))]), seed)

    @classmethod
    def _from_file(cls, path: Path, seed: int) -> "Faults":
        try:
            document = json.loads(path.read_text())
            entries = [_listed(**entry) for entry in document.pop("faults")]
            most = document.pop("most_in_a_row", WORST_IN_A_ROW)
            if document or type(most) is not int or most < 1:
                raise ValueError(f"unknown or bad: {', '.join(document) or 'most_in_a_row'}")
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"{path} is not a schedule of faults: {error}",
                fix='{"faults": [{"kind": "429", "share": 0.1}], "most_in_a_row": 3}',
            ) from None
        return cls(_checked(entries), seed, most)

    def draw(self, call: bytes, answer_kind: str, stream: bool, model: str) -> Drawn:
        """The faults of this attempt of a call; counts the attempt."""
        if not self.entries:
            return Drawn()
        attempt = self.attempts.get(call, 0)
        self.attempts[call] = attempt + 1
        delivery, content = self._table(answer_kind, stream, model)
        luck, jitter = _lucks(b"%d %d " % (self.seed, attempt) + call)
        hit = _hit(delivery, luck) if attempt < self.most_in_a_row else None
        written = _hit(content, _lucks(b"%d content " % self.seed + call)[0])
        return Drawn(
            hit.kind if hit else "", written.kind if written else "", hit.amount if hit else 0.0, jitter
        )

    def _table(self, answer_kind: str, stream: bool, model: str) -> tuple[list[Entry], list[Entry]]:
        """The entries that can hit such a call, by delivery and by content, with `all` spread out."""
        key = (answer_kind, stream, model)
        if key not in self._tables:
            possible = (*ANYWHERE, *(IN_STREAMS if stream else ()), *content_kinds(answer_kind))
            meant = [entry for entry in self.entries if entry.model in ("", model)]
            spread = _spread(meant, possible)
            delivered = [entry for entry in spread if entry.kind in DELIVERY]
            self._tables[key] = (delivered, [entry for entry in spread if entry not in delivered])
        return self._tables[key]


def _inline(text: str) -> Entry:
    kind, _, numbers = text.strip().partition(":")
    try:
        share, *amount = (float(number) for number in numbers.split(":"))
        return _listed(kind, share, *amount)
    except (ValueError, TypeError):
        raise ConfigError(
            f'fault "{text}" is not KIND:SHARE or KIND:SHARE:AMOUNT', fix="--faults 429:0.1:0.5,drop:0.05"
        ) from None


def _listed(kind: str, share: float, amount: float | None = None, *, model: str = "") -> Entry:
    if amount is not None and kind in KINDS and kind not in AMOUNTS:
        raise ConfigError(f'fault "{kind}" takes no amount', fix=f"amounts are for {', '.join(AMOUNTS)}")
    return Entry(str(kind), float(share), AMOUNTS.get(kind, 0.0) if amount is None else float(amount), model)


def _checked(entries: list[Entry]) -> tuple[Entry, ...]:
    for entry in entries:
        if entry.kind not in KINDS:
            raise ConfigError(f'unknown fault "{entry.kind}"', fix=f"one of {', '.join(KINDS)}")
        if not 0 <= entry.share <= 1 or entry.amount < 0:
            raise ConfigError(f'fault "{entry.kind}": a share is from 0 to 1 and an amount not negative')
    for model in {entry.model for entry in entries}:
        if sum(entry.share for entry in entries if entry.model in ("", model)) > 1 + 1e-9:
            raise ConfigError("the shares of faults add up to more than 1")
    return tuple(entries)


def _spread(entries: list[Entry], possible: tuple[str, ...]) -> list[Entry]:
    """The entries that are possible, each `all` replaced by an even share of every kind not named."""
    named = {entry.kind for entry in entries}
    rest = [kind for kind in possible if kind not in named]
    found = [entry for entry in entries if entry.kind in possible]
    for entry in entries:
        if entry.kind == "all":
            found += [Entry(kind, entry.share / len(rest), AMOUNTS.get(kind, 0.0)) for kind in rest]
    return found


def _lucks(what: bytes) -> tuple[float, float]:
    head = hashlib.sha256(what).digest()
    return int.from_bytes(head[:8], "big") / 2**64, int.from_bytes(head[8:16], "big") / 2**64


def _hit(entries: list[Entry], luck: float) -> Entry | None:
    for entry in entries:
        if luck < entry.share:
            return entry
        luck -= entry.share
    return None
