"""Stage 30 as a whole."""

import json
from pathlib import Path

import pytest

from tests.corpus.tiny import Tiny, check_golden
from utils.pipeline.tokenizer_identity import changed_probe, tokenizer_block

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


def test_refusals(tiny: Tiny, capsys: pytest.CaptureFixture):
    cases = {
        "the corpus is too small for a vocabulary of 60,000; the largest possible": {"vocab_size": 60_000},
        "min_chars_per_token asks for 50.0": {"min_chars_per_token": 50.0},
    }
    for message, changes in cases.items():
        tiny.write_config(STAGE, tiny.tokenizer_config(**changes))
        assert tiny.execute(STAGE) == 4
        captured = capsys.readouterr()
        assert message in captured.err + captured.out
        assert not (tiny.root / "data" / "tokenizer").exists()


def test_unigram_says_that_there_will_be_no_gguf(tiny: Tiny):
    config = tiny.tokenizer_config(recipe="unigram", allow_no_gguf=True, vocab_size=390)
    metrics = tiny.run(STAGE, config).metrics
    assert (metrics["gguf"], metrics["parity"]["tokenizers"]["equal"]) == (False, 23 + metrics["documents"])
    card = (tiny.root / "data/tokenizer/TOKENIZER_CARD.md").read_text(encoding="utf-8")
    assert "Can become a GGUF: no, " in card and "its model type is unigram" in card


def test_training_again_gives_the_same_artifact(tiny: Tiny):
    first = tiny.run(STAGE, tiny.tokenizer_config())
    again = tiny.run(STAGE, tiny.tokenizer_config(output="data/again"))
    assert again.output_digest == first.output_digest
