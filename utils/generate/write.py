"""
What a run leaves: dataset.jsonl for each dataset in level order, maybe parquet, and failures.jsonl.

Rows are streamed from the journal by offset, so memory does not grow with them. No file holds a time, a speed
or a count of retries: the same replies give the same bytes.

    metrics = write_outputs(config, session, partial)
"""

import json
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

from utils.config.generate import GenerateConfig
from utils.generate.card import data_card
from utils.generate.formats import Shape
from utils.generate.journal import JournalReader
from utils.generate.state import State
from utils.pipeline.errors import DataError

ROWS_PER_GROUP = 1000


def dataset_rows(config: GenerateConfig, state: State, journal: JournalReader) -> Iterator[dict]:
    """The accepted rows of a dataset in level order, as far as they exist."""
    shape = Shape(config, state.name)
    for subtopic in state.subtopics:
        for offset in subtopic.rows:
            record = journal.read(offset).record()
            chosen = journal.reply(record["chosen"])
            rejected = journal.reply(record["rejected"]) if record["rejected"] else None
            if chosen is None or (record["rejected"] and rejected is None):
                raise DataError(
                    f'dataset "{state.name}": a reply that a row is made of is damaged in the journal',
                    fix="rerun: decisions are made again, and only what is lost is asked again",
                )
            yield from shape.rows(record, chosen, rejected)


def failures(state: State, journal: JournalReader) -> Iterator[dict]:
    """Which units of a dataset were not accepted and why, level by level in the order of decisions."""
    for offset in chain.from_iterable(state.failures.values()):
        record = journal.read(offset).record()
        unit = record["unit"] if "unit" in record else record["prompt"]
        told = {name: record[name] for name in ("reason", "excerpt", "attempts")}
        yield {"dataset": state.name, "unit": unit} | told


def write_failures(states: Iterable[State], journal: JournalReader, folder: Path) -> None:
    """failures.jsonl; also left behind when a run falls short."""
    _write_lines(folder / "failures.jsonl", (row for state in states for row in failures(state, journal)))


def write_outputs(
    config: GenerateConfig, states: dict[str, State], journal: JournalReader, folder: Path
) -> dict:
    """Write every output file and return the metrics."""
    for name, spec in config.datasets.items():
        (folder / name).mkdir(exist_ok=True)
        path = folder / name / "dataset.jsonl"
        _write_lines(path, dataset_rows(config, states[name], journal))
        if spec.also_parquet:
            write_parquet(path)
    write_failures((states[name] for name in config.datasets), journal, folder)
    metrics = measured(config, states)
    card = data_card(config, metrics, {name: states[name].used for name in config.datasets}, folder)
    (folder / "DATA_CARD.md").write_text(card, encoding="utf-8", newline="\n")
    return metrics


def measured(config: GenerateConfig, states: dict[str, State]) -> dict:
    """Counts by dataset, and the rubric once."""
    metrics: dict[str, object] = {
        "datasets": {name: _counts(config, states[name]) for name in config.datasets}
    }
    if config.judged:
        fields = {"name", "weight", "lowest", "highest"}
        metrics["criteria"] = [criterion.model_dump(include=fields) for criterion in config.judge.criteria]
    return metrics


def _counts(config: GenerateConfig, state: State) -> dict:
    reasons = {reason: count for reason, count in sorted(state.reasons.items()) if count}
    return {
        "mode": config.datasets[state.name].mode,
        "rows": state.rows,
        "subtopics": len(state.subtopics),
        "duplicates": {k: v for k, v in reasons.items() if k.startswith("duplicate_")},
        "failures": {k: v for k, v in reasons.items() if not k.startswith("duplicate_")},
    } | ({"scored": state.scored} if config.datasets[state.name].judged else {})


def write_parquet(path: Path) -> None:
    """`dataset.parquet` beside a dataset.jsonl, group by group; the first group fixes the schema."""
    import pyarrow
    from pyarrow import parquet

    with open(path, encoding="utf-8") as file:
        rows = (json.loads(line) for line in file)
        first = pyarrow.Table.from_pylist(list(islice(rows, ROWS_PER_GROUP)))
        with parquet.ParquetWriter(path.with_suffix(".parquet"), first.schema) as writer:
            writer.write_table(first)
            while group := list(islice(rows, ROWS_PER_GROUP)):
                writer.write_table(pyarrow.Table.from_pylist(group, schema=first.schema))


def _write_lines(path: Path, rows: Iterable[dict]) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
