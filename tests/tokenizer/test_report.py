"""
report.json and the card: measured against an independent count, and every number of the card is the report's.
"""

import json
import re

import pytest
import sentencepiece

from tests.numbered import numbered
from tests.tokenizer.conftest import TEXTS
from utils.pipeline.tokenizer_identity import PROBES, encode_probes
from utils.tokenizer.frozen import FrozenTokenizer
from utils.tokenizer.parity import Agreement
from utils.tokenizer.report import (
    adopted_origin,
    summary,
    tokenizer_card,
    tokenizer_report,
    trained_origin,
)  # fmt: skip

ROWS = [{"source": "books", "text": text} for text in TEXTS[:20]]
ROWS += [{"source": "notes", "text": f"caf\u00e9 {i} `x`\n" * (i + 1)} for i in range(5)]


def make_report(tokenizer: FrozenTokenizer, rows: list[dict], origin: dict | None = None) -> dict:
    origin = origin or trained_origin("llama_bpe", 20, 25)
    ids = tokenizer.processor.encode([row["text"] for row in rows])
    agreements = {
        "sentencepiece": (Agreement(48, 48, "reference"), ids),
        "llama_cpp": (Agreement(48, 47), []),
    }
    report = tokenizer_report(tokenizer, origin | {"gguf": True, "no_gguf": ""}, rows, ids, agreements)
    return json.loads(json.dumps(report))


def test_each_source_is_measured(tokenizer: FrozenTokenizer):
    report = make_report(tokenizer, ROWS)
    peer = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.folder / "tokenizer.model"))
    for source in ("books", "notes"):
        texts = [row["text"] for row in ROWS if row["source"] == source]
        ids = [i for row in peer.encode(texts) for i in row]
        assert report["sources"][source] == {
            "documents": len(texts),
            "tokens": len(ids),
            "chars_per_token": round(sum(map(len, texts)) / len(ids), 4),
            "bytes_per_token": round(sum(len(text.encode()) for text in texts) / len(ids), 4),
            "tokens_per_word": round(len(ids) / sum(len(text.split()) for text in texts), 4),
            "byte_pieces": round(sum(map(peer.is_byte, ids)) / len(ids), 4),
            "unknown": 0,
            "vocabulary_used": round(len(set(ids)) / 330, 4),
        }
    assert report["total"]["documents"] == 25
    assert report["probe_ids"] == encode_probes(peer)
    assert report["tokenizer"] == tokenizer.block


def test_pieces_are_shown(tokenizer: FrozenTokenizer):
    report = make_report(tokenizer, ROWS)
    assert len(report["samples"]) == 10
    assert "".join(report["samples"][0].split("|")).replace("\u2581", " ")[:20] == TEXTS[0][:20]
    assert len(report["longest_pieces"][0]) == max(map(len, tokenizer.pieces(range(276, 330))))
    assert len(report["rarest_pieces"]) == 20
    assert any("<0x0A>" in sample for sample in report["samples"])


def expected_head(report: dict) -> list[str]:
    """The lines of the card above its pieces, without blank ones."""
    block, total = report["tokenizer"], [*report["sources"].items(), ("all", report["total"])]
    ids = ", ".join(f"`{name}` {index}" for name, index in block["special_ids"].items())
    return [
        "# Tokenizer card",
        f"{report['origin']}, {block['vocab_size']:,} pieces, fingerprint `{block['fingerprint']}`.",
        f"Ids: {ids}; `<|reserved_0|>` to `<|reserved_13|>` are 6 to 19, bytes are 20 to 275.",
        "Can become a GGUF: yes.",
        "| file | bytes | SHA-256 |",
        "| --- | --- | --- |",
        *(f"| {file['name']} | {file['bytes']:,} | `{file['sha256']}` |" for file in report["files"]),
        "## Agreement",
        "| library | texts | same ids | |",
        "| --- | --- | --- | --- |",
        *(f"| {n} | {p['compared']:,} | {p['equal']:,} | {p['note']} |" for n, p in report["parity"].items()),
        "## On validation text",
        "| source | documents | tokens | chars per token | bytes per token | tokens per word | byte pieces "
        "| unknown | vocabulary used |",
        "|" + " --- |" * 9,
        *(
            f"| {name} | {m['documents']:,} | {m['tokens']:,} | {m['chars_per_token']:,} "
            f"| {m['bytes_per_token']:,} | {m['tokens_per_word']:,} | {m['byte_pieces']:,} "
            f"| {m['unknown']:,} | {m['vocabulary_used']:,} |"
            for name, m in total
        ),
    ]


@pytest.mark.parametrize("told_apart", [False, True])
def test_every_row_of_the_card_is_made_of_the_report(tokenizer: FrozenTokenizer, told_apart: bool):
    report = make_report(tokenizer, ROWS)
    assert report["origin"] == "SentencePiece BPE with byte fallback, trained here on 20 of 25 documents"
    assert len(report["files"]) == 3 and len(report["parity"]) == 2 and len(report["sources"]) == 2
    report = numbered(report) if told_apart else report
    head, pieces = tokenizer_card(report).split("## Pieces")
    assert [line for line in head.splitlines() if line] == expected_head(report)
    assert str(tokenizer.folder) not in head + pieces and not re.search(r"20\d\d-\d\d", head + pieces)


def test_a_tokenizer_without_a_corpus(gpt2: FrozenTokenizer):
    origin = adopted_origin("me/model", "a" * 40, ["tokenizer.json"], ["x.Y"], has_template=True)
    report = make_report(gpt2, [], origin)
    assert (report["sources"], report["total"], report["rarest_pieces"]) == ({}, {}, [])
    assert report["samples"][1] == "|".join(gpt2.pieces(gpt2.encode_text([PROBES[2]])[0]))
    card = tokenizer_card(report)
    assert f"Adopted from me/model at commit {'a' * 40}, 400 pieces" in card
    assert (
        "names code (x.Y), which was neither fetched nor run" in card and "a chat template of its own" in card
    )
    assert set(summary(report)) == {"mode", "gguf", "vocab_size", "parity"}


def test_the_summary_goes_to_the_manifest(tokenizer: FrozenTokenizer):
    metrics = summary(make_report(tokenizer, ROWS))
    assert metrics["vocab_size"] == 330 and metrics["documents"] == 25
    assert metrics["parity"]["llama_cpp"] == {"compared": 48, "equal": 47, "note": ""}
