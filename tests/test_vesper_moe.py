"""The profile vesper_moe: what its plan says, and all of it, made small, up to a chat with the checkpoint."""

import json
import shutil
from pathlib import Path

import pytest

from tests.chat.toy_chain import script
from tools.opening import open_model
from tools.pipeline import main
from utils.chat.conversation import Message
from utils.pipeline.plan import read_profile
from utils.pipeline.stage import execute
from utils.pipeline.workspace import REPOSITORY, STAGES, Workspace
from utils.serving.engine import Generation
from utils.serving.sampling import Sampling

HEADLINE = "120_convert_gguf       none: llama.cpp cannot express the model"
MODEL = (
    "model                  vesper_tiny_moe: 16,786,688 parameters (15,738,112 without embeddings, 8,660,224 "
    "of them active per token), tied, vocabulary 4,096, 63.0 MFLOP/token (60.6 causal)"
)
ERA = "  activation era (gamma 0.1)        llama.cpp's llama graph computes SiLU only"
FLY = "  adapter fly, 8 of 32 ranks        depends on the token, cannot be merged"
NOT_MERGED = "  adapter fly, rank 32              not merged into the weights"
SMALL = {
    "10_generate": {
        "datasets": {
            "stories": {"rows": 400},
            "chat": {"rows": 200},
            "pairs": {"rows": 80},
            "manners": {"rows": 40},
        }
    },
    "20_prepare_corpus": {"split": {"val_fraction": 0.05}},
    "30_train_tokenizer": {"vocab_size": 512, "min_chars_per_token": 2.0},
    "50_pretrain": {
        "budget": {"unit": "steps", "value": 12},
        "global_batch_tokens": 1024,
        "eval_max_tokens": 2048,
        "eval_every_steps": 6,
        "cpu_threads": 1,
    },
    "70_train_sft": {"epochs": 0.5, "sample_prompts": 4, "eval_every_steps": 10, "cpu_threads": 1},
    "90_train_preferences": {"epochs": 0.5, "cpu_threads": 1},
    "100_evaluate": {
        "generation": {"limit_rows": 8, "max_new_tokens": 8},
        "preferences": {"limit_pairs": 8},
        "perplexity": {"limit_tokens": 2048},
        "bootstrap_resamples": 200,
    },
}


def merged(document: dict, changes: dict) -> dict:
    found = dict(document)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = merged(found[key], value) if both else value
    return found


def edit(path: Path, changes: dict) -> None:
    path.write_text(json.dumps(merged(json.loads(path.read_text()), changes)))


def configs(tmp_path: Path) -> Workspace:
    """A workspace with a copy of all configs."""
    shutil.copytree(REPOSITORY.path("config"), tmp_path / "config")
    return Workspace(tmp_path, STAGES)


def planned(workspace: Workspace, capsys: pytest.CaptureFixture) -> list[str]:
    assert main(["plan", "vesper_moe"], workspace) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[11] == MODEL
    return lines[12:]


def test_it_has_every_stage_but_the_last_and_trains_with_velvet() -> None:
    nodes = {node.stage: node.loaded.config for node in read_profile("vesper_moe", REPOSITORY)}
    assert list(nodes) == [stage for stage in STAGES if not stage.startswith(("15_", "120_"))]
    assert nodes["50_pretrain"].model == "vesper_tiny_moe"
    trained = [nodes[stage] for stage in ("50_pretrain", "70_train_sft", "90_train_preferences")]
    assert {each.optimizer.kind for each in trained} == {"velvet"}
    for stage, config in nodes.items():
        assert config.output.split("/")[1] == "vesper_moe", stage


@pytest.mark.parametrize(
    ("activation", "adapter", "expected"),
    [
        ("era", {}, [HEADLINE, ERA]),
        ("era", {"active_ranks": 8}, [HEADLINE, ERA, FLY]),
        ("silu", {"active_ranks": 8}, [HEADLINE, FLY]),
        ("silu", {}, []),
    ],
)
def test_the_plan_says_why_there_is_no_gguf(
    tmp_path: Path, capsys: pytest.CaptureFixture, activation: str, adapter: dict, expected: list[str]
) -> None:
    workspace = configs(tmp_path)
    shape = workspace.path("config/architectures/vesper_tiny_moe.json")
    document = {name: value for name, value in json.loads(shape.read_text()).items() if name != "gamma"}
    shape.write_text(json.dumps(document | {"activation": activation}))
    edit(workspace.path("config/vesper_moe/70_train_sft.json"), {"tuning": {"adapter": adapter}})
    assert planned(workspace, capsys) == expected


def test_without_a_merge_the_adapter_is_a_cause_too(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    workspace = configs(tmp_path)
    workspace.path("config/vesper_moe/110_merge_lora.json").unlink()
    assert main(["plan", "vesper_moe"], workspace) == 0
    assert capsys.readouterr().out.splitlines()[10:] == [MODEL, HEADLINE, ERA, NOT_MERGED]


def test_a_plan_with_a_gguf_says_that_the_last_stage_will_refuse(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    workspace = configs(tmp_path)
    there, here = (workspace.path(f"config/{name}/120_convert_gguf.json") for name in ("demo", "vesper_moe"))
    here.write_text(there.read_text().replace("/demo/", "/vesper_moe/"))
    assert main(["plan", "vesper_moe"], workspace) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[11] == "120_convert_gguf       run     missing"
    refusal = "120_convert_gguf       will refuse: llama.cpp cannot express the model"
    assert lines[12:] == [MODEL, refusal, ERA]


@pytest.mark.parametrize(("merge", "expected"), [(True, []), (False, [HEADLINE, NOT_MERGED])])
def test_adapters_of_the_architecture_are_merged_by_stage_110(
    tmp_path: Path, capsys: pytest.CaptureFixture, merge: bool, expected: list[str]
) -> None:
    workspace = configs(tmp_path)
    shape = workspace.path("config/architectures/vesper_tiny_moe.json")
    document = {name: value for name, value in json.loads(shape.read_text()).items() if name != "gamma"}
    adapter = {"kind": "fly", "active_ranks": 32, "train_base": True}
    shape.write_text(json.dumps(document | {"activation": "silu", "adapter": adapter}))
    tuning = workspace.path("config/vesper_moe/70_train_sft.json")
    tuning.write_text(json.dumps(json.loads(tuning.read_text()) | {"tuning": {"mode": "adapter"}}))
    if not merge:
        workspace.path("config/vesper_moe/110_merge_lora.json").unlink()
    assert main(["plan", "vesper_moe"], workspace) == 0
    _, _, after = capsys.readouterr().out.partition("\nmodel  ")
    assert after.splitlines()[1:] == expected


def test_a_plan_prints_the_model_with_its_count_and_nothing_of_a_gguf_that_can_be(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    workspace = configs(tmp_path)
    demo = "demo: 4,458,752 parameters (3,410,176 without embeddings), tied, vocabulary 4,096"
    larger = "demo: 5,507,328 parameters (3,410,176 without embeddings), tied, vocabulary 8,192"
    assert main(["plan", "demo"], workspace) == 0
    shown = f"model                  {demo}, 29.9 MFLOP/token (28.3 causal)"
    assert capsys.readouterr().out.splitlines()[12:] == [shown]
    edit(workspace.path("config/demo/30_train_tokenizer.json"), {"vocab_size": 8192})
    assert main(["plan", "demo"], workspace) == 0
    assert larger in capsys.readouterr().out
    workspace.path("config/demo/30_train_tokenizer.json").unlink()
    assert main(["plan", "demo"], workspace) == 0
    assert demo in capsys.readouterr().out  # the reference vocabulary, before there is a tokenizer


@pytest.mark.slow
def test_made_small_it_runs_to_a_chat(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    workspace = configs(tmp_path)
    for stage, changes in SMALL.items():
        edit(workspace.path(f"config/vesper_moe/{stage}.json"), changes)
    small = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "head_dim": 32}
    edit(workspace.path("config/architectures/vesper_tiny_moe.json"), small | {"ffn_size": 128})
    for node in read_profile("vesper_moe", workspace):
        arguments = ["--config", str(workspace.path(node.loaded.path))]
        code = execute(node.stage, type(node.loaded.config), script(node.stage).main, arguments, workspace)
        assert code == 0, capsys.readouterr().err
    opened = open_model(Path("checkpoints/vesper_moe/merged"), workspace)
    prompt = opened.encoder.prompt([Message("user", "What is red?")])
    assert len(list(Generation(opened.engine, prompt, Sampling(max_tokens=8, temperature=0.0)))) > 0
    assert main(["verify", str(workspace.path("checkpoints/vesper_moe/merged"))], workspace) == 0
    assert "data/vesper_moe/generated" in capsys.readouterr().out
