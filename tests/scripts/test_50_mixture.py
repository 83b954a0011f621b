"""Stage 50 on two packed datasets: judged apart, counted apart, and not moved by looking at it."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.scripts.test_50_pretrain import CONFIG, build_inputs, manifest, run
from utils.packing.dataset import PackedDataset

DATA = [{"path": "data/toy/packed"}, {"path": "data/toy/small", "weight": 9.0}]
MIXED = CONFIG | {
    "inputs": CONFIG["inputs"] | {"data": DATA},
    "budget": {"unit": "steps", "value": 40},
    "eval_every_steps": 20,
    "save_every_steps": 50,
    "keep_best": False,
}
BLIND = {"output": "checkpoints/toy/blind", "eval_every_steps": 50, "save_every_steps": 7, "prompts": []}


def test_each_dataset_is_judged_and_looking_changes_nothing(tmp_path, capsys):
    torch.set_num_threads(1)
    workspace = build_inputs(tmp_path)
    small = {"output": "data/toy/small", "inputs": {"tokenizer": "data/toy/tokenizer"}, "repeats": 1}
    assert run(workspace, "40_pack_dataset", small) == 0
    assert run(workspace, "50_pretrain", MIXED) == 0
    folder = workspace.path("checkpoints/toy/base")
    metrics = manifest(folder)["metrics"]
    losses = [metrics[f"val_loss_{name}"] for name in ("packed", "small")]
    assert metrics["val_loss"] == pytest.approx(sum(losses) / 2, abs=1e-6)  # one validation split in both
    (notice,) = metrics["overfitting"]
    rows = PackedDataset(workspace.path("data/toy/small"), "train").num_rows
    assert notice.startswith(f"small is read {40 * 8 * 0.9 / rows:.1f} times")

    said = capsys.readouterr().out
    assert "(weight 1, 10.00 % of the rows), small " in said and "(weight 9, 90.00 % of the rows)" in said
    assert metrics["datasets"] == {
        "packed": {"weight": 1.0, "rows_drawn": 32, "share": 0.1},
        "small": {"weight": 9.0, "rows_drawn": 288, "share": 0.9},
    }
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [(row["step"], row.get("temperature", 0)) for row in samples] == [
        (step, temperature) for step in (0, 20, 40) for temperature in (0, 0.8)
    ]

    assert run(workspace, "50_pretrain", MIXED | BLIND) == 0
    models = (workspace.path(f"checkpoints/toy/{name}/model.safetensors") for name in ("base", "blind"))
    ours, theirs = map(load_file, models)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
