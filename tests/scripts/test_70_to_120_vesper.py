"""VesperLM's own adapters through stages 70, 90, 110 and 120: what trains, what merges, what is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.chat import toy_chain
from tests.chat.toy_chain import PREFERENCE_DATA, PREFERENCES, SFT, SFT_DATA, edited, run
from tests.dying import dying_at
from utils.models.flylora import adapters_of
from utils.models.load import copy_tokenizer, load_model, save_model
from utils.models.vesper import VesperConfig, VesperForCausalLM
from utils.pipeline.manifest import read_manifest
from utils.pipeline.workspace import Workspace

MARKERS = [4, 5]
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FLY = {"kind": "fly", "targets": TARGETS, "rank": 8, "active_ranks": 2, "balance_step": 0.01}
VELVET = {"kind": "velvet", "learning_rate": 0.01}
MERGE = {
    "output": "checkpoints/toy/merged",
    "inputs": {"base": "checkpoints/toy/base", "adapter": "checkpoints/toy/sft", "prompts": "data/toy/sft"},
    "verify": {"prompts": 6},
}

REFUSAL = """\
error: 120_convert_gguf cannot express checkpoints/toy/sft
  activation era (gamma 0.1)        llama.cpp's llama graph computes SiLU only
  adapter fly, 2 of 8 ranks         depends on the token, cannot be merged
  would convert                     "activation": "silu" and adapter none, dense, or fly with \
active_ranks = rank
  runs as it is                     python tools/serve.py --model checkpoints/toy/sft
""".splitlines()


def pretrain(config, stage):
    """A VesperLM with experts and random weights."""
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    shape = VesperConfig(
        vocab_size=stage.input("tokenizer").manifest.tokenizer["vocab_size"], hidden_size=32,
        intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2, pad_token_id=3, bos_token_id=1, eos_token_id=2, max_position_embeddings=128,
        tie_word_embeddings=True,
    )  # fmt: skip
    save_model(VesperForCausalLM(shape), stage.partial)
    copy_tokenizer(stage.input("tokenizer").path, stage.partial)
    return {}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        config_class, _, document = toy_chain.UPSTREAM["50_pretrain"]
        patch.setitem(toy_chain.UPSTREAM, "50_pretrain", (config_class, pretrain, document))
        workspace = toy_chain.toy_workspace(tmp_path_factory.mktemp("toy"))
        toy_chain.build_upstream(workspace)
    assert run(workspace, "60_prepare_sft", SFT_DATA) == 0
    assert run(workspace, "80_prepare_preferences", PREFERENCE_DATA) == 0
    return workspace


@pytest.fixture
def workspace(prepared, tmp_path):
    shutil.copytree(prepared.root, tmp_path / "copy")
    return Workspace(tmp_path / "copy", prepared.stages)


def tuned(adapter, **changes):
    document = edited(SFT, optimizer=VELVET, **changes)
    document["tuning"] = {"mode": "adapter"} | ({"adapter": adapter} if adapter else {})
    return document


def weights(workspace, name):
    return load_file(workspace.path(f"checkpoints/toy/{name}/model.safetensors"))


def metrics(workspace, name):
    return read_manifest(workspace.path(f"checkpoints/toy/{name}"))[0].metrics


CONTINUED = edited(PREFERENCES, adapter="continue", reference="cached", optimizer=VELVET) | {
    "inputs": {"model": "checkpoints/toy/sft", "data": [{"path": "data/toy/preferences"}]}
}


def test_fly_trains_with_the_markers_is_continued_and_never_merged(workspace, capsys):
    assert run(workspace, "70_train_sft", tuned(FLY)) == 0
    base, sft = weights(workspace, "base"), weights(workspace, "sft")
    assert metrics(workspace, "sft")["val_loss"] < metrics(workspace, "sft")["initial_val_loss"] - 0.2
    changed = {name for name, each in base.items() if not torch.equal(each, sft[name])}
    assert changed == {"model.embed_tokens.weight"}
    rows = (base["model.embed_tokens.weight"] != sft["model.embed_tokens.weight"]).any(1).nonzero().flatten()
    assert rows.tolist() == MARKERS
    assert all(each.any() for name, each in sft.items() if name.endswith(("lora_B", "offsets")))
    assert "adapter_base" not in metrics(workspace, "sft")

    assert run(workspace, "90_train_preferences", CONTINUED) == 0
    last = weights(workspace, "preferences")
    assert metrics(workspace, "preferences")["initial_val_loss"] == pytest.approx(0.693147, abs=1e-6)
    assert metrics(workspace, "preferences")["val_loss"] < 0.68
    moved = {name for name, each in sft.items() if not torch.equal(each, last[name])}
    assert moved == {name for name in sft if name.endswith(("lora_B", "offsets"))}
    assert "adapter_base" not in metrics(workspace, "preferences")

    capsys.readouterr()
    assert run(workspace, "110_merge_lora", MERGE) == 2
    assert "adapter fly, 2 of 8 ranks: depends on the token, cannot be merged" in capsys.readouterr().err
    convert = {
        "output": "checkpoints/toy/gguf",
        "name": "toy",
        "inputs": {
            "model": "checkpoints/toy/sft",
            "corpus": "data/toy/generated",
            "prompts": "data/toy/sft",
        },
    }
    assert run(workspace, "120_convert_gguf", convert) == 2
    assert capsys.readouterr().err.splitlines()[-5:] == REFUSAL


@pytest.mark.parametrize(
    "adapter",
    [
        {"kind": "dense", "targets": TARGETS, "rank": 4},
        FLY | {"active_ranks": 8, "density": 0.25, "train_base": True},
    ],
    ids=["dense", "fly with all ranks and the base"],
)
def test_what_can_be_merged_is_the_same_model_afterwards(workspace, adapter):
    assert run(workspace, "70_train_sft", tuned(adapter)) == 0
    assert run(workspace, "110_merge_lora", MERGE) == 0
    found = metrics(workspace, "merged")
    assert found["mode"] == "merged" and found["prompts"] == 6
    assert found["max_logit_difference"] <= 1e-4 and found["top1_agreement"] == 1.0
    merged, sft = (load_model(workspace.path(f"checkpoints/toy/{name}")) for name in ("merged", "sft"))
    assert not list(adapters_of(merged)) and merged.config.adapter is None and list(adapters_of(sft))
    assert weights(workspace, "merged").keys() == weights(workspace, "base").keys()
    document = json.loads(workspace.path("checkpoints/toy/merged/generation_config.json").read_text())
    assert document["eos_token_id"] == [2, 5]


def test_killed_it_goes_on_to_the_same_weights(workspace):
    assert run(workspace, "70_train_sft", tuned(FLY)) == 0
    again = tuned(FLY, output="checkpoints/toy/again")
    with dying_at(9):
        assert run(workspace, "70_train_sft", again) == 4
    assert run(workspace, "70_train_sft", again) == 0
    first, second = weights(workspace, "sft"), weights(workspace, "again")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_two_kinds_are_not_mixed_and_what_is_missing_is_named(workspace, capsys):
    assert run(workspace, "70_train_sft", tuned(None, output="checkpoints/toy/none")) == 2
    assert "the model has no adapters of its own" in capsys.readouterr().err
    wrong = tuned({"kind": "dense", "targets": ["query"]}, output="checkpoints/toy/wrong")
    assert run(workspace, "70_train_sft", wrong) == 2
    assert "\"tuning.adapter.targets[0]\": input should be 'q_proj', " in capsys.readouterr().err
    assert run(workspace, "70_train_sft", tuned(FLY)) == 0
    onto = {"base": "checkpoints/toy/sft", "data": [{"path": "data/toy/sft"}]}
    assert run(workspace, "70_train_sft", tuned(FLY, output="checkpoints/toy/twice") | {"inputs": onto}) == 2
    assert "the model has adapters already" in capsys.readouterr().err
    lora = SFT | {"inputs": onto, "output": "checkpoints/toy/lora"}
    assert run(workspace, "70_train_sft", lora) == 2
    assert "two kinds may not be mixed" in capsys.readouterr().err
    assert run(workspace, "90_train_preferences", CONTINUED | {"adapter": "new"}) == 2
    assert "two kinds may not be mixed" in capsys.readouterr().err
    further = tuned(None, output="checkpoints/toy/again") | {"inputs": onto}
    assert run(workspace, "70_train_sft", further) == 0
    assert metrics(workspace, "again")["initial_val_loss"] == pytest.approx(
        metrics(workspace, "sft")["val_loss"], abs=1e-6
    )


def test_peft_on_experts_is_merged_and_answers_like_the_adapter(workspace):
    lora = edited(SFT, optimizer=VELVET) | {"tuning": {"mode": "lora", "rank": 4, "alpha": 8}}
    assert run(workspace, "70_train_sft", lora) == 0
    folder = workspace.path("checkpoints/toy/sft")
    names = load_file(folder / "adapter_model.safetensors").keys()
    assert sum(".experts." in name for name in names) == 2 * 2 * 2  # layers, parameters, A and B
    assert run(workspace, "110_merge_lora", MERGE) == 0
    found = metrics(workspace, "merged")
    assert found["max_logit_difference"] <= 1e-4 and found["top1_agreement"] == 1.0


def test_a_llama_has_no_adapters_of_its_own(tmp_path, capsys):
    workspace = toy_chain.toy_workspace(tmp_path)
    toy_chain.build_upstream(workspace)
    assert run(workspace, "60_prepare_sft", SFT_DATA) == 0
    assert run(workspace, "70_train_sft", tuned(FLY)) == 2
    error = capsys.readouterr().err
    assert 'mode "adapter" needs a VesperLM; this model is a llama' in error and '"mode": "lora"' in error
