"""
The chat template inside a GGUF: without `{% generation %}` marks, which other programs need not know.

    embedded = chat_template_without_marks(folder)      # {% generation %} became {# generation #}
    restore_marks(embedded)                             # and back, for our own chat program
"""

from __future__ import annotations

import re
from pathlib import Path

GENERATION_MARK = re.compile(r"\{%(-?)\s*((?:end)?generation)\s*(-?)%\}")
HIDDEN_MARK = re.compile(r"\{#(-?)\s*((?:end)?generation)\s*(-?)#\}")


def chat_template_without_marks(folder: Path) -> str:
    """The chat template with `{% generation %}` marks turned into comments, which render to nothing.

    A comment keeps the blank-trimming of the tag that it replaces, so the rendered text stays the same, and
    our own chat program can turn it back into the mark.
    """
    path = folder / "chat_template.jinja"
    if not path.is_file():
        return ""
    return GENERATION_MARK.sub(r"{#\1 \2 \3#}", path.read_text(encoding="utf-8"))


def restore_marks(embedded: str) -> str:
    """
    The template with its `{% generation %}` marks again, from what `chat_template_without_marks`
    embedded.
    """
    return HIDDEN_MARK.sub(r"{%\1 \2 \3%}", embedded)
