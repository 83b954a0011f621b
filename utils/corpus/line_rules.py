"""
Line rules of C4: a line that speaks of scripts, cookies or policies goes, the document stays.

Blank lines are kept, unlike in datatrove's C4 step, which drops them as lines of too few words: in a book
they are half of all lines and every paragraph break.

    >>> drop_lines(TextView("A story.\n\nPlease enable JavaScript.\n\nIt goes on."), longest_word=1000)
    ('A story.\n\nIt goes on.', 1)
"""

from utils.corpus.clean import tidy_blank_lines
from utils.corpus.textview import TextView

NAMES = (
    "javascript", "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies",
    "use cookies",
)  # fmt: skip


def drop_lines(view: TextView, longest_word: int) -> tuple[str, int]:
    """Return the text without the lines that name a phrase or hold a longer word, and how many they were."""
    long_words = len(view.words) > 0 and int(view.lengths.max()) > longest_word
    if not long_words and not any(name in view.lowered for name in NAMES):
        return view.text, 0
    lines = view.text.split("\n")
    kept = [line for line in lines if not _unwanted(line, longest_word)]
    return tidy_blank_lines("\n".join(kept)), len(lines) - len(kept)


def _unwanted(line: str, longest_word: int) -> bool:
    lowered = line.lower()
    return any(name in lowered for name in NAMES) or any(len(word) > longest_word for word in line.split())
