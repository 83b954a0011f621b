"""
Is an answer fit to become part of a row, and have we had it before?

    >>> fault_of(Reply("", "stop", 0, 0), ValidationSpec())
    'empty'
"""

import re
import unicodedata

from utils.config.generate import ValidationSpec
from utils.generate.client import Reply
from utils.generate.parse import strip_reasoning


def answer_text(reply: Reply) -> str:
    """What a row keeps of a reply."""
    return strip_reasoning(reply.content)


def fault_of(reply: Reply, spec: ValidationSpec) -> str:
    """Why an answer cannot be used, or `""`."""
    if reply.finish_reason == "content_filter":
        return "content_filter"
    if reply.finish_reason == "length" and not spec.accept_truncated:
        return "truncated"
    return "" if answer_text(reply) else "empty"


_PUNCTUATION = re.compile(
    "[!\"#%&'()*,\\-./:;?@\\[\\\\\\]_{}\u00a1\u00a7\u00ab\u00b6\u00b7\u00bb\u00bf\u2010-\u2027\u2030-\u205e\u3001-\u3003\u3008-\u3011]"
)


def normalised(text: str) -> str:
    """The form in which two texts count as the same: NFKC, case, blanks and punctuation do not matter."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_PUNCTUATION.sub("", folded).split()) or " ".join(folded.split())
