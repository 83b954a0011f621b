"""
report.json and TOKENIZER_CARD.md: how well the tokenizer fits each source, and what its pieces look like.

    >>> report = tokenizer_report(tokenizer, rows, parity)
    >>> card = tokenizer_card(report)                    # Markdown, from the report alone
"""

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from utils.tokenizer.frozen import FrozenTokenizer

SAMPLES, SAMPLE_CHARACTERS, SHOWN_PIECES = 10, 120, 20
FIRST_LEARNED_PIECE = 276


def tokenizer_report(tokenizer: FrozenTokenizer, rows: Iterable[Mapping], parity: Mapping[str, int]) -> dict:
    """Measure the tokenizer on validation rows (text, source) and return the content of report.json."""
    by_source: dict[str, list[str]] = {}
    for row in rows:
        by_source.setdefault(row["source"], []).append(row["text"])
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    sources, samples = {}, []
    for name in sorted(by_source):
        texts = by_source[name]
        ids = tokenizer.encode_text(texts)
        used = np.bincount(np.concatenate(ids), minlength=tokenizer.vocab_size)
        sources[name] = _measure(texts, used)
        counts += used
        samples += [_sample(tokenizer, text) for text in texts[: max(1, SAMPLES // len(by_source))]]
    return {
        "tokenizer": tokenizer.block,
        "parity": dict(parity),
        "sources": sources,
        "vocabulary_used": round(float((counts > 0).mean()), 4),
        "longest_pieces": _longest(tokenizer),
        "rarest_pieces": _rarest(tokenizer, counts),
        "samples": samples[:SAMPLES],
    }


def _measure(texts: list[str], used: np.ndarray) -> dict:
    tokens = max(1, int(used.sum()))
    characters, words = sum(map(len, texts)), sum(len(text.split()) for text in texts)
    return {
        "documents": len(texts),
        "tokens": tokens,
        "chars_per_token": round(characters / tokens, 4),
        "bytes_per_token": round(sum(len(text.encode()) for text in texts) / tokens, 4),
        "tokens_per_word": round(tokens / max(1, words), 4),
        "byte_pieces": round(int(used[20:FIRST_LEARNED_PIECE].sum()) / tokens, 4),
    }


def _sample(tokenizer: FrozenTokenizer, text: str) -> str:
    (ids,) = tokenizer.encode_text([text[:SAMPLE_CHARACTERS]])
    return "|".join(tokenizer.pieces(ids))


def _longest(tokenizer: FrozenTokenizer) -> list[str]:
    pieces = tokenizer.pieces(range(FIRST_LEARNED_PIECE, tokenizer.vocab_size))
    return sorted(pieces, key=lambda piece: (-len(piece), piece))[:SHOWN_PIECES]


def _rarest(tokenizer: FrozenTokenizer, counts: np.ndarray) -> list[str]:
    learned = np.arange(FIRST_LEARNED_PIECE, tokenizer.vocab_size)
    order = np.argsort(counts[learned], kind="stable")[:SHOWN_PIECES]
    return tokenizer.pieces(learned[order])


def summary(report: Mapping) -> dict:
    """Return the numbers of the report that the manifest records."""
    total = Counter()
    for source in report["sources"].values():
        total.update(tokens=source["tokens"], characters=source["tokens"] * source["chars_per_token"])
    return {
        "vocab_size": report["tokenizer"]["vocab_size"],
        "chars_per_token": round(total["characters"] / total["tokens"], 4),
        "vocabulary_used": report["vocabulary_used"],
        "parity": report["parity"],
    }


def tokenizer_card(report: Mapping) -> str:
    """Return the card as Markdown."""
    block = report["tokenizer"]
    ids = ", ".join(f"`{name}` {id}" for name, id in block["special_ids"].items())
    columns = ("documents", "tokens", "chars_per_token", "bytes_per_token", "tokens_per_word", "byte_pieces")
    lines = [
        "# Tokenizer card\n",
        f"SentencePiece BPE with byte fallback, {block['vocab_size']:,} pieces, "
        f"fingerprint `{block['fingerprint']}`.",
        f"Ids: {ids}; `<|reserved_0|>` to `<|reserved_13|>` are 6 to 19, bytes are 20 to 275.\n",
        "## Agreement\n",
        "Texts with the same ids as in sentencepiece:",
        *(
            f"- {name}: {'not installed' if count < 0 else f'{count:,}'}"
            for name, count in report["parity"].items()
        ),
        "\n## On validation text\n",
        "| source | " + " | ".join(column.replace("_", " ") for column in columns) + " |",
        "| --- |" + " --- |" * len(columns),
        *(
            f"| {name} | " + " | ".join(f"{m[c]:,}" for c in columns) + " |"
            for name, m in report["sources"].items()
        ),
        f"\nPieces used at least once: {report['vocabulary_used']:.2%}.\n",
        "## Pieces\n",
        "Longest: " + ", ".join(map(_code, report["longest_pieces"])) + "\n",
        "Rarest: " + ", ".join(map(_code, report["rarest_pieces"])) + "\n",
        "## Samples\n",
        *(f"- {_code(sample)}" for sample in report["samples"]),
    ]
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    return f"`` {text} ``" if "`" in text else f"`{text}`"
