"""
DATA_CARD.md: what the rows are, who wrote them, what was dropped, what they cost, and what they look like.

    text = data_card(config, metrics, used, folder)
"""

from itertools import islice
from pathlib import Path

from utils.config.generate import GenerateConfig
from utils.generate.budget import price

EXCERPT_CHARACTERS = 160
SAMPLES = 3
Used = dict[str, dict[str, list[int]]]
"""Dataset -> `model.step` -> calls, prompt tokens, completion tokens."""


def data_card(config: GenerateConfig, metrics: dict, used: Used, folder: Path) -> str:
    """The card of a finished run; `folder` holds the datasets."""
    subject = f'about "{config.main_topic}", ' if config.main_topic else ""
    parts = [
        "# Generated data",
        f"Synthetic rows {subject}written by stage 10 with seed {config.seed}.",
        _models(config),
        _datasets(metrics),
        *([_rubric(config)] if config.judged else []),
        *_usage(config, used),
    ]
    for name in config.datasets:
        parts += [
            f"## Samples of {name}",
            f"```\n{_samples(folder / name / 'dataset.jsonl', metrics, name)}\n```",
        ]
    return "\n\n".join(parts) + "\n"


def _models(config: GenerateConfig) -> str:
    rows = [
        (name, spec.model, spec.provider, f"{spec.temperature:g}", f"{spec.structure_temperature:g}")
        for name, spec in config.used_models.items()
    ]
    head = ("name", "model", "provider", "temperature of rows", "of lists and scores")
    return "## Models\n\n" + _table(head, rows)


def _datasets(metrics: dict) -> str:
    rows = [
        (
            name,
            c["mode"],
            f"{c['rows']:,}",
            f"{c['subtopics']:,}",
            _listed(c["duplicates"]),
            _listed(c["failures"]),
        )
        for name, c in metrics["datasets"].items()
    ]
    return "## Datasets\n\n" + _table(
        ("dataset", "mode", "rows", "subtopics", "duplicates", "failures"), rows
    )


def _rubric(config: GenerateConfig) -> str:
    rows = [
        (c.name, c.description, f"{c.weight:g}", f"{c.lowest:g} to {c.highest:g}")
        for c in config.judge.criteria
    ]
    return "## Rubric\n\n" + _table(("criterion", "description", "weight", "range"), rows)


def _usage(config: GenerateConfig, used: Used) -> list[str]:
    total: dict[str, list[int]] = {}
    for parts in used.values():
        for name, counts in parts.items():
            total[name] = [a + b for a, b in zip(total.get(name, [0, 0, 0]), counts, strict=True)]
    rows, cost = [], 0.0
    for name, (calls, prompt, completion) in sorted(total.items()):
        model, step = name.split(".")
        spec = config.models[model]
        paid = price(spec, prompt, completion)
        cost += paid
        rows.append(
            (spec.provider, spec.model, step, f"{calls:,}", f"{prompt:,}", f"{completion:,}", f"{paid:.4f}")
        )
    head = ("provider", "model", "step", "calls", "prompt tokens", "completion tokens", "cost")
    note = (
        "Over the replies that went into these decisions, rows that were dropped included; retries, and "
        f"replies that nothing came of, are not in it. Cost by the prices of the config: {cost:.4f}."
    )
    return ["## What it took", _table(head, rows), note]


def _samples(path: Path, metrics: dict, name: str) -> str:
    num_rows = metrics["datasets"][name]["rows"]
    with open(path, encoding="utf-8") as file:
        lines = list(islice(file, 0, None, max(1, num_rows // SAMPLES)))[:SAMPLES]
    return "\n".join(
        line if len(line) <= EXCERPT_CHARACTERS else line[:EXCERPT_CHARACTERS] + " ..."
        for line in (line.rstrip("\n") for line in lines)
    )


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.items()) or "none"


def _table(head: tuple[str, ...], rows: list[tuple]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )
