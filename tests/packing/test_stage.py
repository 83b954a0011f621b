"""Stage 40 as a whole: reproducible, resumable, and readable back as the text it came from."""

import json

import pytest
import zstandard

from tests.corpus.tiny import INLINE, Tiny, check_golden
from utils.packing.dataset import PackedDataset, verify_packed
from utils.tokenizer.frozen import FrozenTokenizer

STAGE = "40_pack_dataset"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    tiny = Tiny(tmp_path_factory.mktemp("packed"))
    tiny.run_all()
    return tiny


def texts(tiny: Tiny, split: str) -> list[str]:
    with zstandard.open(
        tiny.root / f"data/corpus/{split}/00000.jsonl.zst", "rt", encoding="utf-8", newline="\n"
    ) as file:
        return [json.loads(line)["text"] for line in file]


@pytest.mark.parametrize("mode", ["best_fit", "concat"])
def test_documents_come_back_as_the_corpus(tiny: Tiny, mode: str):
    manifest = tiny.run(STAGE, tiny.pack_config(output=f"data/{mode}", mode=mode))
    tokenizer = FrozenTokenizer(tiny.root / "data/tokenizer")
    for split in ("train", "val"):
        data = verify_packed(tiny.root / f"data/{mode}", split)
        documents = [data.document(i) for i in range(data.num_documents)]
        assert [tokenizer.decode(ids) for ids in documents] == texts(tiny, split)
        assert {(int(ids[0]), int(ids[-1])) for ids in documents} == {(1, 2)}
        assert manifest.metrics[f"{split}_tokens"] == data.num_tokens
        assert data.fingerprint == tokenizer.fingerprint
    assert manifest.raw["tokenizer"] == tokenizer.block
    if mode == "best_fit":
        check_golden(STAGE, manifest)


def test_any_number_of_workers_gives_the_same_bytes(tiny: Tiny):
    executors = [INLINE, {"workers": 1}, {"workers": 2}]
    configs = [tiny.pack_config(output=f"data/packed{i}", executor=e) for i, e in enumerate(executors)]
    assert len({tiny.run(STAGE, config).output_digest for config in configs}) == 1


@pytest.mark.parametrize("commits", [1, 2, 3])
def test_kill_9_resumes_to_the_same_digest(tiny: Tiny, capsys: pytest.CaptureFixture, commits: int):
    config = tiny.pack_config(output=f"data/killed{commits}")
    tiny.kill_after(STAGE, config, commits)
    assert not (tiny.root / config["output"]).exists()
    resumed = tiny.run(STAGE, config)
    assert "resuming" in capsys.readouterr().out
    assert resumed.output_digest == tiny.run(STAGE, tiny.pack_config(output="data/whole")).output_digest


def test_max_tokens(tiny: Tiny):
    manifest = tiny.run(
        STAGE, tiny.pack_config(output="data/short", max_train_tokens=2_000, max_val_tokens=1_000)
    )
    assert 1_500 < manifest.metrics["train_tokens"] <= 2_000
    assert PackedDataset(tiny.root / "data/short", "val").num_tokens <= 1_000


def test_padding_gate(tiny: Tiny, capsys: pytest.CaptureFixture):
    tiny.write_config(STAGE, tiny.pack_config(output="data/wide", sequence_length_tokens=60_000))
    assert tiny.execute(STAGE) == 4
    captured = capsys.readouterr()
    assert "of the training rows would be padding (max_padding_fraction 0.25)" in captured.err + captured.out
    assert not (tiny.root / "data/wide").exists()
