"""
MODEL_CARD.md: what the model is, in numbers from the run; no dates, so the same run writes the same card.

    (folder / "MODEL_CARD.md").write_text(model_card("Base model demo", metrics, samples, waivers))
    write_chat_texts(folder, template.source, card)      # beside a model that answers: its template as well
"""

from collections.abc import Mapping, Sequence
from pathlib import Path


def model_card(
    title: str, metrics: Mapping[str, object], samples: Sequence[Mapping], waivers: Sequence[Mapping]
) -> str:
    """Markdown with a table of measurements, the last samples and every allowed mismatch."""
    rows = [f"| {name.replace('_', ' ')} | {_shown(value)} |" for name, value in metrics.items()]
    lines = [f"# {title}", "", "| measured | |", "|---|---|", *rows]
    if samples:
        lines += ["", "## Samples", ""]
        lines += [f"- {row['prompt']!r} -> {row['text']!r}{_drawn(row)}" for row in samples]
    if waivers:
        lines += ["", "## Allowed mismatches", ""]
        lines += [
            f"- {row['stage']}: {row['verdict']} {row['component']}: {row['reason']}" for row in waivers
        ]
    return "\n".join(lines) + "\n"


def write_chat_texts(folder: Path, template: str, card: str) -> None:
    """chat_template.jinja and MODEL_CARD.md."""
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    (folder / "MODEL_CARD.md").write_text(card, encoding="utf-8")


def _drawn(row: Mapping) -> str:
    """Greedy samples have no temperature."""
    return f" (drawn at temperature {row['temperature']:g})" if "temperature" in row else ""


def _shown(value: object) -> str:
    if isinstance(value, list):
        return "; ".join(map(str, value))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
