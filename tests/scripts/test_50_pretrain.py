"""Stage 50 on a toy tokenizer and toy rows: what it writes, says, refuses, and how it goes on."""

import json
import shutil
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.chat.toy_chain import ToyTokenizerConfig, questions, script, train_tokenizer
from tests.dying import dying_at
from utils.config.pretrain import PretrainConfig
from utils.models.presets import load_architecture
from utils.packing.dataset import PackedDataset
from utils.packing.index import SpecialIds
from utils.packing.pack import EncodedBlock, Layout, SplitPacker
from utils.pipeline.config import InputFolder, Section, StageConfig
from utils.pipeline.stage import Stage, execute
from utils.pipeline.workspace import REPOSITORY, STAGES, Workspace
from utils.tokenizer.frozen import FrozenTokenizer
from utils.training.loss import mean_loss
from utils.training.validation import spread_batches

CONFIG = {
    "output": "checkpoints/toy/base",
    "model": "toy",
    "inputs": {"tokenizer": "data/toy/tokenizer", "data": [{"path": "data/toy/packed"}]},
    "budget": {"unit": "steps", "value": 120},
    "global_batch_tokens": 256,
    "micro_batch_rows": 8,
    "optimizer": {"learning_rate": 0.01},
    "precision": "fp32",
    "cpu_threads": 1,
    "eval_every_steps": 60,
    "save_every_steps": 30,
    "prompts": ["is the cat"],
    "sample_tokens": 6,
    "trackers": [],
}


class ToyPackInputs(Section):
    """What the toy rows stand on."""

    tokenizer: InputFolder


class ToyPackConfig(StageConfig):
    """Questions and answers as packed rows of 32 ids."""

    stage: ClassVar[str] = "40_pack_dataset"

    inputs: ToyPackInputs
    repeats: int = 4
    """How often each question occurs in the training split."""


def pack(config: ToyPackConfig, stage: Stage) -> dict:
    tokenizer = FrozenTokenizer(stage.input("tokenizer").path)
    layout = Layout(
        "best_fit", 32, tokenizer.vocab_size, tokenizer.fingerprint, SpecialIds(1, 2, 3), ["questions"]
    )
    texts = [f"{question} yes, {colour}" for question, colour in questions()]
    for split, chosen in (("train", texts * config.repeats), ("val", texts[::5])):
        ids = [np.array([1, *found, 2], np.uint32) for found in tokenizer.encode_text(chosen)]
        names = [f"{split}{i}".encode().hex().zfill(32) for i in range(len(ids))]
        sizes = [len(document) for document in ids]
        packer = SplitPacker(stage.partial, split, layout, stage.journal(split), 0)
        packer.append(EncodedBlock(np.concatenate(ids), sizes, sizes, sizes, names, ["questions"] * len(ids)))
        packer.finish()
    return {}


TOYS = {"30_train_tokenizer": (ToyTokenizerConfig, train_tokenizer), "40_pack_dataset": (ToyPackConfig, pack)}


def run(workspace: Workspace, name: str, document: dict, *arguments: str) -> int:
    path = workspace.path(f"config/toy/{name}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    config_class, main = TOYS.get(name) or (PretrainConfig, script(name).main)
    return execute(name, config_class, main, ["--config", str(path), *arguments], workspace)


def workspace_of(root: Path) -> Workspace:
    toys = {name: f"{__name__}:{config.__name__}" for name, (config, _) in TOYS.items()}
    return Workspace(root, dict(STAGES) | toys)


def build_inputs(root: Path) -> Workspace:
    shape = load_architecture("smoke", REPOSITORY).model_dump()
    shape |= {"hidden_size": 32, "num_heads": 2, "num_kv_heads": 2, "head_dim": 16, "ffn_size": 64}
    folder = root / "config" / "architectures"
    folder.mkdir(parents=True)
    (folder / "toy.json").write_text(json.dumps(shape | {"num_layers": 1}))
    workspace = workspace_of(root)
    assert run(workspace, "30_train_tokenizer", {"output": "data/toy/tokenizer"}) == 0
    inputs = {"tokenizer": "data/toy/tokenizer"}
    assert run(workspace, "40_pack_dataset", {"output": "data/toy/packed", "inputs": inputs}) == 0
    return workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    torch.set_num_threads(1)
    return build_inputs(tmp_path_factory.mktemp("pretrain"))


@pytest.fixture(scope="module")
def built(workspace):
    assert run(workspace, "50_pretrain", CONFIG) == 0
    return workspace.path("checkpoints/toy/base")


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def manifest_run(workspace: Workspace) -> dict:
    return manifest(workspace.path("checkpoints/toy/base"))["run"]["rates"]


@pytest.fixture
def copy(workspace, tmp_path):
    """The workspace without its model, to build in."""
    root = tmp_path / "copy"
    shutil.copytree(workspace.root, root, ignore=shutil.ignore_patterns("checkpoints"))
    return Workspace(root, workspace.stages)


def test_the_artifact_is_a_model_that_transformers_loads(built, workspace):
    outputs = {row["path"] for row in manifest(built)["outputs"]}
    assert outputs >= {"model.safetensors", "config.json", "generation_config.json", "MODEL_CARD.md"}
    assert outputs >= {"history.jsonl", "samples.jsonl", "tokenizer.model", "tokenizer.json"}
    assert not any(name.startswith(("log", "checkpoints")) for name in outputs)
    for name in ("tokenizer.model", "tokenizer.json"):
        assert (built / name).read_bytes() == (workspace.path("data/toy/tokenizer") / name).read_bytes()
    model = AutoModelForCausalLM.from_pretrained(built)
    val = PackedDataset(workspace.path("data/toy/packed"), "val")
    loss = mean_loss(model, spread_batches(val, 65_536))
    assert loss == pytest.approx(manifest(built)["metrics"]["val_loss"], abs=1e-6)


def test_it_learns_and_says_what_counting_would_achieve(built):
    metrics = manifest(built)["metrics"]
    assert metrics["val_loss"] < metrics["bigram_loss"] < metrics["unigram_loss"] < metrics["uniform_loss"]
    assert metrics["steps"] == 120 and metrics["batch_rows"] == 8 and metrics["skipped_steps"] == 0
    assert metrics["val_bits_per_byte"] < metrics["bigram_bits_per_byte"]
    assert metrics["initial_val_loss"] == pytest.approx(metrics["uniform_loss"], abs=0.1)
    card = (built / "MODEL_CARD.md").read_text()
    assert "| unigram loss |" in card and "'is the cat' ->" in card


def test_samples_are_taken_at_every_evaluation(built):
    rows = [json.loads(line) for line in (built / "samples.jsonl").read_text().splitlines()]
    shown = [(row["step"], row.get("temperature", 0)) for row in rows]
    assert shown == [(step, temperature) for step in (0, 60, 120) for temperature in (0, 0.8)]
    assert rows[-2]["text"].strip().startswith(("red", "blue", "green", "black"))
    assert f"-> {rows[-1]['text']!r} (drawn at temperature 0.8)" in (built / "MODEL_CARD.md").read_text()


def test_without_a_word_five_prompts_are_continued_twice():
    config = PretrainConfig.model_validate({k: v for k, v in CONFIG.items() if k != "prompts"})
    assert len(config.prompts) == len(set(config.prompts)) == 5 and config.sample_temperature == 0.8


def test_the_manifest_tells_what_auto_came_to_outside_of_every_digest(copy):
    auto = dict.fromkeys(("eval_every_steps", "save_every_steps"), "auto")
    document = CONFIG | auto | {"budget": {"unit": "steps", "value": 40}, "optimizer": {}}
    assert run(copy, "50_pretrain", document) == 0
    found = manifest_run(copy)["schedule"]
    assert {name: (each["asked"], each["resolved"]) for name, each in found.items()} == {
        "eval_every_steps": ("auto", 2),
        "save_every_steps": ("auto", 2),
        "warmup_steps": ("auto", 4),
        "learning_rate": ("auto", manifest(copy.path("checkpoints/toy/base"))["metrics"]["learning_rate"]),
    }
    assert found["save_every_steps"]["reason"] == "a twentieth of 40 steps"


def test_the_log_prints_the_arithmetic(copy, capsys):
    assert run(copy, "50_pretrain", CONFIG | {"budget": {"unit": "steps", "value": 2}}) == 0
    out = capsys.readouterr().out
    assert "toy: 2" in out and "parameters (" in out and "tied, vocabulary 3" in out
    assert "global_batch_tokens = 256 -> 8 rows x 32 = 256" in out and "steps = ceil(512 / 256) = 2" in out
    assert "gemm_fraction 0." in out and 0 < manifest_run(copy)["gemm_fraction"] < 1
    assert "= 2 steps x 8 rows x 32;" in out and "peak lr 1.00e-02, wsd" in out
    assert "alignment, causality and isolation hold" in out and "decay: 7 tensors" in out


def test_up_to_date_and_stale_by_architecture_file(built, copy, capsys):
    shutil.copytree(built, copy.path("checkpoints/toy/base"))
    assert run(copy, "50_pretrain", CONFIG) == 0
    assert "up to date" in capsys.readouterr().out
    path = copy.path("config/architectures/toy.json")
    path.write_text(path.read_text().replace('"rope_theta": 10000.0', '"rope_theta": 20000.0'))
    assert run(copy, "50_pretrain", CONFIG, "--dry-run") == 0
    assert "config.model" in capsys.readouterr().out


def test_a_killed_run_continues_to_the_same_digest(built, copy):
    with dying_at(70):
        assert run(copy, "50_pretrain", CONFIG) == 4
    assert run(copy, "50_pretrain", CONFIG) == 0
    again = copy.path("checkpoints/toy/base")
    assert manifest(again)["output_digest"] == manifest(built)["output_digest"]
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (again, built))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_swapped_tokenizer_is_refused(copy, capsys):
    assert run(copy, "30_train_tokenizer", {"output": "data/toy/tokenizer", "seed": 1}) == 0
    assert run(copy, "50_pretrain", CONFIG) == 3
    assert "tokenizer" in capsys.readouterr().err


def test_a_truncated_packed_file_is_refused(copy, capsys):
    path = copy.path("data/toy/packed/train.bin")
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-2])
    assert run(copy, "50_pretrain", CONFIG) == 3
    assert "train.bin" in capsys.readouterr().err


def test_an_unknown_architecture_is_refused_with_the_known_ones(copy, capsys):
    assert run(copy, "50_pretrain", CONFIG | {"model": "tyo"}) == 2
    message = capsys.readouterr().err
    assert "config/architectures/tyo.json" in message and "toy" in message
