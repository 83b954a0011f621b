"""
What a model said, read out of a completion: the answer, the thinking apart from it, the token counts.

    >>> split_thinking("Simple.</think>Four.")
    ('Four.', 'Simple.')
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from utils.generate.errors import BrokenReply

BYTES_PER_TOKEN = 4.0
"""Rough size of a token of English, where nobody counted."""
_TAG = re.compile(r"<(/?)think(?:ing)?\s*>", re.IGNORECASE)


@dataclass(frozen=True)
class Reply:
    """An answer without its thinking; `finish_reason` and token counts as the provider reports them."""

    content: str
    reasoning: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def texts(self) -> tuple[str, str, str]:
        """Everything in it that a server worded."""
        return self.content, self.reasoning, self.finish_reason


def tokens_in(num_bytes: int) -> int:
    """About how many tokens a text of so many bytes has."""
    return math.ceil(num_bytes / BYTES_PER_TOKEN)


def split_thinking(text: str) -> tuple[str, str]:
    """
    The text without its `<think>` and `<thinking>` blocks, and what stood in them.

    A closing tag without an opening one ends a block that began with the text (many chat templates put the
    opening tag into the prompt). A block that never closes means that the answer was cut off inside a
    thought: all of it is thinking.
    """
    content: list[str] = []
    thoughts: list[str] = []
    inside, at = False, 0
    for tag in _TAG.finditer(text):
        piece, at = text[at : tag.start()], tag.end()
        closes = bool(tag[1])
        (thoughts if inside else content).append(piece)
        if closes and not inside:
            thoughts += content
            content = []
        inside = not closes
    if not at:
        return text, ""
    if inside:
        return "", _joined([*content, *thoughts, text[at:]])
    return "".join([*content, text[at:]]).strip(), _joined(thoughts)


def read_reply(data: bytes) -> Reply:
    """The reply in the body of a completion. BrokenReply when the body is broken or holds no choice."""
    try:
        document = json.loads(data)
        choice = document["choices"][0]
        if error := choice.get("error"):
            raise BrokenReply("error_in_reply", json.dumps(error))
        message = choice["message"]
        content, thoughts = text_of(message.get("content"))
        thoughts = _joined([stated_thinking(message), thoughts])
        return make_reply(content, thoughts, choice.get("finish_reason"), document.get("usage"))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise BrokenReply("broken_reply", f"{type(error).__name__}: {error}") from None


def make_reply(content: str, thoughts: str, finish_reason: object, usage: object) -> Reply:
    """A reply from its parts, with inline thinking taken out of the content."""
    said, inline = split_thinking(content)
    counts = usage if isinstance(usage, Mapping) else {}
    return Reply(
        content=well_formed(said),
        reasoning=well_formed(_joined([thoughts, inline])),
        finish_reason=finish_reason if isinstance(finish_reason, str) else "",
        prompt_tokens=_count(counts.get("prompt_tokens")),
        completion_tokens=_count(counts.get("completion_tokens")),
    )


def with_guessed_counts(reply: Reply, num_body_bytes: int) -> Reply:
    """The reply with token counts guessed from sizes, for providers that report none."""
    said = len(reply.content.encode()) + len(reply.reasoning.encode())
    return replace(reply, prompt_tokens=tokens_in(num_body_bytes), completion_tokens=tokens_in(said))


def stated_thinking(message: Mapping[str, object]) -> str:
    """Thinking that a provider sends in a field of its own: `reasoning_content` or `reasoning`."""
    for name in ("reasoning_content", "reasoning"):
        value = message.get(name)
        if isinstance(value, str) and value:
            return value
    return ""


def text_of(content: object) -> tuple[str, str]:
    """Content and thinking of a message's content: a string, nothing, or a list of typed parts."""
    if not isinstance(content, list):
        return (content, "") if isinstance(content, str) else ("", "")
    said, thoughts = [], []
    for part in content:
        if isinstance(part, Mapping) and part.get("type") == "thinking":
            thoughts.append(text_of(part.get("thinking"))[0])
        elif isinstance(part, Mapping):
            said.append(text_of(part.get("text"))[0])
    return "".join(said), "".join(thoughts)


def well_formed(text: str) -> str:
    """The text with halves of surrogate pairs joined, and lone ones replaced: it can be written as UTF-8."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _joined(parts: list[str]) -> str:
    return "\n".join(part.strip() for part in parts if part.strip())


def _count(value: object) -> int:
    return value if type(value) is int and value > 0 else 0
