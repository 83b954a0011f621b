"""Stage 50 continuing another run: the same steps as a longer run, and what may not differ."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.dying import dying_at
from tests.scripts.test_50_pretrain import CONFIG, build_inputs, manifest, run
from utils.pipeline.verify import Verifier
from utils.pipeline.workspace import Workspace

SHORT = CONFIG | {
    "output": "checkpoints/toy/short",
    "budget": {"unit": "steps", "value": 20},
    "schedule": {"kind": "wsd", "warmup_steps": 4, "decay_fraction": 0.3},
    "eval_every_steps": 50,
    "save_every_steps": 5,
    "keep_last": 8,
    "prompts": [],
}
LONG = SHORT | {"output": "checkpoints/toy/long", "budget": {"unit": "steps", "value": 40}}
MORE = SHORT | {
    "output": "checkpoints/toy/more",
    "continue_from": "checkpoints/toy/short/checkpoints/step_00000010",
    "budget": {"unit": "steps", "value": 30},
    "schedule": {"kind": "wsd", "decay_fraction": 0.4},
}
"""Decay begins at step 14 of 20, 28 of 40, and 10 + 18: the last two decay alike."""


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Workspace:
    torch.set_num_threads(1)
    workspace = build_inputs(tmp_path_factory.mktemp("continue"))
    assert run(workspace, "50_pretrain", SHORT) == 0
    return workspace


@pytest.fixture
def copy(short, tmp_path) -> Workspace:
    shutil.copytree(short.root, tmp_path / "copy")
    return Workspace(tmp_path / "copy", short.stages)


def weights(workspace: Workspace, folder: str) -> dict[str, torch.Tensor]:
    return load_file(workspace.path(f"checkpoints/toy/{folder}/model.safetensors"))


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_the_continuation_of_a_wsd_run_takes_the_steps_of_the_longer_run(copy):
    assert run(copy, "50_pretrain", LONG) == 0
    assert run(copy, "50_pretrain", MORE) == 0
    for step in (5, 15, 20):
        ours = weights(copy, f"more/checkpoints/step_{step:08d}")
        assert same(ours, weights(copy, f"long/checkpoints/step_{step + 10:08d}")), step
    assert same(weights(copy, "more"), weights(copy, "long"))
    assert not same(weights(copy, "more"), weights(copy, "short"))


def test_the_parent_is_a_verified_input_and_the_warm_up_is_asked_for(copy):
    warm = MORE | {"budget": {"unit": "steps", "value": 2}}
    assert run(copy, "50_pretrain", warm) == 0
    folder = copy.path("checkpoints/toy/more")
    records = {record["role"]: record for record in manifest(folder)["inputs"]}
    parent = copy.path("checkpoints/toy/short/checkpoints/step_00000010")
    assert records["continue_from"]["output_digest"] == manifest(parent)["output_digest"]
    assert manifest(folder)["metrics"]["continued_from_step"] == 10
    rates = [json.loads(line).get("lr") for line in (folder / "history.jsonl").read_text().splitlines()]
    assert rates[1] == 0.01
    links = Verifier(copy).chain(folder)
    assert all(link.verdict.good for link in links)
    assert "continue_from" in {link.role for link in links}
    asked = warm | {"schedule": {"kind": "constant", "warmup_steps": 2}}
    assert run(copy, "50_pretrain", asked) == 0
    first = json.loads((folder / "history.jsonl").read_text().splitlines()[1])
    assert first["lr"] == 0.005


def test_a_finished_run_is_continued_from_its_newest_checkpoint(copy, capsys):
    more = MORE | {"continue_from": "checkpoints/toy/short", "budget": {"unit": "steps", "value": 1}}
    assert run(copy, "50_pretrain", more) == 0
    assert manifest(copy.path("checkpoints/toy/more"))["metrics"]["continued_from_step"] == 20
    newest = copy.path("checkpoints/toy/short/checkpoints/step_00000020/optimizer.safetensors")
    newest.write_bytes(newest.read_bytes()[:-1])
    assert run(copy, "50_pretrain", more | {"output": "checkpoints/toy/next"}) == 3
    assert "step_00000020 is tampered" in capsys.readouterr().err
    shutil.rmtree(newest.parents[1])
    assert run(copy, "50_pretrain", more | {"output": "checkpoints/toy/next"}) == 3
    assert "holds no checkpoint" in capsys.readouterr().err


def test_an_altered_checkpoint_is_refused(copy, capsys):
    path = copy.path(MORE["continue_from"]) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert run(copy, "50_pretrain", MORE) == 3
    assert "continue_from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"seed": 1}, '"seed"'),
        ({"model": "wide"}, '"model"'),
        ({"global_batch_tokens": 512}, '"global_batch_tokens"'),
        ({"optimizer": {"kind": "velvet", "learning_rate": 0.01}}, '"optimizer.kind"'),
        ({"inputs": SHORT["inputs"] | {"data": [{"path": "data/toy/packed", "weight": 2.0}]}}, '"inputs"'),
        ({"continue_from": "data/toy/packed"}, "40_pack_dataset, not of 50_pretrain"),
    ],
)
def test_what_must_not_differ_is_named(copy, capsys, change, field):
    shape = json.loads(copy.path("config/architectures/toy.json").read_text())
    copy.path("config/architectures/wide.json").write_text(json.dumps(shape | {"ffn_size": 128}))
    assert run(copy, "50_pretrain", MORE | change) == 2
    assert field in capsys.readouterr().err


def test_other_data_and_another_tokenizer_are_refused(copy, capsys):
    other = {"output": "data/toy/other", "inputs": {"tokenizer": "data/toy/tokenizer"}, "repeats": 3}
    assert run(copy, "40_pack_dataset", other) == 0
    inputs = SHORT["inputs"] | {"data": [{"path": "data/toy/other"}]}
    assert run(copy, "50_pretrain", MORE | {"inputs": inputs}) == 3
    assert "step_00000010 read data.0" in capsys.readouterr().err
    assert run(copy, "30_train_tokenizer", {"output": "data/toy/tokens", "seed": 1}) == 0
    inputs = SHORT["inputs"] | {"tokenizer": "data/toy/tokens"}
    assert run(copy, "50_pretrain", MORE | {"inputs": inputs}) == 3
    assert "tokenizer" in capsys.readouterr().err


def test_a_changed_horizon_is_no_resume(copy, capsys):
    with dying_at(5):
        assert run(copy, "50_pretrain", LONG) == 4
    longer = LONG | {"budget": {"unit": "steps", "value": 50}}
    assert run(copy, "50_pretrain", longer) == 3
    assert "config.budget.value: 40.0 -> 50.0" in capsys.readouterr().err
