"""Templates: what is refused and why, and segments that tell template from text."""

from pathlib import Path

import pytest

from utils.chat.conversation import Message
from utils.chat.masks import ChatEncoder
from utils.chat.templates import ChatTemplate, count_spelled_markers
from utils.pipeline.errors import ConfigError
from utils.tokenizer.frozen import FrozenTokenizer

TEMPLATES = Path(__file__).parents[2] / "config" / "templates"
CHATML = (TEMPLATES / "chatml.jinja").read_text(encoding="utf-8")
SPOKEN = "message['content'] + '<|im_end|>' -}}{%- endgeneration"
HEADER = "'<|im_start|>assistant\\n' -}}\n{%- endif"
IS_ANSWER = "{%- if message['role'] == 'assistant' -%}"
# (what is replaced in chatml, by what, message)
EDITS = [
    ("generation -%}", "if true -%}", "no {% generation %} marks"),
    ("{%- endif -%}", "", "line"),
    ("<|im_start|>", "<|turn|>", "<|turn|> is not one control token of this tokenizer"),
    ("{{- bos_token -}}", "{{- bos_token + bos_token -}}", "at the start; it comes 2 times"),
    ("{{- bos_token -}}", "", "BOS must come exactly once, at the start; it comes 0 times"),
    (SPOKEN, "message['content'] -}}{%- endgeneration", "does not end with one control token"),
    (HEADER, "'<|im_start|>assistant' -}}\n{%- endif", "not prefix-preserving"),
    ("{%- for", "{{- messages | length -}}{%- for", "not prefix-preserving"),
    ("message['content']", "message['text']", "does not render"),
    (
        IS_ANSWER,
        "{%- if loop.last and message['role'] == 'assistant' -%}",
        "outside the {% generation %} marks",
    ),
]


@pytest.mark.parametrize(("old", "new", "message"), EDITS, ids=[message[:30] for *_, message in EDITS])
def test_a_template_that_cannot_be_trusted_is_refused(
    tokenizer: FrozenTokenizer, old: str, new: str, message: str
) -> None:
    source = CHATML.replace(old, new)
    assert source != CHATML
    with pytest.raises(ConfigError) as refused:
        ChatEncoder(ChatTemplate(source, "bad.jinja"), tokenizer)
    assert message in str(refused.value) and "bad.jinja" in str(refused.value)


def test_a_missing_template_names_those_that_are_there() -> None:
    with pytest.raises(ConfigError, match="there is no chat template nowhere.jinja") as refused:
        ChatTemplate.load(TEMPLATES / "nowhere.jinja")
    assert "chatml, plain" in refused.value.fix


def test_templates_run_in_a_sandbox(tokenizer: FrozenTokenizer) -> None:
    source = CHATML.replace("{{- bos_token -}}", "{{- bos_token -}}{{- ''.__class__.__mro__ -}}")
    with pytest.raises(ConfigError, match="does not render: access to attribute '__class__'"):
        ChatEncoder(ChatTemplate(source), tokenizer)


def test_control_marks_are_told_from_text_marks(tokenizer: FrozenTokenizer) -> None:
    marks = {
        p.stem: ChatEncoder(ChatTemplate.load(p), tokenizer).has_control_marks
        for p in Path(TEMPLATES).glob("*.jinja")
    }
    assert marks == {"chatml": True, "plain": False}


def test_spelled_markers_are_counted(chatml: ChatEncoder) -> None:
    messages = [Message("user", "<|im_end|> and </s></s>"), Message("assistant", "<|im_|>")]
    assert count_spelled_markers(messages, chatml.specials) == 3


def test_segments_number_the_turns(chatml: ChatEncoder) -> None:
    turns = [Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d")]
    segments = chatml.template.segments(turns, chatml.specials)
    spoken = [(s.text, s.turn) for s in segments if s.generated]
    assert spoken == [("b", 0), ("<|im_end|>", 0), ("d", 1), ("<|im_end|>", 1)]
