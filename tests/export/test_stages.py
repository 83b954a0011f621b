"""Stages 100, 110 and 120 on a sealed toy run: what they write, that they repeat, and what they refuse."""

import json
import shutil
from pathlib import Path

import pytest
from gguf import GGUFReader

from tests.export import toy_run
from tests.export.toy_run import ToyRun
from utils.pipeline.lineage import prove_gguf
from utils.pipeline.manifest import read_manifest


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> ToyRun:
    """All three stages, run once."""
    run = ToyRun.build(tmp_path_factory.mktemp("run"))
    assert [run.stage(name) for name in ("100_evaluate", "110_merge_lora", "120_convert_gguf")] == [0, 0, 0]
    return run


@pytest.fixture
def fork(built: ToyRun, tmp_path: Path) -> ToyRun:
    """A copy of the run that a test may damage."""
    shutil.copytree(built.workspace.root, tmp_path / "run")
    return ToyRun(type(built.workspace)(tmp_path / "run", built.workspace.stages))


def digest_of(run: ToyRun, folder: str) -> str:
    return read_manifest(run.path(folder))[0].output_digest


def test_a_second_run_is_up_to_date(built: ToyRun, capsys: pytest.CaptureFixture) -> None:
    assert [built.stage(name) for name in ("100_evaluate", "110_merge_lora", "120_convert_gguf")] == [0, 0, 0]
    assert capsys.readouterr().out.count("up to date") == 3


def test_rebuilding_gives_the_same_bytes(fork: ToyRun) -> None:
    for stage, folder in (
        ("100_evaluate", "data/toy/evaluation"),
        ("110_merge_lora", "checkpoints/toy/merged"),
        ("120_convert_gguf", "checkpoints/toy/gguf"),
    ):
        before = digest_of(fork, folder)
        assert fork.stage(stage, "--force") == 0
        assert digest_of(fork, folder) == before, stage


def test_evaluation_compares_the_models(built: ToyRun) -> None:
    folder = built.path("data/toy/evaluation")
    results = json.loads((folder / "results.json").read_text())
    assert set(results["models"]) == {"base", "sft"}
    assert results["validation"] == {
        "bigram_loss": 2.5,
        "uniform_loss": 6.24,
        "unigram_loss": 4.5,
        "val_loss": 0.6,
    }
    assert results["metrics"]["preference_accuracy"]["models"]["sft"]["n"] == 12
    assert results["metrics"]["preference_accuracy"]["models"]["sft"]["value"] == 1.0
    assert results["texts"]["corpus"]["base"]["perplexity"] < 4
    assert len((folder / "samples.jsonl").read_text().splitlines()) == 12
    assert "| exact_match | 12 |" in (folder / "table.md").read_text()


def test_questions_that_were_trained_on_are_refused(
    fork: ToyRun, capsys: pytest.CaptureFixture, monkeypatch
) -> None:
    train, val, _ = toy_run._by_question()
    monkeypatch.setattr(toy_run, "_by_question", lambda: (train, val, train[:3]))
    fork.seal("60_prepare_sft", "data/toy/leaked", toy_run.write_chats)
    inputs = toy_run.EVALUATE["inputs"] | {"sft_data": "data/toy/leaked"}
    fork.configure("100_evaluate", toy_run.EVALUATE | {"inputs": inputs})
    assert fork.stage("100_evaluate") == 3
    assert "3 of 3 prompts of the questions were trained on" in capsys.readouterr().err


def test_local_texts_are_a_set_of_their_own(fork: ToyRun) -> None:
    fork.path("data/raw").mkdir(parents=True)
    fork.path("data/raw/a.txt").write_text("The red fox lives at the lake.")
    perplexity = {"limit_tokens": 200, "texts": ["data/raw/*.txt"]}
    fork.configure("100_evaluate", toy_run.EVALUATE | {"perplexity": perplexity})
    assert fork.stage("100_evaluate") == 3  # the corpus was not kept clean of them
    assert fork.stage("100_evaluate", "--allow-mismatch", "a toy corpus") == 0
    results = json.loads(fork.path("data/toy/evaluation/results.json").read_text())
    assert results["texts"]["texts"]["base"]["documents"] == 1


def test_merge_writes_a_complete_model_with_parity(built: ToyRun) -> None:
    folder = built.path("checkpoints/toy/merged")
    assert {path.name for path in folder.iterdir()} - {"log"} == {
        "MODEL_CARD.md", "chat_template.jinja", "config.json", "generation_config.json", "manifest.json",
        "model.safetensors", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    }  # fmt: skip
    metrics = read_manifest(folder)[0].metrics
    assert metrics["mode"] == "merged" and metrics["prompts"] == 6
    assert metrics["max_logit_difference"] <= 1e-4
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [2, 5]


def test_merge_keeps_the_adapters_tokenizer_and_template(built: ToyRun) -> None:
    merged, adapter = (read_manifest(built.path(f"checkpoints/toy/{name}"))[0] for name in ("merged", "sft"))
    assert merged.tokenizer == adapter.tokenizer
    assert merged.tokenizer["chat_template_sha256"]


def test_adapter_on_another_base_is_refused(fork: ToyRun, capsys: pytest.CaptureFixture) -> None:
    def other_base(folder: Path) -> None:
        toy_run.write_base(folder)
        (folder / "note.txt").write_text("other bytes, other digest")

    fork.seal("50_pretrain", "checkpoints/toy/other", other_base)
    inputs = toy_run.MERGE["inputs"] | {"base": "checkpoints/toy/other"}
    fork.configure("110_merge_lora", toy_run.MERGE | {"inputs": inputs})
    assert fork.stage("110_merge_lora") == 3
    found = capsys.readouterr().err
    assert "adapter trained on" in found and digest_of(fork, "checkpoints/toy/other")[:12] in found


def test_too_strict_a_limit_seals_nothing(fork: ToyRun, capsys: pytest.CaptureFixture) -> None:
    fork.configure(
        "110_merge_lora",
        toy_run.MERGE | {"dtype": "bfloat16", "verify": {"prompts": 4, "max_mean_kl": 1e-12}},
    )
    shutil.rmtree(fork.path("checkpoints/toy/merged"))
    assert fork.stage("110_merge_lora") == 4
    assert "merged model differs from base plus adapter" in capsys.readouterr().err
    assert not fork.path("checkpoints/toy/merged").exists()


def test_full_weights_pass_through_unchanged(fork: ToyRun) -> None:
    def full(folder: Path) -> None:
        toy_run.write_base(folder)
        toy_run.copy_tokenizer_set(folder)

    fork.seal("70_train_sft", "checkpoints/toy/full", full)
    inputs = toy_run.MERGE["inputs"] | {"adapter": "checkpoints/toy/full"}
    fork.configure("110_merge_lora", toy_run.MERGE | {"inputs": inputs})
    assert fork.stage("110_merge_lora") == 0
    for name in ("model.safetensors", "config.json", "generation_config.json", "tokenizer.model"):
        copied, given = (
            fork.path(f"checkpoints/toy/{folder}/{name}").read_bytes() for folder in ("merged", "full")
        )
        assert copied == given
    assert read_manifest(fork.path("checkpoints/toy/merged"))[0].metrics["mode"] == "copied"


def test_gguf_folder_has_files_report_card_and_modelfile(built: ToyRun) -> None:
    folder = built.path("checkpoints/toy/gguf")
    assert {path.name for path in folder.iterdir()} - {"log"} == {
        "MODEL_CARD.md", "Modelfile", "manifest.json", "model-f16.gguf", "model-q4_k_m.gguf", "verify.json",
    }  # fmt: skip
    report, metrics = json.loads((folder / "verify.json").read_text()), read_manifest(folder)[0].metrics
    assert report["files"]["f16"]["mean_kl"] == metrics["files"]["f16"]["mean_kl"] <= 1e-5
    card = (folder / "MODEL_CARD.md").read_text()
    assert "## Evaluation" in card and f"{report['files']['q4_k_m']['bytes']:,}" in card
    assert 'PARAMETER stop "<|im_end|>"' in (folder / "Modelfile").read_text()


def test_files_carry_the_lineage_down_to_the_data(built: ToyRun) -> None:
    verdict, proof = prove_gguf(built.path("checkpoints/toy/gguf/model-q4_k_m.gguf"))
    assert verdict.good
    assert proof.output_digest == digest_of(built, "checkpoints/toy/merged")
    stages = {entry["stage"] for entry in proof.lineage}
    assert stages == {"110_merge_lora", "70_train_sft", "60_prepare_sft", "50_pretrain"}


@pytest.mark.parametrize(
    ("what", "expected"),
    [("tensor", "tensors: expected"), ("lineage", "lineage: expected"), ("piece", "pieces: expected")],
)
def test_a_lone_file_shows_what_was_changed(built: ToyRun, tmp_path: Path, what: str, expected: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(built.path("checkpoints/toy/gguf/model-f16.gguf").read_bytes())
    reader = GGUFReader(path, "r+")
    if what == "tensor":
        reader.tensors[4].data.view("uint8").reshape(-1)[7] ^= 1
    elif what == "lineage":
        text = reader.fields["lockstep.lineage"].parts[-1]
        text[bytes(text).index(b"50_pretrain")] = ord("6")
    else:
        field = reader.fields["tokenizer.ggml.tokens"]
        field.parts[field.data[300]][0] ^= 1
    reader.data.flush()
    assert expected in str(prove_gguf(path)[0])


def test_a_failing_gate_seals_nothing(fork: ToyRun, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    from utils.export import gguf_write

    monkeypatch.setattr(gguf_write, "interleave_rotary", lambda weight, heads: weight)
    shutil.rmtree(fork.path("checkpoints/toy/gguf"))
    assert fork.stage("120_convert_gguf") == 4
    assert "values that are not the checkpoint's" in capsys.readouterr().err
    assert not fork.path("checkpoints/toy/gguf").exists()


def test_an_adapter_is_no_model_to_convert(fork: ToyRun, capsys: pytest.CaptureFixture) -> None:
    inputs = toy_run.GGUF["inputs"] | {"model": "checkpoints/toy/sft"}
    fork.configure("120_convert_gguf", toy_run.GGUF | {"inputs": inputs})
    assert fork.stage("120_convert_gguf") == 2
    assert "merge it first" in capsys.readouterr().err


def test_an_unknown_type_is_refused(fork: ToyRun, capsys: pytest.CaptureFixture) -> None:
    fork.configure("120_convert_gguf", toy_run.GGUF | {"outputs": ["q9_9"]})
    assert fork.stage("120_convert_gguf") == 2
    assert "outputs[0]" in capsys.readouterr().err
