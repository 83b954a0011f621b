"""Stage 30 as a whole."""

import hashlib
import json
from pathlib import Path

import pytest
import zstandard

from tests.corpus.tiny import Tiny, check_golden
from utils.config.corpus_sources import RULE_NAMES
from utils.pipeline.tokenizer_identity import changed_probe, tokenizer_block
from utils.tokenizer import parity, train

STAGE = "30_train_tokenizer"


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    tiny = Tiny(tmp_path)
    tiny.write_books()
    tiny.run("20_prepare_corpus", tiny.corpus_config())
    return tiny


def test_artifact(tiny: Tiny):
    manifest = tiny.run(STAGE, tiny.tokenizer_config())
    check_golden(STAGE, manifest)
    folder = tiny.root / "data" / "tokenizer"
    files = {"tokenizer.model", "tokenizer.json", "tokenizer_config.json", "report.json", "TOKENIZER_CARD.md"}
    assert {output.path for output in manifest.outputs} == files
    assert manifest.raw["tokenizer"] == tokenizer_block(folder)
    assert manifest.metrics["vocab_size"] == 320
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    compared = 23 + manifest.metrics["documents"]
    assert report["parity"] == {
        "sentencepiece": {"compared": compared, "equal": compared, "note": "reference"},
        "tokenizers": {"compared": compared, "equal": compared, "note": ""},
        "llama_cpp": {"compared": compared, "equal": compared, "note": ""},
    }
    assert changed_probe(folder) == "" and len(report["probe_ids"]) == 23
    assert manifest.metrics["gguf"] is True
    assert str(tiny.root) not in (folder / "TOKENIZER_CARD.md").read_text(encoding="utf-8")


def refusal(tiny: Tiny, capsys: pytest.CaptureFixture, **changes: object) -> str:
    """What the stage says when a gate ends it."""
    tiny.write_config(STAGE, tiny.tokenizer_config(**changes))
    assert tiny.execute(STAGE) == 4
    assert not (tiny.root / "data" / "tokenizer").exists()
    captured = capsys.readouterr()
    return captured.err + captured.out


def test_refusals(tiny: Tiny, capsys: pytest.CaptureFixture):
    cases = {
        "the corpus is too small for a vocabulary of 60,000; the largest possible": {"vocab_size": 60_000},
        "min_chars_per_token asks for 50.0": {"min_chars_per_token": 50.0},
    }
    for message, changes in cases.items():
        assert message in refusal(tiny, capsys, **changes)


def test_a_recipe_that_loses_text_ends_the_stage(
    tiny: Tiny, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    nfkc = train.RECIPES["llama_bpe"] | {"normalization_rule_name": "nmt_nfkc"}
    monkeypatch.setitem(train.RECIPES, "llama_bpe", nfkc)
    assert "texts do not survive encode and decode:" in refusal(tiny, capsys)


def test_another_library_with_other_ids_ends_the_stage(
    tiny: Tiny, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(parity, "encode_with_llama_cpp", lambda folder, texts: [[9]] * len(texts))
    assert "texts get other ids in llama_cpp:" in refusal(tiny, capsys)


def test_unigram_says_that_there_will_be_no_gguf(tiny: Tiny):
    config = tiny.tokenizer_config(recipe="unigram", allow_no_gguf=True, vocab_size=390)
    metrics = tiny.run(STAGE, config).metrics
    assert (metrics["gguf"], metrics["parity"]["tokenizers"]["equal"]) == (False, 23 + metrics["documents"])
    card = (tiny.root / "data/tokenizer/TOKENIZER_CARD.md").read_text(encoding="utf-8")
    assert "Can become a GGUF: no, " in card and "its model type is unigram" in card


def expected_sample(tiny: Tiny, mebibytes: int, seed: int) -> set[str]:
    """The training texts that come first by the hash of their ids and hold so much, written out."""
    with zstandard.open(tiny.root / "data/corpus/train/00000.jsonl.zst", "rt", encoding="utf-8") as file:
        texts = {row["id"]: row["text"] for row in map(json.loads, file)}
    hashes = {id: hashlib.sha256(f"lockstep:tokenizer\n{seed}\n{id}".encode()).digest()[:8] for id in texts}
    chosen, held = set(), 0
    for id in sorted(texts, key=hashes.get):
        chosen |= {texts[id]} if held < mebibytes << 20 else set()
        held += len(texts[id])
    return chosen


def test_what_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`sample_mebibytes` and `seed`: documents by their hash until they hold as much text as asked for."""
    tiny, trained_on = Tiny(tmp_path), []
    folder = tiny.root / "data/raw/corpus"
    folder.mkdir(parents=True)
    lines = "The boat left the garden near the old bridge at noon.\n" * 4_000
    rows = [{"text": f"Book {i}\n{lines[: 10_000 * (i + 1)]}"} for i in range(20)]
    (folder / "part-0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = tiny.corpus_config(split={"min_val_documents": 1}, deduplicate={"near": False})
    corpus["sources"][0] |= {"fields": {"text": "text"}, "rules": dict.fromkeys(RULE_NAMES, "off")}
    tiny.run("20_prepare_corpus", corpus)
    sentences = train.training_sentences
    monkeypatch.setattr(
        train, "training_sentences", lambda texts: trained_on.append(texts) or sentences(texts)
    )
    for mebibytes, seed in [(2, 0), (1, 5)]:
        sample = {"sample_mebibytes": mebibytes, "seed": seed}
        tiny.run(STAGE, tiny.tokenizer_config(output=f"data/seed{seed}", vocab_size=300, **sample))
        assert set(trained_on[-1]) == expected_sample(tiny, mebibytes, seed)
    assert set(trained_on[-1]) not in (expected_sample(tiny, 2, 5), expected_sample(tiny, 1, 0))


def test_training_again_gives_the_same_artifact(tiny: Tiny):
    first = tiny.run(STAGE, tiny.tokenizer_config())
    again = tiny.run(STAGE, tiny.tokenizer_config(output="data/again"))
    assert again.output_digest == first.output_digest
