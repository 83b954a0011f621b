"""
Web addresses and personal data in texts: found, masked or taken as a reason to drop the document.

Patterns propose, a check decides: card numbers must pass Luhn's sum and start as cards do, IP addresses must
be global ones, phone numbers must have the digits of one. Years, times, sums and version numbers stay.

    >>> mask("write to ann@example.org or call +44 20 7946 0958", MaskSettings(pii="mask"))
    Masked(text='write to [EMAIL] or call [PHONE]', counts={'email': 1, 'phone': 1})
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from utils.corpus.clean import tidy_blank_lines

_URL = re.compile(r"(?<![\w@])(?:(?:https?|ftp)://|www\.)[^\s<>\"\u201c\u201d\[\]{}|\\^`]+", re.IGNORECASE)
_AFTER_URL = ".,;:!?'*_\u2019\u2026"
_EMAIL = re.compile(
    r"(?<![\w.%+-])[A-Za-z0-9_%+-][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])"
)
_CARD = re.compile(r"(?<![\d.,-])\d(?:[ -]?\d){12,18}(?![\d-])")
_CARD_STARTS = re.compile(
    r"(?:4(?:.{12}|.{15}|.{18})|5[1-5].{14}|2[2-7].{14}|3[47].{13}|3[0689].{12}|6.{15,18})\Z"
)
_IP4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w]|\.\d)")
_IP6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:]|\.\d)")
_PHONE = re.compile(
    r"(?<![\w+.,$\u00a3\u20ac-])(?:"
    r"\+\d{1,3}(?:[ .-]?\(\d{1,4}\))?(?:[ .-]?\d{1,4}){2,6}"  # +44 20 7946 0958
    r"|(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[.-])\d{3}[.-]\d{4}"  # (555) 123-4567, 555.123.4567
    r"|\(0\d{1,4}\) ?\d{3,4}[ .-]?\d{3,4}"  # (020) 7946 0958
    r")(?![\w]|[.,-]\d)"
)


class Masked(NamedTuple):
    """The text, and how many of each kind were found in it."""

    text: str
    counts: dict[str, int]


@dataclass(frozen=True)
class MaskSettings:
    """What happens to web addresses and to personal data."""

    urls: Literal["keep", "mask", "remove"] = "keep"
    pii: Literal["keep", "mask", "drop_document"] = "keep"


def mask(text: str, settings: MaskSettings) -> Masked:
    """Return the text with what the settings name replaced, and the counts per kind."""
    counts: Counter[str] = Counter()
    if settings.urls != "keep":
        text = _replace(text, "url", _URL, _is_anything, settings.urls == "remove", counts)
    if settings.pii != "keep":
        for kind, pattern, check in _KINDS:
            text = _replace(text, kind, pattern, check, False, counts)
    return Masked(tidy_blank_lines(text) if counts["url"] else text, dict(sorted(counts.items())))


def _replace(
    text: str, kind: str, pattern: re.Pattern, check: Callable[[str], bool], remove: bool, counts: Counter
) -> str:
    def replaced(match: re.Match) -> str:
        found = match[0]
        rest = found[len(_without_end(found)) :] if kind == "url" else ""
        if not check(found):
            return found
        counts[kind] += 1
        return rest if remove else f"[{kind.upper()}]{rest}"

    return pattern.sub(replaced, text)


def _without_end(url: str) -> str:
    """A web address without the punctuation of the sentence around it; a bracket that it opened stays."""
    while url and (url[-1] in _AFTER_URL or (url[-1] == ")" and url.count(")") > url.count("("))):
        url = url[:-1]
    return url


def _is_anything(found: str) -> bool:
    return True


def is_card(found: str) -> bool:
    """Whether digits start and end as those of a payment card do (the last one by Luhn's sum)."""
    digits = [int(character) for character in found if character.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (
        bool(_CARD_STARTS.match("".join(map(str, digits)))) and (sum(doubled) + sum(digits[-1::-2])) % 10 == 0
    )


def is_global_ip(found: str) -> bool:
    """Whether it is an address that anybody could be reached at, not a private or a reserved one."""
    try:
        return ipaddress.ip_address(found).is_global
    except ValueError:
        return False


def is_phone(found: str) -> bool:
    return 8 <= sum(map(str.isdigit, found)) <= 15


_KINDS: tuple[tuple[str, re.Pattern, Callable[[str], bool]], ...] = (
    ("email", _EMAIL, _is_anything),
    ("card", _CARD, is_card),
    ("ip", _IP4, is_global_ip),
    ("ip", _IP6, is_global_ip),
    ("phone", _PHONE, is_phone),
)
