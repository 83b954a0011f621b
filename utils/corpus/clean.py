r"""
Cleaning: text to text, idempotent, with newlines, tabs and inner spaces kept, because code and verse live on
them.

The steps repeat until nothing changes (two or three passes were always enough), so clean(clean(x)) ==
clean(x).

    >>> clean("caf\u00c3\u00a9  \r\n\r\n\r\n\u200bnext")
    'café\n\nnext'
"""

import re
import unicodedata

import ftfy

MAX_PASSES = 4
_NEWLINES = re.compile("\r\n|[\r\x85\u2028\u2029\v\f]")
# U+200C and U+200D stay: scripts and emoji need them
_UNWANTED = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\u200b\u2060\ufeff]")
_BLANK_LINES = re.compile("\n{3,}")
# SentencePiece decodes U+2581 as a space: text that holds it would not survive the round trip
_WORD_MARK = "\u2581"
_FTFY = ftfy.TextFixerConfig(
    unescape_html=False,
    uncurl_quotes=False,
    fix_character_width=False,
    fix_line_breaks=False,
    remove_terminal_escapes=False,
    remove_control_chars=False,
    normalization=None,
    explain=False,
)


def clean(text: str) -> str:
    """
    Return the text with broken encodings mended, line ends unified, control characters and blank edges
    removed.
    """
    for _ in range(MAX_PASSES):
        ascii_only = text.isascii()
        before, text = text, _clean_once(text)
        if ascii_only or text == before:
            break
    return text


def _clean_once(text: str) -> str:
    text = _NEWLINES.sub("\n", text)
    if not text.isascii():
        # ftfy works line by line, so leaving ASCII lines out changes nothing but the time
        lines = (line if line.isascii() else ftfy.fix_text(line, _FTFY) for line in text.split("\n"))
        text = unicodedata.normalize("NFC", "\n".join(lines))
    text = _UNWANTED.sub("", text).replace(_WORD_MARK, "_")
    text = "\n".join(line.rstrip(" \t") for line in text.split("\n"))
    return _BLANK_LINES.sub("\n\n", text).strip("\n")
