"""An unfinished stage 50 is continued by nothing but the same config, data, tokenizer and model."""

import json
import shutil

import pytest

from tests.dying import dying_at
from tests.scripts.test_50_pretrain import CONFIG, build_inputs, manifest, run
from utils.pipeline.workspace import Workspace

SHORT = CONFIG | {
    "budget": {"unit": "steps", "value": 8},
    "eval_every_steps": 4,
    "save_every_steps": 2,
    "micro_batch_rows": 8,
    "sample_tokens": 2,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    workspace = build_inputs(tmp_path_factory.mktemp("whole"))
    assert run(workspace, "50_pretrain", SHORT) == 0
    return workspace


@pytest.fixture(scope="module")
def died(whole, tmp_path_factory):
    """The same, dead after step 5 with a checkpoint of step 4."""
    root = tmp_path_factory.mktemp("died") / "workspace"
    shutil.copytree(whole.root, root, ignore=shutil.ignore_patterns("checkpoints"))
    workspace = Workspace(root, whole.stages)
    with dying_at(5):
        assert run(workspace, "50_pretrain", SHORT) == 4
    return workspace


@pytest.fixture
def unfinished(died, tmp_path):
    shutil.copytree(died.root, tmp_path / "workspace")
    return Workspace(tmp_path / "workspace", died.stages)


def learning_rate(workspace):
    return SHORT | {"optimizer": {"learning_rate": 0.02}}


def data(workspace):
    inputs = {"tokenizer": "data/toy/tokenizer"}
    document = {"output": "data/toy/packed", "inputs": inputs, "repeats": 5}
    assert run(workspace, "40_pack_dataset", document) == 0
    return SHORT


def tokenizer(workspace):
    assert run(workspace, "30_train_tokenizer", {"output": "data/toy/tokenizer", "seed": 1}) == 0
    inputs = {"tokenizer": "data/toy/tokenizer"}
    assert run(workspace, "40_pack_dataset", {"output": "data/toy/packed", "inputs": inputs}) == 0
    return SHORT


def model(workspace):
    path = workspace.path("config/architectures/toy.json")
    shape = json.loads(path.read_text())
    path.write_text(json.dumps(shape | {"rope_theta": 20000.0}))
    return SHORT


@pytest.mark.parametrize("resume", ["auto", "checkpoints/toy/base.partial/checkpoints/step_00000004"])
@pytest.mark.parametrize(
    ("change", "field"),
    [
        (learning_rate, "config.optimizer.learning_rate: 0.01 -> 0.02"),
        (data, "(input.data: "),
        (tokenizer, "input.tokenizer"),
        (model, "config.model"),
    ],
)
def test_a_changed_field_is_refused_by_name_and_nothing_is_touched(unfinished, capsys, change, field, resume):
    document = change(unfinished)
    folder = unfinished.path("checkpoints/toy/base.partial/checkpoints")
    before = sorted(path.name for path in folder.iterdir())
    named = resume if resume == "auto" else str(unfinished.path(resume))
    capsys.readouterr()
    assert run(unfinished, "50_pretrain", document, "--resume", named) == 3
    message = capsys.readouterr().err
    assert field in message and "--resume never" in message
    assert sorted(path.name for path in folder.iterdir()) == before


def test_changed_runtime_fields_continue_to_the_same_bytes(unfinished, whole, capsys):
    runtime = {"save_every_steps": 1, "save_every_minutes": 1.0, "keep_last": 1, "keep_best": False}
    runtime |= {"log_every_steps": 1, "trackers": ["tensorboard"], "preempt_deadline_seconds": 5.0}
    assert run(unfinished, "50_pretrain", SHORT | runtime) == 0
    assert "from step_00000004" in capsys.readouterr().out
    digests = [manifest(each.path("checkpoints/toy/base"))["output_digest"] for each in (unfinished, whole)]
    assert digests[0] == digests[1]
