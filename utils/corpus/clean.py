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
# ftfy sees mojibake in pairs and triples of characters. None of them can be made of ASCII, dashes, the
# ellipsis and curly quotes alone, nor of ASCII, dashes and these accented letters; the test tries them all.
PUNCTUATION_LINE = re.compile("[\x00-\x7f\u2013\u2014\u2018\u2019\u201c\u201d\u2026]*")
ACCENTED_LINE = re.compile("[\x00-\x7f\u2013\u2014\u2019\u2026\xe0\xe1\xe4\xe7-\xef\xf1\xf4\xf6\xfc]*")


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
        # ftfy works line by line, so leaving out the lines that it would not change costs nothing but care
        text = unicodedata.normalize("NFC", mend_lines(text))
    return tidy_blank_lines(_UNWANTED.sub("", text).replace(_WORD_MARK, "_"))


def mend_lines(text: str) -> str:
    """Return what ftfy makes of the text, which it takes line by line, each with the newline that ends it."""
    *lines, last = text.split("\n")
    return "".join([*(_mend(line + "\n") for line in lines), _mend(last)])


def _mend(line: str) -> str:
    if line.isascii() or PUNCTUATION_LINE.fullmatch(line) or ACCENTED_LINE.fullmatch(line):
        return line
    return ftfy.fix_text(line, _FTFY)


def tidy_blank_lines(text: str) -> str:
    """
    Return the text without trailing blanks, without outer blank lines, and never two blank lines in a
    row.
    """
    if " \n" in text or "\t\n" in text or text[-1:] in (" ", "\t"):
        text = "\n".join(line.rstrip(" \t") for line in text.split("\n"))
    return _BLANK_LINES.sub("\n\n", text).strip("\n")
