"""Stage 50 on two processes that share the weights out: its models are made from the meta device."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.scripts import sharded_50
from tests.scripts.test_50_pretrain import CONFIG, build_inputs, run, workspace_of
from tests.training.ranks import SHARDED, run_ranks
from utils.pipeline.workspace import Workspace

DENSE = {"kind": "dense", "rank": 4}
SHAPES = {"toy": {}, "frozen": {"family": "vesper", "adapter": DENSE}}
RUN = CONFIG | {
    "budget": {"unit": "steps", "value": 8},
    "micro_batch_rows": 4,
    "eval_every_steps": 4,
    "save_every_steps": 4,
    "keep_last": 3,
}
BASE, STEP = "checkpoints/toy/base", "checkpoints/step_00000004"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Workspace:
    torch.set_num_threads(1)
    workspace = build_inputs(tmp_path_factory.mktemp("sharded"))
    folder = workspace.path("config/architectures")
    toy = json.loads((folder / "toy.json").read_text())
    toy = {name: value for name, value in toy.items() if value is not None}
    (folder / "frozen.json").write_text(json.dumps(toy | SHAPES["frozen"]))
    return workspace


def copied(prepared: Workspace, folder) -> Workspace:
    shutil.copytree(prepared.root, folder)
    return workspace_of(folder)


def run_sharded(workspace: Workspace, document: dict, *arguments: str) -> str:
    workspace.path("toy.json").write_text(json.dumps(document))
    return run_ranks(workspace.root, *arguments, program=sharded_50.__file__, **SHARDED)


def assert_same(workspace: Workspace, other: Workspace, file: str, tolerance: float) -> None:
    ours, theirs = (load_file(each.path(f"{BASE}/{file}")) for each in (workspace, other))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=tolerance, atol=tolerance)


def losses(workspace: Workspace) -> list[float]:
    rows = map(json.loads, workspace.path(f"{BASE}/history.jsonl").read_text().splitlines())
    return [row.get("val_loss", row.get("loss")) for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_it_starts_from_the_weights_of_one_process_and_its_checkpoints_fit_both(prepared, tmp_path, name):
    """A checkpoint of either kind is resumed by the other, frozen weights (by their digest) included."""
    document = RUN | {"model": name}
    one, two = copied(prepared, tmp_path / "one"), copied(prepared, tmp_path / "two")
    assert run(one, "50_pretrain", document) == 0
    assert "2 sharded processes" in run_sharded(two, document)
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert_same(two, one, "model.safetensors", 1e-5)

    for workspace, label in ((one, "one"), (two, "two")):
        shutil.copytree(workspace.path(f"{BASE}/{STEP}"), tmp_path / f"halfway_{label}")
        shutil.rmtree(workspace.path(BASE))
    assert run(one, "50_pretrain", document, "--resume", str(tmp_path / "halfway_two")) == 0
    said = run_sharded(two, document, "--resume", str(tmp_path / "halfway_one"))
    assert "resuming" in said and "self-test" not in said
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert_same(two, one, "model.safetensors", 1e-5)


@pytest.mark.slow
def test_it_continues_the_run_of_one_process(prepared, tmp_path):
    one, two = copied(prepared, tmp_path / "one"), copied(prepared, tmp_path / "two")
    first = RUN | {"output": "checkpoints/toy/first", "schedule": {"kind": "constant"}}
    more = RUN | {"continue_from": f"checkpoints/toy/first/{STEP}", "schedule": {"kind": "constant"}}
    for workspace in (one, two):
        assert run(workspace, "50_pretrain", first) == 0
    assert run(one, "50_pretrain", more) == 0
    run_sharded(two, more)
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert_same(two, one, "model.safetensors", 1e-5)
