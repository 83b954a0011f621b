"""
Verdicts: what is to be said of an artifact, in shapes that never vary (P17).

    str(Verdict.tampered("train.bin", "a7a459cdcaa2", "11d0e0c4a9f7"))
    -> 'tampered (train.bin: expected a7a459cdcaa2, actual 11d0e0c4a9f7)'
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["tampered", "missing", "incomplete", "mismatched", "stale", "allowed", "ok"]
WORST_FIRST: tuple[Kind, ...] = ("tampered", "missing", "incomplete", "mismatched", "stale", "allowed", "ok")
_HEX_DIGEST = re.compile(r"[0-9a-f]{64}")

Change = tuple[str, object, object]  # component, before, after


class _Absent:
    """A value that one side does not have."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()


@dataclass(frozen=True)
class Verdict:
    """`kind (detail)`; component, before and after are what a waiver covers and what the JSON log carries."""

    kind: Kind
    detail: str = ""
    component: str = ""
    before: str = ""
    after: str = ""
    waivable: bool = False

    def __str__(self) -> str:
        return f"{self.kind} ({self.detail})" if self.detail else self.kind

    @property
    def good(self) -> bool:
        return self.kind in ("ok", "allowed")

    @property
    def rank(self) -> int:
        return WORST_FIRST.index(self.kind)

    @classmethod
    def tampered(cls, component: str, expected: object, actual: object, more: int = 0) -> "Verdict":
        detail = f"{component}: expected {shown(expected)}, actual {shown(actual)}" + _and_more(more)
        return cls("tampered", detail, component, full(expected), full(actual))

    @classmethod
    def changed(cls, kind: Kind, changes: Iterable[Change], waivable: bool = True) -> "Verdict":
        """`stale (config.seed: 0 -> 1, and 2 more)`; the first by component is the one that is shown."""
        ordered = sorted(changes, key=lambda change: change[0])
        component, before, after = ordered[0]
        detail = f"{component}: {shown(before)} -> {shown(after)}" + _and_more(len(ordered) - 1)
        if len(ordered) > 1:  # one waiver covers all of them or none
            component = ", ".join(change[0] for change in ordered)
            before, after = ([full(change[side]) for change in ordered] for side in (1, 2))
        return cls(kind, detail, component, full(before), full(after), waivable)

    def allowed(self, reason: str) -> "Verdict":
        """This verdict, waived: `allowed (stale input.data: a -> b; "reason")`."""
        return replace(self, kind="allowed", detail=f'{self.kind} {self.detail}; "{reason}"', waivable=False)


OK = Verdict("ok")


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The one to report when several apply."""
    return min(verdicts, key=lambda verdict: verdict.rank, default=OK)


def full(value: object) -> str:
    """A value as waivers and logs keep it: never cut, so that two that differ are never equal."""
    return value if isinstance(value, str) else repr(value)


def shown(value: object) -> str:
    """A value as messages print it: digests by 12 digits, long texts cut."""
    text = full(value)
    if _HEX_DIGEST.fullmatch(text):
        return text[:12]
    return text if len(text) <= 60 else text[:57] + "..."


def _and_more(count: int) -> str:
    return f", and {count} more" if count > 0 else ""


def name_three(names: list[str]) -> str:
    """`a, b, c, and 4 more`."""
    return ", ".join(names[:3]) + _and_more(len(names) - 3)


def differences(before: object, after: object, path: str) -> list[Change]:
    """
    The leaves in which two JSON values differ, as `path.key[0].name`; a leaf on one side only is `absent`
    on the other.
    """
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        keys = sorted({*before, *after})
        pairs = [(f"{path}.{key}", before.get(key, ABSENT), after.get(key, ABSENT)) for key in keys]
    elif isinstance(before, list) and isinstance(after, list):
        longest = max(len(before), len(after))
        padded = [[*side, *[ABSENT] * (longest - len(side))] for side in (before, after)]
        pairs = [(f"{path}[{index}]", *pair) for index, pair in enumerate(zip(*padded, strict=True))]
    else:
        same = type(before) is type(after) and before == after
        return [] if same else [(path, before, after)]
    return [change for name, old, new in pairs for change in differences(old, new, name)]
