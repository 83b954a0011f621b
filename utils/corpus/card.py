"""
DATA_CARD.md: stats.json as people read it, and nothing else, so it is as reproducible as the shards.

    >>> (folder / "DATA_CARD.md").write_text(data_card(stats), encoding="utf-8")
"""

from collections.abc import Iterator, Sequence

from utils.corpus.lines import counted

HOW_TO_REBUILD = (
    "The manifest beside this file holds the resolved config, the digest of every source and the digest of "
    "the result. Run the stage again with that config: the same inputs give the same bytes, with any number "
    "of workers."
)


def data_card(stats: dict) -> str:
    """Return the card as Markdown."""
    sections = {
        "Sources": _sources,
        "Size": _size,
        "Mix": _mix,
        "Splits": _splits,
        "Removed": _removed,
        "Languages": _languages,
        "Duplicates": _duplicates,
        "Decontamination": _decontamination,
        "Changed in kept documents": _changed,
        "Allowed mismatches": _waivers,
    }
    parts = ["# Data card"]
    for title, section in sections.items():
        text = "\n\n".join(section(stats))
        parts += [f"## {title}\n\n{text}"] if text else []
    return "\n\n".join([*parts, f"## How to rebuild\n\n{HOW_TO_REBUILD}"]) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    for row in rows:
        cells = (f"{cell:,}" if isinstance(cell, int) else str(cell).replace("|", "\\|") for cell in row)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _sources(stats: dict) -> Iterator[str]:
    rows = [
        (name, s["kind"], s["id"], s["revision"], s["digest"], s["licence"] or "not given", s["preset"])
        for name, s in stats["sources"].items()
    ]
    yield _table(("source", "kind", "id", "revision", "digest", "licence", "preset"), rows)


def _size(stats: dict) -> Iterator[str]:
    how = counted(stats)
    rate = stats["tokens"]["bytes_per_token"]
    if rate is not None:
        yield f"Tokens are estimated: bytes of UTF-8 over {rate:g}."
    rows = []
    for name, source in stats["sources"].items():
        for split in ("train", "val"):
            part = source[split]
            rows.append((name, split, part["documents"], part["bytes"], part["tokens"]))
    yield _table(("source", "split", "documents", "bytes", f"tokens ({how})"), rows)
    rows = [
        (n, s["read"], s["kept"], s["over_budget"], s["written"]["documents"])
        for n, s in stats["sources"].items()
    ]
    yield _table(("source", "read", "kept", "over budget", "written"), rows)


def _mix(stats: dict) -> Iterator[str]:
    mix, how = stats["mix"], counted(stats)
    rows = []
    for name, row in mix["sources"].items():
        target = (
            ("all", "")
            if row["target_tokens"] is None
            else (row["target_tokens"], f"{row['target_percent']} %")
        )
        rows.append((name, f"{row['weight']:g}", *target, row["tokens"], f"{row['percent']} %"))
    header = ("source", "weight", "target tokens", "target", f"obtained tokens ({how})", "obtained")
    yield _table(header, rows)
    if mix["redistributed"]:
        names = ", ".join(mix["redistributed"])
        yield f"Short of their share, which the other sources made up for: {names}."


def _splits(stats: dict) -> Iterator[str]:
    yield "A group (a document, or all chapters of a book) is on one side only, by the hash of its name."
    keys = ("documents", "groups", "bytes", "tokens")
    rows = [(split, *(s[key] for key in keys)) for split, s in stats["splits"].items()]
    yield _table(("split", "documents", "groups", "bytes", f"tokens ({counted(stats)})"), rows)


def _removed(stats: dict) -> Iterator[str]:
    rows = [(n, reason, count) for n, s in stats["sources"].items() for reason, count in s["removed"].items()]
    if not rows:
        yield "Nothing was removed."
        return
    yield "Every removed document is in `removed/`, with its reason."
    yield _table(("source", "reason", "documents"), rows)
    last = None
    for sample in stats["removed_samples"]:
        here = (sample["source"], sample["reason"])
        heading = f"### {here[0]}: {here[1]}\n\n" if here != last else ""
        yield heading + _sample(sample)
        last = here


def _sample(sample: dict) -> str:
    numbers = [
        f"{key} {sample[key]}" for key in ("measured", "threshold", "jaccard", "passage") if key in sample
    ]
    shown = " ".join(sample["text"].split()).replace("`", "'")
    return f"- {sample['id']} {', '.join(numbers)}".rstrip() + (f": `{shown}`" if shown else "")


def _languages(stats: dict) -> Iterator[str]:
    rows = [(n, code, count) for n, s in stats["sources"].items() for code, count in s["languages"].items()]
    if rows:
        yield _table(("source", "language", "documents"), rows)


def _duplicates(stats: dict) -> Iterator[str]:
    found = stats["duplicates"]
    yield f"{found['exact']:,} exact and {found['near']:,} near duplicates were removed."
    if found["cluster_sizes"]:
        rows = [(size, count) for size, count in found["cluster_sizes"].items()]
        yield _table(("documents in a cluster, with the one that stays", "clusters"), rows)
    if found["large_buckets"]:
        yield f"Buckets compared with their earliest documents only: {found['large_buckets']:,}."


def _decontamination(stats: dict) -> Iterator[str]:
    found = stats["decontamination"]
    if not found["sets"]:
        yield "No evaluation set was looked for."
        return
    yield f"Passages of {found['ngram_words']} words; what is hit loses the {found['action']}."
    rows = [
        (name, one["items"], one["ignored"], one["documents"], one["passages"])
        for name, one in found["sets"].items()
    ]
    yield _table(
        ("evaluation set", "items", "too short, ignored", "documents removed", "paragraphs cut"), rows
    )


def _changed(stats: dict) -> Iterator[str]:
    rows = [(n, what, count) for n, s in stats["sources"].items() for what, count in s["changed"].items()]
    if rows:
        yield _table(("source", "what", "times"), rows)


def _waivers(stats: dict) -> Iterator[str]:
    rows = [
        (w["stage"], w["role"], f"{w['verdict']} {w['component']}", w["reason"]) for w in stats["waivers"]
    ]
    if rows:
        yield _table(("stage", "input", "what differs", "reason given"), rows)
