"""
What a finished run leaves: dataset.jsonl per dataset in level order, failures.jsonl, DATA_CARD.md.

No file holds a time, a speed or a count of retries: the same replies give the same bytes.

    metrics = write_outputs(config, generated, partial)
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from utils.config.generate import GenerateConfig
from utils.generate.dataset import Dataset
from utils.generate.rows import row_record

EXCERPT_CHARACTERS = 160
SAMPLES = 3


@dataclass(frozen=True)
class Generated:
    """What a run made: the datasets, tokens per model and step, and how many calls were new."""

    datasets: list[Dataset]
    usage: dict[str, dict[str, int]]
    calls_made: int


def write_failures(datasets: list[Dataset], folder: Path) -> None:
    """Which units were not accepted and why, in level order; also left behind when a run falls short."""
    failures = [asdict(failure) for dataset in datasets for failure in dataset.failures]
    _write_lines(folder / "failures.jsonl", failures)


def write_outputs(config: GenerateConfig, generated: Generated, folder: Path) -> dict:
    """Write every output file and return the metrics."""
    records = {d.name: [row_record(config, d.name, row) for row in d.rows] for d in generated.datasets}
    for name, rows in records.items():
        (folder / name).mkdir(exist_ok=True)
        _write_lines(folder / name / "dataset.jsonl", rows)
    write_failures(generated.datasets, folder)
    metrics = {
        "datasets": {dataset.name: _counts(dataset) for dataset in generated.datasets},
        "usage": generated.usage,
    }
    (folder / "DATA_CARD.md").write_text(_card(config, metrics, records), encoding="utf-8", newline="\n")
    return metrics


def _counts(dataset: Dataset) -> dict:
    return {
        "mode": dataset.spec.mode,
        "rows": len(dataset.rows),
        "subtopics": len(dataset.subtopics),
        "not_accepted": dict(sorted(dataset.reasons().items())),
    }


def _write_lines(path: Path, rows: list[dict]) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _card(config: GenerateConfig, metrics: dict, records: dict[str, list[dict]]) -> str:
    models = ", ".join(f"`{name}` = {spec.model} ({spec.provider})" for name, spec in config.models.items())
    parts = [
        "# Generated data",
        f'Synthetic rows about "{config.main_topic}", written by stage 10 with seed {config.seed}.',
        f"Models: {models}.",
        _table(
            ("dataset", "mode", "rows", "subtopics", "not accepted, by reason"),
            [
                (name, c["mode"], f"{c['rows']:,}", f"{c['subtopics']:,}", _listed(c["not_accepted"]))
                for name, c in metrics["datasets"].items()
            ],
        ),
        "## Tokens as the providers count them",
        _table(
            ("model and step", "calls", "prompt tokens", "completion tokens"),
            [
                (name, *(f"{u[key]:,}" for key in ("calls", "prompt_tokens", "completion_tokens")))
                for name, u in metrics["usage"].items()
            ],
        ),
    ]
    for name, rows in records.items():
        lines = [
            json.dumps(row, ensure_ascii=False) for row in rows[:: max(1, len(rows) // SAMPLES)][:SAMPLES]
        ]
        shown = "\n".join(
            line if len(line) <= EXCERPT_CHARACTERS else line[:EXCERPT_CHARACTERS] + " ..." for line in lines
        )
        parts += [f"## Samples of {name}", f"```\n{shown}\n```"]
    return "\n\n".join(parts) + "\n"


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.items()) or "none"


def _table(head: tuple[str, ...], rows: list[tuple]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
