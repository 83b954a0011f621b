"""
The files of stage 20 besides its numbers: shards of both splits, the table of documents, what was removed.

    >>> shards = write_split(stage.partial, "train", documents, selection.train, config.shards, stage)
    >>> write_table(stage.partial / "documents.parquet", documents, selection, names)
    >>> samples = write_removed(stage.partial, segments, documents, duplicates, names, keep_text=True)
"""

import json
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from utils.config.corpus import ShardConfig
from utils.corpus.documents import Documents
from utils.corpus.duplicates import WHOLE, Duplicates
from utils.corpus.executor import Stopping
from utils.corpus.order import in_output_order
from utils.corpus.packed import SAMPLES_PER_REASON, removed_line, sample
from utils.corpus.segments import Segments
from utils.corpus.select import Selection
from utils.corpus.shards import CompressedLines, ShardInfo, write_shards

TABLE_ROWS = 1 << 16
LINES_AT_ONCE = 1_000


def write_split(
    folder: Path, split: str, documents: Documents, chosen: np.ndarray, config: ShardConfig, stage: Stopping
) -> list[ShardInfo]:
    """Write the chosen documents as shards, in output order; what a killed run left is replaced."""
    shutil.rmtree(folder / split, ignore_errors=True)
    lines = in_output_order(documents, chosen, documents.folder / "order", stage)
    return write_shards(folder / split, lines, config.target_mebibytes << 20, config.compression)


def write_table(path: Path, documents: Documents, selection: Selection, names: list[str]) -> None:
    """
    Write one row per document of the shards, in canonical order: id, split, source, group, bytes,
    language.
    """
    import pyarrow
    import pyarrow.parquet

    text = pyarrow.string()
    columns = {"id": text, "split": text, "source": text, "group": text, "bytes": pyarrow.int64()}
    schema = pyarrow.schema(columns | {"language": text})
    rows = _table_rows(documents, selection, names)
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        while batch := list(islice(rows, TABLE_ROWS)):
            writer.write_table(pyarrow.Table.from_pylist(batch, schema))


def _table_rows(documents: Documents, selection: Selection, names: list[str]) -> Iterator[dict]:
    for span in documents.spans:
        here = slice(span.first, span.first + span.count)
        written = np.flatnonzero(selection.written[here])
        if not len(written):
            continue
        entries, groups, val = documents.entries(span), documents.groups(span), selection.val[here]
        for k in written.tolist():
            yield {
                "id": entries["id"][k].tobytes().hex(),
                "split": "val" if val[k] else "train",
                "source": names[span.source],
                "group": groups[k],
                "bytes": int(entries["text_bytes"][k]),
                "language": entries["language"][k].decode(),
            }


def write_removed(
    folder: Path,
    segments: Segments,
    documents: Documents,
    duplicates: Duplicates,
    names: list[str],
    keep_text: bool,
) -> list[dict]:
    """
    Write `removed/<reason>.jsonl.zst`: rows in the order of reading, duplicates in canonical order. Returns
    the first few duplicates of each source as samples.
    """
    shutil.rmtree(folder / "removed", ignore_errors=True)
    (folder / "removed").mkdir()
    for reason, path in segments.removed_files().items():
        writer = CompressedLines(folder / "removed" / f"{reason}.jsonl.zst")
        with open(path, "rb") as file:
            while lines := list(islice(file, LINES_AT_ONCE)):
                writer.write_many(b"".join(lines), len(lines))
        writer.close()
    samples: list[dict] = []
    for reason, losers in (("exact_duplicate", duplicates.exact), ("near_duplicate", duplicates.near)):
        if len(losers):
            writer = CompressedLines(folder / "removed" / f"{reason}.jsonl.zst")
            for row, text in _duplicate_rows(documents, reason, losers, names):
                writer.write(removed_line(row, text, keep_text))
                samples.append(sample(row, text, keep_text))
                samples = _first_few(samples)
            writer.close()
    return samples


def _first_few(samples: list[dict]) -> list[dict]:
    """Drop the last sample when there are enough of its kind."""
    last = samples[-1]
    alike = [row for row in samples if (row["source"], row["reason"]) == (last["source"], last["reason"])]
    return samples if len(alike) <= SAMPLES_PER_REASON else samples[:-1]


def _duplicate_rows(
    documents: Documents, reason: str, losers: np.ndarray, names: list[str]
) -> Iterator[tuple[dict, str]]:
    wanted = np.zeros(len(documents), bool)
    wanted[losers["document"]] = True
    rows = iter(losers)
    for _, lines in documents.lines(wanted):
        for line, loser in zip(lines, rows, strict=False):
            document, kept = json.loads(line), int(loser["kept"])
            row = {"id": document["id"], "source": document["source"], "reason": reason}
            row |= {"kept": documents.id(kept), "kept_source": names[documents.source(kept)]}
            if reason == "near_duplicate":
                row["jaccard"] = int(loser["jaccard"]) / WHOLE
            yield row, document["text"]
