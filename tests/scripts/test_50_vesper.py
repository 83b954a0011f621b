"""Stage 50 on toy shapes of Mixtral and VesperLM: it trains, says what a GGUF can be, and goes on exactly."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.dying import dying_at
from tests.scripts.test_50_pretrain import CONFIG, build_inputs, manifest, run
from utils.models.load import load_model
from utils.pipeline.workspace import Workspace

MOE = {"num_experts": 4, "experts_per_token": 2}
FLY = {"kind": "fly", "rank": 8, "active_ranks": 2, "train_base": True, "balance_step": 0.01}
SHAPES = {
    "mixtral": {"moe": MOE},
    "vesper": {"family": "vesper"},
    "vesper_silu": {"family": "vesper", "activation": "silu"},
    "vesper_fly": {"family": "vesper", "adapter": FLY},
    "vesper_moe": {"family": "vesper", "moe": MOE},
}
BUDGET = {"budget": {"unit": "steps", "value": 40}, "eval_every_steps": 20, "save_every_steps": 10}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    torch.set_num_threads(1)
    workspace = build_inputs(tmp_path_factory.mktemp("vesper"))
    folder = workspace.path("config/architectures")
    toy = json.loads((folder / "toy.json").read_text())
    toy = {name: value for name, value in toy.items() if value is not None}
    for name, changes in SHAPES.items():
        (folder / f"{name}.json").write_text(json.dumps(toy | changes))
    return workspace


@pytest.fixture
def workspace(prepared, tmp_path):
    shutil.copytree(prepared.root, tmp_path / "copy")
    return Workspace(tmp_path / "copy", prepared.stages)


def config(name):
    return CONFIG | BUDGET | {"model": name}


@pytest.mark.parametrize("name", SHAPES)
def test_it_trains_and_goes_on_to_the_same_digest_after_a_kill(workspace, name, capsys):
    assert run(workspace, "50_pretrain", config(name)) == 0
    folder = workspace.path("checkpoints/toy/base")
    first, said = manifest(folder), capsys.readouterr().out
    assert first["metrics"]["val_loss"] < first["metrics"]["unigram_loss"] < first["metrics"]["uniform_loss"]
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    figures = {"balance", "router_z", "load_max_over_mean", "dead_experts", "router_entropy"}
    assert figures <= history[-2].keys() if "moe" in SHAPES[name] else not figures & history[-2].keys()
    assert ("no GGUF: activation era (gamma 0.1)" in said) is (name in ("vesper", "vesper_fly", "vesper_moe"))
    assert ("adapter fly, 2 of 8 ranks: depends on the token" in said) is (name == "vesper_fly")
    weights = load_file(folder / "model.safetensors")
    moved = [bool(each.any()) for key, each in weights.items() if key.endswith("offsets")]
    assert moved == ([True] * 3 if name == "vesper_fly" else [])
    assert load_model(folder).config.model_type == ("mixtral" if name == "mixtral" else "vesper")

    shutil.rmtree(folder.parent)
    with dying_at(25):
        assert run(workspace, "50_pretrain", config(name)) == 4
    assert run(workspace, "50_pretrain", config(name)) == 0
    assert "resuming" in capsys.readouterr().out
    assert manifest(folder)["output_digest"] == first["output_digest"]


def test_an_adapter_on_what_is_no_layer_of_a_block_is_refused(workspace, capsys):
    """The head would be counted wrongly, and a merge would untie it."""
    path = workspace.path("config/architectures/vesper_fly.json")
    document = json.loads(path.read_text())
    document["adapter"]["targets"] = ["q_proj", "lm_head"]
    path.write_text(json.dumps(document))
    assert run(workspace, "50_pretrain", config("vesper_fly")) == 2
    message = capsys.readouterr().err
    assert "adapter.targets" in message and "'q_proj'" in message and "'down_proj'" in message


def test_an_unknown_field_of_the_experts_is_refused(workspace, capsys):
    path = workspace.path("config/architectures/vesper_moe.json")
    path.write_text(path.read_text().replace("num_experts", "number_of_experts"))
    assert run(workspace, "50_pretrain", config("vesper_moe")) == 2
    assert 'unknown key "moe.number_of_experts"' in capsys.readouterr().err
