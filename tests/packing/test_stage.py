"""Stage 40 as a whole: reproducible, resumable, and readable back as the text it came from."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import zstandard

from tests.corpus.tiny import INLINE, ROOT, Tiny, check_golden
from tests.tokenizer.conftest import make_gpt2_style, make_llama2_style
from utils.corpus import select, shards
from utils.packing import pack
from utils.packing.dataset import PackedDataset, verify_packed
from utils.tokenizer.frozen import FrozenTokenizer

STAGE = "40_pack_dataset"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    tiny = Tiny(tmp_path_factory.mktemp("packed"))
    tiny.run_all()
    return tiny


def rows(tiny: Tiny, split: str, corpus: str = "corpus") -> list[dict]:
    path = tiny.root / f"data/{corpus}/{split}/00000.jsonl.zst"
    with zstandard.open(path, "rt", encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]


def texts(tiny: Tiny, split: str) -> list[str]:
    return [row["text"] for row in rows(tiny, split)]


@pytest.mark.parametrize("mode", ["best_fit", "concat"])
def test_documents_come_back_as_the_corpus(tiny: Tiny, mode: str):
    manifest = tiny.run(STAGE, tiny.pack_config(output=f"data/{mode}", mode=mode))
    tokenizer = FrozenTokenizer(tiny.root / "data/tokenizer")
    for split in ("train", "val"):
        data = verify_packed(tiny.root / f"data/{mode}", split)
        documents = [data.documents(i) for i in range(data.num_documents)]
        assert [tokenizer.decode(ids) for ids in documents] == texts(tiny, split)
        assert {(int(ids[0]), int(ids[-1])) for ids in documents} == {(1, 2)}
        assert manifest.metrics[f"{split}_tokens"] == data.num_tokens
        assert data.fingerprint == tokenizer.fingerprint
    assert manifest.raw["tokenizer"] == tokenizer.block
    if mode == "best_fit":
        check_golden(STAGE, manifest)


def test_any_number_of_workers_gives_the_same_bytes(tiny: Tiny, monkeypatch: pytest.MonkeyPatch):
    whole = tiny.run(STAGE, tiny.pack_config(output="data/one_block")).output_digest
    monkeypatch.setattr(shards, "BLOCK_ROWS", 20)
    executors = [INLINE, {"workers": 1}, {"workers": 2}, {"workers": 4}]
    configs = [tiny.pack_config(output=f"data/packed{i}", executor=e) for i, e in enumerate(executors)]
    assert {tiny.run(STAGE, config).output_digest for config in configs} == {whole}


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


def refusal(tiny: Tiny, capsys: pytest.CaptureFixture, config: dict) -> str:
    """What the stage says when its last proof ends it."""
    tiny.write_config(STAGE, config)
    assert tiny.execute(STAGE) == 4
    assert not (tiny.root / config["output"]).exists()
    captured = capsys.readouterr()
    return captured.err + captured.out


def test_a_document_in_both_splits_ends_the_stage(
    tiny: Tiny, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """A corpus whose first validation document is in train too."""
    chosen = select.select

    def leaking(*given: object) -> select.Selection:
        right = chosen(*given)
        both = right.train.copy()
        both[np.flatnonzero(right.val)[0]] = True
        return replace(right, train=both)

    monkeypatch.setattr(select, "select", leaking)
    tiny.run("20_prepare_corpus", tiny.corpus_config(output="data/leaking"))
    train, val = ({row["id"] for row in rows(tiny, split, "leaking")} for split in ("train", "val"))
    (leaked,) = train & val
    config = tiny.pack_config(output="data/leaked")
    config["inputs"]["corpus"] = "data/leaking"
    said = refusal(tiny, capsys, config)
    assert f"1 documents are in train and in val, the first is {leaked}" in said


def test_documents_without_eos_end_the_stage(
    tiny: Tiny, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    encode = pack.encode_rows

    def without_eos(*given: object) -> pack.EncodedBlock:
        right = encode(*given)
        ids = np.delete(right.ids, np.cumsum(right.lengths) - 1)
        return replace(right, ids=ids, lengths=[length - 1 for length in right.lengths])

    monkeypatch.setattr(pack, "encode_rows", without_eos)
    said = refusal(tiny, capsys, tiny.pack_config(output="data/no_eos"))
    assert "expected EOS 2 of document 0" in said


SLOW_RUN = """
import sys, time
from pathlib import Path
import utils.corpus.shards
from tests.corpus.tiny import Tiny
from utils.pipeline.journal import Journal
utils.corpus.shards.BLOCK_ROWS = 6
commit = Journal.commit
def slow(self, record):
    commit(self, record)
    time.sleep(0.02)
Journal.commit = slow
if __name__ == "__main__":
    print("starting", flush=True)
    sys.exit(Tiny(Path({workspace!r})).execute("40_pack_dataset"))
"""


def test_kill_9_at_random_moments_ends_in_the_same_bytes(tiny: Tiny):
    whole = tiny.run(STAGE, tiny.pack_config(output="data/calm"))
    tiny.write_config(STAGE, tiny.pack_config(output="data/battered"))
    command, generator = [sys.executable, "-c", SLOW_RUN.format(workspace=str(tiny.root))], random.Random(1)
    kills = 0
    for _ in range(5):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(generator.uniform(0.05, 1.0))
        os.kill(process.pid, signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.stdout.close()
        if (tiny.root / "data/battered").exists():
            break
    assert kills >= 1
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    resumed = tiny.run(STAGE, tiny.pack_config(output="data/battered"))
    assert resumed.output_digest == whole.output_digest


@pytest.mark.parametrize("make", [make_gpt2_style, make_llama2_style])
@pytest.mark.parametrize("executor", [INLINE, {"workers": 1}])
def test_an_adopted_tokenizer_packs_the_corpus(tiny: Tiny, make: object, executor: dict):
    name = make.__name__
    if not (tiny.root / f"data/{name}").exists():
        make(tiny.root / f"data/raw/{name}")
        adopt = {"mode": "adopt", "source": {"path": f"data/raw/{name}"}, "output": f"data/{name}/tokenizer"}
        tiny.run("30_train_tokenizer", adopt)
    output = f"data/{name}/packed_{executor.get('workers', 0)}"
    config = tiny.pack_config(output=output, executor=executor)
    config["inputs"]["tokenizer"] = f"data/{name}/tokenizer"
    manifest = tiny.run(STAGE, config)
    tokenizer = FrozenTokenizer(tiny.root / f"data/{name}/tokenizer")
    data = verify_packed(tiny.root / output, "val")
    documents = [data.documents(i) for i in range(data.num_documents)]
    assert [tokenizer.decode(ids) for ids in documents] == texts(tiny, "val")
    bos, eos = tokenizer.special("bos"), tokenizer.special("eos")
    assert {(int(ids[0]), int(ids[-1])) for ids in documents} == {(bos, eos)}
    assert (data.special.pad, manifest.raw["tokenizer"]["special_ids"]["pad"]) == (-1, -1)
    batch = data.rows(range(data.num_rows))
    assert (batch.tokens[batch.document < 0] == eos).all()


def test_a_tokenizer_without_bos_packs_without_one(tiny: Tiny):
    make_gpt2_style(tiny.root / "data/raw/no_bos", bos_token=None)
    source = {"path": "data/raw/no_bos"}
    tiny.run("30_train_tokenizer", {"mode": "adopt", "source": source, "output": "data/no_bos/tokenizer"})
    config = tiny.pack_config(output="data/no_bos/packed")
    config["inputs"]["tokenizer"] = "data/no_bos/tokenizer"
    tiny.run(STAGE, config)
    tokenizer = FrozenTokenizer(tiny.root / "data/no_bos/tokenizer")
    data = verify_packed(tiny.root / "data/no_bos/packed", "val")
    expected = [*tokenizer.encode_text(texts(tiny, "val")[:1])[0], tokenizer.special("eos")]
    assert data.special.bos == -1
    assert np.array_equal(data.documents(0), expected)


def test_the_waste_and_the_estimate_are_printed_and_recorded(tiny: Tiny, capsys: pytest.CaptureFixture):
    manifest = tiny.run(STAGE, tiny.pack_config(output="data/printed", mode="concat"))
    output = capsys.readouterr().out
    metrics = manifest.metrics
    assert f"{metrics['cut_documents']:,} documents cut that would fit" in output
    assert "concat rows, 0.00% padding" in output
    total = metrics["train_tokens"] + metrics["val_tokens"]
    text_bytes = sum(len(text.encode()) for split in ("train", "val") for text in texts(tiny, split))
    estimated = round(text_bytes / 4)
    assert (metrics["estimated_tokens"], metrics["estimate_error"]) == (
        estimated,
        round(estimated / total - 1, 4),
    )
    assert f"{total:,} tokens, estimated were {estimated:,}" in output


@pytest.mark.parametrize("bytes_per_token", [2.5, 5.0])
def test_the_estimate_is_that_of_the_corpus(tiny: Tiny, bytes_per_token: float):
    corpus = f"data/estimated{bytes_per_token}"
    tiny.run(
        "20_prepare_corpus",
        tiny.corpus_config(output=corpus, budget={"bytes_per_token": bytes_per_token}),
    )
    config = tiny.pack_config(output=f"{corpus}_packed")
    config["inputs"]["corpus"] = corpus
    text_bytes = sum(len(text.encode()) for split in ("train", "val") for text in texts(tiny, split))
    assert tiny.run(STAGE, config).metrics["estimated_tokens"] == round(text_bytes / bytes_per_token)
