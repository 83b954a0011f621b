"""Line rules: unwanted lines go, blank lines and everything else stays."""

import pytest

from utils.corpus.line_rules import drop_lines
from utils.corpus.textview import TextView


@pytest.mark.parametrize(
    "line",
    [
        "Please enable JavaScript.",
        "Our Privacy Policy",
        "This site USES COOKIES to",
        "terms of use",
        "x" * 31,
    ],
)
def test_unwanted_lines_are_dropped_and_counted(line: str):
    text = f"First.\n\n{line}\n{line}\n\n    Second."
    assert drop_lines(TextView(text), longest_word=30) == ("First.\n\n    Second.", 2)


def test_blank_lines_and_short_lines_are_kept():
    text = "A.\n\nB\n\n\tC\nD " + "x" * 30
    assert drop_lines(TextView(text), longest_word=30) == (text, 0)


def test_a_text_of_unwanted_lines_only_is_empty():
    assert drop_lines(TextView("javascript\nuse of cookies"), longest_word=30) == ("", 2)
    assert drop_lines(TextView(""), longest_word=30) == ("", 0)
