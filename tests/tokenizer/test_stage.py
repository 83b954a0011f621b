"""Stage 30 as a whole."""

import json
from pathlib import Path

import pytest

from tests.corpus.tiny import Tiny, check_golden
from utils.pipeline.tokenizer_identity import tokenizer_block

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
    assert report["parity"]["tokenizers"] == report["parity"]["sentencepiece"]
    assert str(tiny.root) not in (folder / "TOKENIZER_CARD.md").read_text(encoding="utf-8")


def test_refusals(tiny: Tiny, capsys: pytest.CaptureFixture):
    cases = {
        "the corpus is too small for a vocabulary of 60,000": {"vocab_size": 60_000},
        "min_chars_per_token asks for 50.0": {"min_chars_per_token": 50.0},
    }
    for message, changes in cases.items():
        tiny.write_config(STAGE, tiny.tokenizer_config(**changes))
        assert tiny.execute(STAGE) == 4
        captured = capsys.readouterr()
        assert message in captured.err + captured.out
        assert not (tiny.root / "data" / "tokenizer").exists()
