"""Velvet in the three training stages: what is in the history, resuming, bf16 parameters."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.chat.toy_chain import (
    PREFERENCE_DATA,
    PREFERENCES,
    SFT,
    SFT_DATA,
    build_upstream,
    edited,
    toy_workspace,
)
from tests.chat.toy_chain import run as run_toy
from tests.dying import dying_at
from tests.scripts.test_50_pretrain import CONFIG, build_inputs, manifest, run

VELVET = {"kind": "velvet", "learning_rate": 0.01, "entropy": {"target_fraction": 0.4}}
CONTROLS = {"eta", "s", "b", "entropy"}


def steps_of(folder):
    rows = map(json.loads, (folder / "history.jsonl").read_text().splitlines())
    return [row for row in rows if "loss" in row]


@pytest.fixture(scope="module")
def pretrain(tmp_path_factory):
    torch.set_num_threads(1)
    return build_inputs(tmp_path_factory.mktemp("velvet"))


def test_a_base_model_is_trained_with_it_and_resumed_to_the_same_digest(pretrain):
    assert run(pretrain, "50_pretrain", CONFIG | {"optimizer": VELVET}) == 0
    folder = pretrain.path("checkpoints/toy/base")
    whole, rows = manifest(folder), steps_of(folder)
    assert rows[0].keys() >= CONTROLS and whole["metrics"]["val_loss"] < whole["metrics"]["bigram_loss"]
    assert len({row["s"] for row in rows}) > 20 and len({row["b"] for row in rows}) > 20
    assert 0 < rows[-1]["entropy"] < rows[0]["entropy"] <= 1

    moved = CONFIG | {"optimizer": VELVET, "output": "checkpoints/toy/again"}
    with dying_at(70):
        assert run(pretrain, "50_pretrain", moved) == 4
    assert run(pretrain, "50_pretrain", moved) == 0
    assert manifest(pretrain.path("checkpoints/toy/again"))["output_digest"] == whole["output_digest"]


def test_auxiliary_losses_of_experts_are_in_no_signal(pretrain):
    """The entropy and the loss that Velvet follows are those of the head, whatever the router adds."""
    folder = pretrain.path("config/architectures")
    toy = {
        name: value
        for name, value in json.loads((folder / "toy.json").read_text()).items()
        if value is not None
    }
    found = {}
    for name, coefficient in (("none", 0.0), ("much", 1.0)):
        moe = {"num_experts": 4, "experts_per_token": 2, "balance_coefficient": coefficient}
        (folder / f"{name}.json").write_text(json.dumps(toy | {"family": "vesper", "moe": moe}))
        changes = {
            "model": name,
            "output": f"checkpoints/toy/{name}",
            "budget": {"unit": "steps", "value": 8},
        }
        assert run(pretrain, "50_pretrain", CONFIG | {"optimizer": VELVET} | changes) == 0
        found[name] = steps_of(pretrain.path(f"checkpoints/toy/{name}"))
    for name in ("loss", "entropy"):
        assert found["none"][0][name] == found["much"][0][name]
    assert found["none"][0]["grad_norm"] != found["much"][0]["grad_norm"]


def test_bf16_parameters_learn_behind_their_masters(pretrain):
    changes = {"precision": "bf16", "parameter_dtype": "bf16", "output": "checkpoints/toy/bf16"}
    assert run(pretrain, "50_pretrain", CONFIG | {"optimizer": VELVET} | changes) == 0
    folder = pretrain.path("checkpoints/toy/bf16")
    metrics = manifest(folder)["metrics"]
    assert metrics["val_loss"] < metrics["bigram_loss"]
    assert {each.dtype for each in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    state = load_file(folder / "checkpoints/step_00000120/optimizer.safetensors")
    assert state["master/model.norm.weight"].dtype == torch.float32


def test_adapters_and_preferences_follow_the_predictions_of_answers(tmp_path):
    torch.set_num_threads(1)
    workspace = toy_workspace(tmp_path)
    build_upstream(workspace)
    assert run_toy(workspace, "60_prepare_sft", SFT_DATA) == 0
    assert run_toy(workspace, "80_prepare_preferences", PREFERENCE_DATA) == 0
    for name, document, output in (
        ("70_train_sft", SFT, "sft"),
        ("90_train_preferences", PREFERENCES, "preferences"),
    ):
        assert run_toy(workspace, name, edited(document, optimizer=VELVET)) == 0
        rows = steps_of(workspace.path(f"checkpoints/toy/{output}"))
        assert rows[0].keys() >= CONTROLS and all(0 < row["entropy"] <= 1 for row in rows)
        assert len({row["b"] for row in rows}) > 1  # warm-up, then what the perplexity asks for
