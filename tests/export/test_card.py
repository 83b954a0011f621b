"""Cards carry the numbers they are given and no dates; the Modelfile's template is the model's."""

import re
from pathlib import Path

import jinja2
import pytest

from utils.export.card import CardFacts, gguf_card, merged_card, modelfile, ollama_template, probe_messages

TEMPLATES = Path(__file__).resolve().parents[2] / "config" / "templates"
LINEAGE = [
    {
        "stage": "110_merge_lora", "path": "checkpoints/demo/merged", "output_digest": "ab" * 32,
        "parents": {"base": "cd" * 32}, "sources": [], "mismatches_allowed": [],
    }
]  # fmt: skip
WAIVER = {
    "stage": "50_pretrain",
    "role": "data",
    "verdict": "stale",
    "component": "input.data",
    "reason": "new card",
}
FILE = {
    "bytes": 1_500_000,
    "bytes_per_weight": 1.0625,
    "mean_kl": 1.5e-6,
    "top1_agreement": 0.999,
    "perplexity": 1.81,
}


def test_gguf_card_has_the_measured_numbers() -> None:
    facts = CardFacts(
        "demo", "mit", 1_311_488, 128, {"q8_0": FILE}, LINEAGE, "# Evaluation\n\n| exact |\n", [WAIVER]
    )
    card = gguf_card(facts)
    for expected in (
        "license: mit",
        "1,311,488 parameters",
        "| model-q8_0.gguf | 1,500,000 | 8.50 | 1.5e-06 | 99.90 % |",
        "## Evaluation", "| 110_merge_lora | checkpoints/demo/merged | abababababab | base cdcdcdcdcdcd |",
        "- 50_pretrain data: stale input.data: new card",
    ):  # fmt: skip
        assert expected in card
    assert not re.search(r"20\d\d-\d\d-\d\d", card)


def test_cards_leave_out_what_is_not_there() -> None:
    card = gguf_card(CardFacts("demo", "", 1, 1, {"f16": FILE}, LINEAGE))
    assert "license" not in card and "Evaluation" not in card and "mismatches" not in card


def test_merged_card_has_the_parity() -> None:
    card = merged_card("checkpoints/demo/merged", {"mode": "merged", "mean_kl": 1.25e-12}, LINEAGE, [])
    assert "| mean kl | 1.25e-12 |" in card and "110_merge_lora" in card


@pytest.mark.parametrize("name", ["chatml", "plain"])
def test_ollama_template_wraps_turns_as_the_model_was_trained(name: str) -> None:
    source = re.sub(
        r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}", r"{#\1\2#}", (TEMPLATES / f"{name}.jinja").read_text()
    )
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(source)

    def render(messages: list[dict]) -> str:
        return template.render(messages=messages, bos_token="", eos_token="</s>", add_generation_prompt=False)

    found = ollama_template(render(probe_messages()))
    fill = {"{{ .System }}": "be brief", "{{ .Prompt }}": "hi", "{{ .Response }}": "hello", "{{ end }}": ""}
    with_system = found.replace("{{ if .System }}", "")
    without_system = re.sub(r"\{\{ if \.System \}\}.*?\{\{ end \}\}", "", found, flags=re.DOTALL)
    for text, value in fill.items():
        with_system, without_system = with_system.replace(text, value), without_system.replace(text, value)
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    assert with_system == render([{"role": "system", "content": "be brief"}, *turns])
    assert without_system == render(turns)


def test_modelfile_names_file_context_stop_and_system() -> None:
    text = modelfile(
        "model-q8_0.gguf",
        "<s>SYSTEM TEXT</s><u>USER TEXT</u><a>ASSISTANT TEXT</a>",
        256,
        ["<|im_end|>"],
        "Be kind.",
    )
    assert text.startswith("FROM ./model-q8_0.gguf\nTEMPLATE")
    assert 'PARAMETER num_ctx 256\nPARAMETER stop "<|im_end|>"\nSYSTEM """Be kind."""\n' in text
