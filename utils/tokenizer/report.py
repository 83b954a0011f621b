"""
report.json and TOKENIZER_CARD.md: how well the tokenizer fits each source, and what its pieces look like.

    >>> report = tokenizer_report(tokenizer, origin, rows, ids, agreements)
    >>> card = tokenizer_card(report)                    # Markdown, from the report alone
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from utils.pipeline.hashing import hash_files
from utils.pipeline.tokenizer_files import ADOPTED_FILES
from utils.pipeline.tokenizer_identity import PROBES, encode_probes
from utils.tokenizer.frozen import FrozenTokenizer
from utils.tokenizer.parity import Found

SAMPLES, SAMPLE_CHARACTERS, SHOWN_PIECES = 10, 120, 20
COLUMNS = (
    "documents", "tokens", "chars_per_token", "bytes_per_token", "tokens_per_word", "byte_pieces", "unknown",
    "vocabulary_used",
)  # fmt: skip


def trained_origin(recipe: str, num_chosen: int, num_documents: int) -> dict:
    """What the report says of a tokenizer of ours."""
    names = {"llama_bpe": "SentencePiece BPE with byte fallback", "unigram": "SentencePiece unigram"}
    return {
        "mode": "train",
        "origin": f"{names[recipe]}, trained here on {num_chosen:,} of {num_documents:,} documents",
        "recipe": recipe,
        "more_ids": "; `<|reserved_0|>` to `<|reserved_13|>` are 6 to 19, bytes are 20 to 275",
        "notes": [],
    }


def adopted_origin(
    id: str, revision: str, names: list[str], remote_code: list[str], has_template: bool
) -> dict:
    """What the report says of somebody else's tokenizer; `id` and `revision` are "" for a local folder."""
    notes = ["It brings a chat template of its own."] if has_template else []
    if remote_code:
        notes.append(f"Its config names code ({', '.join(remote_code)}), which was neither fetched nor run.")
    return {
        "mode": "adopt",
        "origin": f"Adopted from {id} at commit {revision}" if id else "Adopted from a local folder",
        "source": {"id": id, "revision": revision, "files": names},
        "more_ids": "",
        "notes": notes,
    }


def tokenizer_report(
    tokenizer: FrozenTokenizer,
    origin: Mapping,
    rows: Sequence[Mapping],
    ids: Sequence[list[int]],
    agreements: Found,
) -> dict:
    """
    Return the content of report.json.

    `origin` says where the tokenizer comes from (mode, recipe or source); `rows` are validation rows (text,
    source) with their `ids`; `agreements` come from parity.py.
    """
    kinds = _kinds(tokenizer)
    counts = np.zeros((0, tokenizer.vocab_size), np.int64)
    sources = {}
    for name in sorted({row["source"] for row in rows}):
        mine = [i for i, row in enumerate(rows) if row["source"] == name]
        used = np.bincount(np.concatenate([ids[i] for i in mine]).astype(int), minlength=tokenizer.vocab_size)
        sources[name] = _measure([rows[i]["text"] for i in mine], used, kinds)
        counts = np.vstack([counts, used])
    total = _measure([row["text"] for row in rows], counts.sum(axis=0), kinds) if rows else {}
    learned = np.flatnonzero(kinds == "text")
    return {
        **origin,
        "tokenizer": tokenizer.block,
        "files": _files(tokenizer),
        "probe_ids": [list(map(int, found)) for found in encode_probes(tokenizer.processor)],
        "parity": {library: asdict(agreement) for library, (agreement, _) in agreements.items()},
        "sources": sources,
        "total": total,
        "longest_pieces": _longest(tokenizer, learned),
        "rarest_pieces": _rarest(tokenizer, learned, counts.sum(axis=0)) if rows else [],
        "samples": _samples(tokenizer, [row["text"] for row in rows] or PROBES),
    }


def _kinds(tokenizer: FrozenTokenizer) -> np.ndarray:
    """`special`, `byte` (not a whole character by itself) or `text` for every id."""
    processor, kinds = tokenizer.processor, []
    for i in range(tokenizer.vocab_size):
        data = tokenizer.token_bytes(i)
        part = processor.is_byte(i) or data.decode("utf-8", "replace").encode() != data
        kinds.append("special" if not data else "byte" if part else "text")
    return np.array(kinds)


def _files(tokenizer: FrozenTokenizer) -> list[dict]:
    paths = [tokenizer.folder / name for name in ADOPTED_FILES if (tokenizer.folder / name).is_file()]
    hashes = hash_files(paths)
    return [{"name": p.name, "bytes": hashes[p].bytes, "sha256": hashes[p].sha256} for p in sorted(paths)]


def _measure(texts: list[str], used: np.ndarray, kinds: np.ndarray) -> dict:
    tokens = max(1, int(used.sum()))
    characters, words = sum(map(len, texts)), sum(len(text.split()) for text in texts)
    return {
        "documents": len(texts),
        "tokens": tokens,
        "chars_per_token": round(characters / tokens, 4),
        "bytes_per_token": round(sum(len(text.encode()) for text in texts) / tokens, 4),
        "tokens_per_word": round(tokens / max(1, words), 4),
        "byte_pieces": round(int(used[kinds == "byte"].sum()) / tokens, 4),
        "unknown": int(used[kinds == "special"].sum()),
        "vocabulary_used": round(float((used > 0).mean()), 4),
    }


def _samples(tokenizer: FrozenTokenizer, texts: Sequence[str]) -> list[str]:
    """The beginnings of ten texts spread over all, cut into visible pieces."""
    chosen = [texts[i * len(texts) // SAMPLES] for i in range(SAMPLES)] if len(texts) > SAMPLES else texts
    encoded = tokenizer.encode_text([text[:SAMPLE_CHARACTERS] for text in chosen])
    return ["|".join(tokenizer.pieces(ids)) for ids in encoded]


def _longest(tokenizer: FrozenTokenizer, learned: np.ndarray) -> list[str]:
    pieces = tokenizer.pieces(learned)
    return sorted(pieces, key=lambda piece: (-len(piece), piece))[:SHOWN_PIECES]


def _rarest(tokenizer: FrozenTokenizer, learned: np.ndarray, counts: np.ndarray) -> list[str]:
    order = np.argsort(counts[learned], kind="stable")[:SHOWN_PIECES]
    return tokenizer.pieces(learned[order])


def summary(report: Mapping) -> dict:
    """Return the numbers of the report that the manifest records."""
    facts = {name: report[name] for name in ("mode", "gguf")}
    facts |= {"vocab_size": report["tokenizer"]["vocab_size"], "parity": report["parity"]}
    return facts | {name: report["total"][name] for name in COLUMNS if report["total"]}


def tokenizer_card(report: Mapping) -> str:
    """Return the card as Markdown."""
    block = report["tokenizer"]
    ids = ", ".join(f"`{name}` {'none' if id < 0 else id}" for name, id in block["special_ids"].items())
    lines = [
        "# Tokenizer card\n",
        f"{report['origin']}, {block['vocab_size']:,} pieces, fingerprint `{block['fingerprint']}`.",
        f"Ids: {ids}{report['more_ids']}.",
        f"Can become a GGUF: {'yes' if report['gguf'] else 'no, ' + report['no_gguf']}.\n",
        *(f"{note}\n" for note in report["notes"]),
        "| file | bytes | SHA-256 |",
        "| --- | --- | --- |",
        *(f"| {file['name']} | {file['bytes']:,} | `{file['sha256']}` |" for file in report["files"]),
        "\n## Agreement\n",
        "| library | texts | same ids | |",
        "| --- | --- | --- | --- |",
        *(
            f"| {library} | {row['compared']:,} | {row['equal']:,} | {row['note']} |"
            for library, row in report["parity"].items()
        ),
        *_measurements(report),
        "\n## Pieces\n",
        "Longest: " + ", ".join(map(_code, report["longest_pieces"])) + "\n",
        *(["Rarest: " + ", ".join(map(_code, report["rarest_pieces"])) + "\n"] if report["sources"] else []),
        "## Samples\n",
        *(f"- {_code(sample)}" for sample in report["samples"]),
    ]
    return "\n".join(lines) + "\n"


def _measurements(report: Mapping) -> list[str]:
    if not report["sources"]:
        return ["\nNo corpus was given: the tokenizer was tried on the built-in probes only."]
    rows = [*report["sources"].items(), ("all", report["total"])]
    return [
        "\n## On validation text\n",
        "| source | " + " | ".join(column.replace("_", " ") for column in COLUMNS) + " |",
        "| --- |" + " --- |" * len(COLUMNS),
        *(f"| {name} | " + " | ".join(f"{found[c]:,}" for c in COLUMNS) + " |" for name, found in rows),
    ]


def _code(text: str) -> str:
    text = text.replace("\n", "\\n")
    return f"`` {text} ``" if "`" in text else f"`{text}`"
