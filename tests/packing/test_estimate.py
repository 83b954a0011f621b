"""What stage 40 says of stage 20's estimate, and that it says nothing where tokens were counted."""

from pathlib import Path

import pytest

from tests.corpus.tiny import Tiny

STAGE = "40_pack_dataset"
KEYS = {"estimated_tokens", "estimate_error"}


def test_counted_tokens_are_not_called_an_estimate(tmp_path: Path, capsys: pytest.CaptureFixture):
    tiny = Tiny(tmp_path)
    tiny.run_all()
    assert set(tiny.run(STAGE, tiny.pack_config()).metrics) >= KEYS
    assert "estimated were" in capsys.readouterr().out
    counted = {"budget": {"count": "tokenizer"}, "inputs": {"tokenizer": "data/tokenizer"}}
    corpus = tiny.run("20_prepare_corpus", tiny.corpus_config(output="data/counted", **counted))
    config = tiny.pack_config(output="data/exact")
    config["inputs"]["corpus"] = "data/counted"
    packed = tiny.run(STAGE, config)
    assert not KEYS & packed.metrics.keys()
    assert "estimated were" not in capsys.readouterr().out
    for split in ("train", "val"):
        assert packed.metrics[f"{split}_tokens"] == corpus.metrics[f"{split}_tokens"]
