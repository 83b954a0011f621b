"""
stats.json: what went into a corpus and what was left out, in numbers that anybody can check.

Nothing in it depends on when, where or how fast it was made. `tokens` are whole numbers of UTF-8 bytes over
`bytes_per_token` where they are estimated, and exact where a tokenizer counted them.

    >>> stats = corpus_stats(run, outcome)
    >>> stats["sources"]["books"]["read"], stats["splits"]["val"]["documents"]
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from utils.config.corpus import CorpusConfig
from utils.config.corpus_sources import AnySource
from utils.corpus.budget import Budget
from utils.corpus.decontaminate import SetCounts
from utils.corpus.documents import Documents
from utils.corpus.duplicates import Duplicates
from utils.corpus.segments import SourceState
from utils.corpus.select import Selection
from utils.corpus.shards import ShardInfo


@dataclass(frozen=True)
class Run:
    """What was asked for and what it was read from; `identities` are id, revision and digest per source."""

    config: CorpusConfig
    budget: Budget
    identities: list[dict[str, str]]
    evaluation_sets: dict[str, SetCounts]
    waivers: Sequence[dict]


@dataclass(frozen=True)
class Outcome:
    """What became of it."""

    states: list[SourceState]
    documents: Documents
    duplicates: Duplicates
    selection: Selection
    shards: dict[str, list[ShardInfo]]
    duplicate_samples: list[dict]


class _Tally:
    """Counts documents, bytes, tokens and groups in any part of the documents."""

    def __init__(self, documents: Documents, budget: Budget) -> None:
        self._bytes, self._groups = documents.column("text_bytes"), documents.column("split")
        self._tokens = documents.column("tokens") if budget.exact else None
        self._budget = budget

    def __call__(self, chosen: np.ndarray) -> dict[str, int]:
        size = int(self._bytes[chosen].sum(dtype=np.int64))
        if self._tokens is None:
            tokens = self._budget.tokens(size)
        else:
            tokens = int(self._tokens[chosen].sum(dtype=np.int64))
        groups = len(np.unique(self._groups[chosen]))
        return {"documents": int(chosen.sum()), "groups": groups, "bytes": size, "tokens": tokens}


def corpus_stats(run: Run, outcome: Outcome) -> dict:
    """Return the content of stats.json, having checked that every row that was read is accounted for."""
    count = _Tally(outcome.documents, run.budget)
    sources = _sources(run, outcome, count)
    return {
        "tokens": {
            "count": run.config.budget.count,
            "bytes_per_token": None if run.budget.exact else run.config.budget.bytes_per_token,
        },
        "sources": sources,
        "splits": {
            split: count(getattr(outcome.selection, split))
            | {"shards": [asdict(shard) for shard in outcome.shards[split]]}
            for split in ("train", "val")
        },
        "mix": _mix(run, outcome, sources),
        "duplicates": _duplicates(outcome.duplicates),
        "decontamination": _decontamination(run, sources),
        "changed": _summed(source["changed"] for source in sources.values()),
        "removed_samples": _samples(outcome),
        "waivers": list(run.waivers),
    }


def _sources(run: Run, outcome: Outcome, count: _Tally) -> dict[str, dict]:
    documents, selection, found = outcome.documents, outcome.selection, {}
    source_of, languages = documents.sources(), documents.column("language")
    for number, (source, state) in enumerate(zip(run.config.sources, outcome.states, strict=True)):
        mine = source_of == number
        removed = state.removed + _duplicates_by_reason(outcome.duplicates, mine)
        kept, over = count(mine & selection.kept), int((mine & selection.over_budget).sum())
        assert state.read == kept["documents"] + sum(removed.values()), f"{source.name}: rows lost or doubled"
        found[source.name] = {
            "kind": source.kind, "licence": source.licence, "weight": source.weight, "preset": source.preset,
            **run.identities[number],
            "read": state.read, "kept": kept["documents"], "kept_tokens": kept["tokens"],
            "over_budget": over,
            "removed": dict(sorted(removed.items())),
            "changed": dict(sorted(state.counts.items())),
            "languages": _languages(languages[mine & selection.written]),
            "written": count(mine & selection.written),
            "train": count(mine & selection.train), "val": count(mine & selection.val),
        }  # fmt: skip
    return found


def _duplicates_by_reason(duplicates: Duplicates, mine: np.ndarray) -> Counter[str]:
    exact, near = (int(mine[losers["document"]].sum()) for losers in (duplicates.exact, duplicates.near))
    return +Counter({"exact_duplicate": exact, "near_duplicate": near})


def _languages(codes: np.ndarray) -> dict[str, int]:
    values, counts = np.unique(codes[codes != b""], return_counts=True)
    return {value.decode(): int(count) for value, count in zip(values, counts, strict=True)}


def _mix(run: Run, outcome: Outcome, sources: dict[str, dict]) -> dict:
    """What each source was to give and gave; without a budget, what it gave."""
    budget, total = run.budget, sum(source["written"]["tokens"] for source in sources.values())
    asked = budget.shares([None] * len(sources)) if budget.total else [None] * len(sources)
    rows = {}
    for share, (name, source) in zip(asked, sources.items(), strict=True):
        tokens = source["written"]["tokens"]
        rows[name] = {
            "weight": source["weight"],
            "target_tokens": None if share is None else budget.tokens(share),
            "target_percent": None if share is None else round(float(share / budget.total) * 100, 1),
            "tokens": tokens,
            "percent": round(tokens / total * 100, 1) if total else 0.0,
        }
    return {
        "budget_tokens": run.config.budget.tokens or None,
        "tokens": total,
        "redistributed": [
            name
            for name, row in rows.items()
            if budget.redistribute
            and row["target_tokens"] is not None
            and row["tokens"] < row["target_tokens"]
        ],
        "over_budget": int(outcome.selection.over_budget.sum()),
        "sources": rows,
    }


def _duplicates(found: Duplicates) -> dict:
    return {
        "exact": len(found.exact),
        "near": len(found.near),
        "cluster_sizes": found.cluster_sizes(),
        "candidate_pairs": found.candidate_pairs,
        "large_buckets": found.large_buckets,
    }


def _decontamination(run: Run, sources: dict[str, dict]) -> dict:
    removed = _summed(source["removed"] for source in sources.values())
    changed = _summed(source["changed"] for source in sources.values())
    sets = {
        name: asdict(counts)
        | {"documents": removed.get(f"contaminated:{name}", 0), "passages": changed.get(f"passage:{name}", 0)}
        for name, counts in run.evaluation_sets.items()
    }
    config = run.config.decontaminate
    return {"ngram_words": config.ngram_words, "action": config.action, "sets": sets}


def _summed(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(sorted(total.items()))


def _samples(outcome: Outcome) -> list[dict]:
    read = [row for state in outcome.states for rows in state.samples.values() for row in rows]
    return sorted(read + outcome.duplicate_samples, key=lambda row: (row["source"], row["reason"]))


def source_identity(source: AnySource, record: dict) -> dict[str, str]:
    """Return what identifies a source in stats and card; patterns of local files are no identity."""
    name = record["id"] if source.kind in ("hub", "docstrings") else ""
    return {"id": name, "revision": record["resolved_revision"], "digest": record["digest"]}


def corpus_metrics(stats: dict) -> dict:
    """Return what the manifest records of the stats."""
    splits = stats["splits"]
    metrics = {
        f"{split}_{key}": splits[split][key]
        for split in splits
        for key in ("documents", "groups", "bytes", "tokens")
    }
    sources = {
        name: {key: source[key] for key in ("read", "kept", "over_budget", "removed")}
        | {key: source["written"][key] for key in ("documents", "bytes", "tokens")}
        for name, source in stats["sources"].items()
    }
    duplicates = {f"{kind}_duplicates": stats["duplicates"][kind] for kind in ("exact", "near")}
    return metrics | duplicates | {"tokens_counted": stats["tokens"]["count"], "sources": sources}
