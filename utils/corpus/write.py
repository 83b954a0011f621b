"""
The output of stage 20 besides its numbers: shards of both splits, and every removed document by reason.

    >>> train = write_split(stage.partial, "train", documents, chosen, target_bytes=64 << 20)
    >>> samples = write_removed(stage.partial, removed_rows, documents, selection, names, keep_text=True)
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from utils.corpus.card import Samples, SplitStats, split_stats
from utils.corpus.segments import Documents
from utils.corpus.select import Selection, output_order
from utils.corpus.shards import ZstdLines, write_shards


def write_split(
    folder: Path, split: str, documents: Documents, chosen: np.ndarray, target_bytes: int
) -> SplitStats:
    """Write the chosen documents as shards, in output order; what a killed run left is replaced."""
    shutil.rmtree(folder / split, ignore_errors=True)
    lines = (documents.line(int(i)) for i in output_order(documents, chosen))
    return split_stats(documents, chosen, write_shards(folder / split, lines, target_bytes))


def write_removed(
    folder: Path,
    removed_rows: Path,
    documents: Documents,
    selection: Selection,
    names: list[str],
    keep_text: bool,
) -> Samples:
    """Write `removed/<reason>.jsonl.zst`, reading order first, then duplicates in canonical order."""
    shutil.rmtree(folder / "removed", ignore_errors=True)
    (folder / "removed").mkdir()
    writers: dict[str, ZstdLines] = {}
    samples = Samples()
    for row, text in _removed(removed_rows, documents, selection, names):
        samples.offer(row, text if keep_text else "")
        row = row | ({"text": text} if keep_text else {})
        reason = row["reason"].split(":")[0]
        if reason not in writers:
            writers[reason] = ZstdLines(folder / "removed" / f"{reason}.jsonl.zst")
        writers[reason].write(json.dumps(row, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    for writer in writers.values():
        writer.close()
    return samples


def _removed(
    removed_rows: Path, documents: Documents, selection: Selection, names: list[str]
) -> Iterator[tuple[dict, str]]:
    with open(removed_rows, "rb") as file:
        for line in file:
            row = json.loads(line)
            yield row, row.pop("text", "")
    for loser in selection.losers:
        document = json.loads(documents.line(loser.document))
        row = {"id": document["id"], "source": document["source"], "reason": loser.reason}
        row |= {
            "kept": documents.id(loser.kept),
            "kept_source": names[int(documents.entries["source"][loser.kept])],
        }
        if loser.reason == "near_duplicate":
            row["jaccard"] = loser.jaccard
        yield row, document["text"]
