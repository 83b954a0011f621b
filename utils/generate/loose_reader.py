r"""
One value of JSON as models write it, read from a given place.

Taken besides JSON: `//`, `#` and `/* */` comments, smart and single quotation marks, quotation marks inside a
string that are not escaped, raw line breaks, missing, doubled and trailing commas, `...`, bare keys, Python's
None, True and False. Where the text ends too early, complete entries are kept and the rest is left out.

    reader = LooseReader('["cats", "do', 0)
    reader.value()          # ['cats']
    reader.is_cut           # True
"""

import json
import re

_DEEPEST = 50
_BETWEEN = re.compile(r"(?:[\s,;]+|//[^\n]*|#[^\n]*|/\*.*?(?:\*/|\Z)|\.\.\.|\u2026)*+", re.DOTALL)
_COLON = re.compile(r"\s*+[:=]\s*+")
_BARE_KEY = re.compile(r"[A-Za-z_][\w .-]*+(?=\s*+[:=])")
_ATOM = re.compile(
    r"(?:-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null|True|False|None)(?=\s*+(?:[,\]}#\n]|//))"
)
_CUT_ATOM = re.compile(r"[\w.+ -]*+\Z")
_PYTHON = {"True": True, "False": False, "None": None}
_CLOSING = {
    **dict.fromkeys("\u201c\u201d\u201e", re.compile('\\\\.|["\u201c\u201d]', re.DOTALL)),
    **dict.fromkeys("\u2018\u2019", re.compile("\\\\.|['\u2018\u2019]", re.DOTALL)),
    '"': re.compile(r'\\.|"', re.DOTALL),
    "'": re.compile(r"\\.|'", re.DOTALL),
}
_VALUE = (
    "(?:[\"'\u201c\u201d\u201e\u2018\\[{}\\]\\d\\-#/,.\u2026]|(?:true|false|null)\\b"
    "|[A-Za-z_]\\w*+\\s*+:|\\Z)"
)
_AFTER_STRING = re.compile(
    rf"\s*+(?:[\]}}:=#;]|//|/\*|```|\Z|,\s*+{_VALUE}|(?<=\s)[\"'\u201c\u2018\[{{])", re.DOTALL
)
"""What may follow a closing quotation mark; one before anything else belongs to its string."""
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}


class BrokenError(Exception):
    """Not JSON by any reading."""


class LooseReader:
    """Reads forward from `place`; `is_cut` once the text ended inside a value."""

    def __init__(self, text: str, place: int) -> None:
        self.text, self.place, self.is_cut = text, place, False

    def value(self, depth: int = 0) -> object:
        """The value that begins at `place`. BrokenError when none does."""
        if depth > _DEEPEST:
            raise BrokenError
        letter = self.text[self.place]
        if letter == "[":
            return self._list(depth)
        if letter == "{":
            return self._dict(depth)
        return self._string(letter) if letter in _CLOSING else self._atom()

    def _list(self, depth: int) -> list:
        self.place += 1
        items: list[object] = []
        while self._has_more():
            item = self.value(depth + 1)
            if not self.is_cut or (isinstance(item, list) and item):
                items.append(item)
        return items

    def _dict(self, depth: int) -> dict:
        self.place += 1
        found: dict[object, object] = {}
        while self._has_more():
            key = self._key()
            if not self._passes_colon():
                break
            value = self.value(depth + 1)
            if not self.is_cut or (isinstance(value, (list, dict)) and value):
                found[key] = value
        return found

    def _has_more(self) -> bool:
        """Go to the next entry, or past the closing bracket; either kind will do."""
        if self.is_cut:
            return False
        self.place = _BETWEEN.match(self.text, self.place).end()
        if self._ends():
            self.is_cut = True
            return False
        if self.text[self.place] in "]}":
            self.place += 1
            return False
        return True

    def _ends(self) -> bool:
        return self.place >= len(self.text) or self.text.startswith("```", self.place)

    def _key(self) -> str | None:
        if self.text[self.place] in _CLOSING:
            return self._string(self.text[self.place])
        bare = _BARE_KEY.match(self.text, self.place)
        if bare is None:
            return str(self._atom())
        self.place = bare.end()
        return bare[0].strip()

    def _passes_colon(self) -> bool:
        """Whether a value follows; False at the end of the text."""
        colon = _COLON.match(self.text, self.place)
        if colon:
            self.place = colon.end()
        elif not self.is_cut and not self._ends():
            raise BrokenError
        self.is_cut = self.is_cut or self._ends()
        return not self.is_cut

    def _string(self, opening: str) -> str | None:
        start = self.place + 1
        for mark in _CLOSING[opening].finditer(self.text, start):
            if mark[0][0] != "\\" and _AFTER_STRING.match(self.text, mark.end()):
                self.place = mark.end()
                return _unescaped(self.text[start : mark.start()])
        self.place, self.is_cut = len(self.text), True
        return None

    def _atom(self) -> object:
        atom = _ATOM.match(self.text, self.place)
        if atom:
            self.place = atom.end()
            return _constant(atom[0])
        if _CUT_ATOM.match(self.text, self.place):
            self.place, self.is_cut = len(self.text), True
            return None
        raise BrokenError


def _constant(text: str) -> object:
    if text in _PYTHON:
        return _PYTHON[text]
    try:
        return json.loads(text)
    except ValueError:
        raise BrokenError from None


def _unescaped(text: str) -> str:
    """`\\n`, `\\u00e4` and the like put in; halves of a surrogate pair joined."""
    if "\\" not in text:
        return text
    whole = _ESCAPE.sub(lambda found: chr(int(found[1], 16)) if found[1] else _letter(found[2]), text)
    return whole.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _letter(escaped: str) -> str:
    return _ESCAPED.get(escaped, escaped)
