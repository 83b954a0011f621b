"""
stats.json and DATA_CARD.md: what went into a corpus and what was left out, in numbers that anybody can check.

The card is written from the stats alone and names no date, path or speed, so it is as reproducible as the
shards.

    >>> stats = corpus_stats(...)
    >>> (folder / "DATA_CARD.md").write_text(data_card(stats, waivers=[]))
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from utils.corpus.segments import Documents
from utils.corpus.select import Selection
from utils.corpus.shards import ShardInfo

SAMPLES_PER_REASON, SAMPLE_CHARACTERS = 3, 200


@dataclass
class SourceStats:
    """Counts of one source. read = kept + all removed."""

    kind: str
    read: int = 0
    kept: int = 0
    bytes: int = 0
    train_documents: int = 0
    val_documents: int = 0
    removed: dict[str, int] = field(default_factory=dict)

    def line(self) -> str:
        """One line for the terminal."""
        reasons = ", ".join(f"{name} {count:,}" for name, count in Counter(self.removed).most_common())
        return f"{self.read:>9,} read {self.kept:>9,} kept   {self.bytes / 1e6:,.1f} MB   {reasons}".rstrip()


@dataclass(frozen=True)
class SplitStats:
    """Counts of one split; bytes are those of the texts in UTF-8."""

    documents: int
    groups: int
    bytes: int
    shards: list[ShardInfo]


@dataclass
class Samples:
    """The first few removed texts of each source and reason."""

    rows: dict[tuple[str, str], list[dict]] = field(default_factory=dict)

    def offer(self, row: dict, text: str) -> None:
        kept = self.rows.setdefault((row["source"], row["reason"]), [])
        if len(kept) < SAMPLES_PER_REASON:
            shown = {name: row[name] for name in ("measured", "threshold", "jaccard", "kept") if name in row}
            kept.append({"id": row["id"], **shown, "text": text[:SAMPLE_CHARACTERS]})


def source_stats(
    names_and_kinds: Sequence[tuple[str, str]],
    rows_read: Sequence[int],
    removed: Sequence[Counter[str]],
    documents: Documents,
    selection: Selection,
    val: np.ndarray,
) -> dict[str, SourceStats]:
    """Return the counts of every source, having checked that read = kept + removed."""
    stats, entries = {}, documents.entries
    losers = Counter((int(entries["source"][loser.document]), loser.reason) for loser in selection.losers)
    for number, (name, kind) in enumerate(names_and_kinds):
        mine = selection.kept & (entries["source"] == number)
        reasons = removed[number] + Counter({reason: n for (s, reason), n in losers.items() if s == number})
        found = SourceStats(kind, rows_read[number], int(mine.sum()), int(entries["text_bytes"][mine].sum()))
        found.train_documents, found.val_documents = int((mine & ~val).sum()), int((mine & val).sum())
        found.removed = dict(sorted(reasons.items()))
        assert found.read == found.kept + sum(found.removed.values()), f"{name}: rows lost or counted twice"
        stats[name] = found
    return stats


def split_stats(documents: Documents, chosen: np.ndarray, shards: list[ShardInfo]) -> SplitStats:
    entries = documents.entries[chosen]
    return SplitStats(len(chosen), len(np.unique(entries["split"])), int(entries["text_bytes"].sum()), shards)


def corpus_stats(
    sources: dict[str, SourceStats],
    train: SplitStats,
    val: SplitStats,
    selection: Selection,
    samples: Samples,
) -> dict:
    """Return the content of stats.json."""
    exact = sum(loser.reason == "exact_duplicate" for loser in selection.losers)
    duplicates = {
        "exact": exact,
        "near": len(selection.losers) - exact,
        "cluster_sizes": selection.cluster_sizes(),
        "candidate_pairs": selection.candidate_pairs,
        "large_buckets": selection.large_buckets,
    }
    shown = [{"source": s, "reason": r, "samples": rows} for (s, r), rows in sorted(samples.rows.items())]
    return {
        "sources": {name: asdict(stats) for name, stats in sources.items()},
        "splits": {"train": asdict(train), "val": asdict(val)},
        "duplicates": duplicates,
        "removed_samples": shown,
    }


def corpus_metrics(stats: dict) -> dict:
    """Return what the manifest records of the stats."""
    splits = stats["splits"]
    metrics: dict = {
        f"{split}_{key}": splits[split][key] for split in splits for key in ("documents", "groups", "bytes")
    }
    sources = {
        name: {k: s[k] for k in ("read", "kept", "bytes", "removed")} for name, s in stats["sources"].items()
    }
    return (
        metrics
        | {"sources": sources, "exact_duplicates": stats["duplicates"]["exact"]}
        | {"near_duplicates": stats["duplicates"]["near"]}
    )


def data_card(stats: dict, waivers: Sequence[dict]) -> str:
    """Return the card as Markdown."""
    parts = [
        "# Data card",
        _source_table(stats),
        _split_table(stats),
        _removed_table(stats),
        _duplicates(stats),
    ]
    parts.append(_waivers(waivers))
    parts.append(
        "## How to rebuild\n\nThe manifest beside this file holds the resolved config, the SHA-256 of every "
        "input file and the digest of the result. Run stage 20 again with that config: the same inputs give "
        "the same bytes."
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    for row in rows:
        cells = (f"{cell:,}" if isinstance(cell, int) else str(cell).replace("|", "\\|") for cell in row)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _source_table(stats: dict) -> str:
    keys = ("kind", "read", "kept", "bytes", "train_documents", "val_documents")
    rows = [(name, *(source[key] for key in keys)) for name, source in stats["sources"].items()]
    return "## Sources\n\n" + _table(("source", "kind", "read", "kept", "bytes", "train", "validation"), rows)


def _split_table(stats: dict) -> str:
    rows = [
        (n, s["documents"], s["groups"], s["bytes"], len(s["shards"])) for n, s in stats["splits"].items()
    ]
    note = "A group (a document, or all chapters of a book) is on one side only, by the hash of its name."
    return f"## Splits\n\n{note}\n\n" + _table(("split", "documents", "groups", "bytes", "shards"), rows)


def _removed_table(stats: dict) -> str:
    rows = [(n, reason, count) for n, s in stats["sources"].items() for reason, count in s["removed"].items()]
    if not rows:
        return "## Removed\n\nNothing was removed."
    text = "## Removed\n\nEvery removed document is in `removed/`, with its reason.\n\n"
    text += _table(("source", "reason", "documents"), rows)
    for entry in stats["removed_samples"]:
        text += f"\n\n### {entry['source']}: {entry['reason']}\n"
        for row in entry["samples"]:
            numbers = ", ".join(
                f"{key} {row[key]}" for key in ("measured", "threshold", "jaccard") if key in row
            )
            shown = " ".join(row["text"].split()).replace("`", "'")
            text += f"\n- {numbers or row['id']}: `{shown}`"
    return text


def _duplicates(stats: dict) -> str:
    found = stats["duplicates"]
    text = f"## Duplicates\n\n{found['exact']:,} exact and {found['near']:,} near duplicates were removed"
    sizes = ", ".join(f"{count:,} of {size}" for size, count in found["cluster_sizes"].items())
    return text + (f"; clusters: {sizes} documents." if sizes else ".")


def _waivers(waivers: Sequence[dict]) -> str:
    if not waivers:
        return ""
    rows = [(w["stage"], w["role"], f"{w['verdict']} {w['component']}", w["reason"]) for w in waivers]
    return "## Allowed mismatches\n\n" + _table(("stage", "input", "what differs", "reason given"), rows)
