import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.training import toy_stage
from tests.training.toy_stage import main, run, toy_trainer, workspace_of, write_config
from utils.pipeline import seal
from utils.pipeline.errors import StageError
from utils.pipeline.verify import Verifier
from utils.training import checkpoint
from utils.training.checkpoint import read_snapshot
from utils.training.state import frozen_digest, load_optimizer_tensors, optimizer_tensors

SETTINGS = {"steps": 10, "dropout": 0.3, "save_every_steps": 3, "eval_every_steps": 4}


def artifact_files(root: Path) -> dict[str, bytes]:
    folder = root / "checkpoints" / "toy"
    return {name: (folder / name).read_bytes() for name in ("weights.pt", "history.jsonl", "samples.jsonl")}


def output_digest(root: Path) -> str:
    return json.loads((root / "checkpoints/toy/manifest.json").read_text())["output_digest"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    write_config(root, **SETTINGS)
    assert run(root) == 0
    return root


def stopping_main(at_step, then="stop"):
    """The toy stage, asked to stop after a step: by a request, or by a failure that saves nothing."""

    def entry(config, stage):
        trainer = toy_trainer(config, stage)
        val = [toy_stage.CountingRows(seed=1).rows(range(8))]
        if not trainer.resume():
            trainer.observe(trainer.validate(val))
        for step, _ in trainer:
            if trainer.evaluates(step):
                trainer.observe(trainer.validate(val))
                trainer.record("samples", {"text": f"after {step}"})
            trainer.save_if_due()
            if step == at_step and then == "stop":
                stage.stop_request.exit_code = 75
            if step == at_step and then == "die":
                raise StageError("killed")
        return trainer.finish()

    return entry


@pytest.mark.parametrize("at_step", [1, 3, 5, 9])
@pytest.mark.parametrize(("then", "code"), [("stop", 75), ("die", 4)])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(
    tmp_path, uninterrupted, at_step, then, code
):
    write_config(tmp_path, **SETTINGS)
    assert run(tmp_path, entry=stopping_main(at_step, then)) == code
    assert not (tmp_path / "checkpoints" / "toy").exists()
    assert run(tmp_path) == 0
    assert artifact_files(tmp_path) == artifact_files(uninterrupted)
    assert output_digest(tmp_path) == output_digest(uninterrupted)
    steps = [
        json.loads(line)["step"]
        for line in (tmp_path / "checkpoints/toy/log/metrics.jsonl").read_text().splitlines()
    ]
    assert steps == sorted(steps) and set(steps) == set(range(11))


def test_stopped_inside_a_step_discards_the_open_accumulation(tmp_path, uninterrupted):
    write_config(tmp_path, **SETTINGS, micro_batch_rows=4)

    def entry(config, stage):
        trainer = toy_trainer(config.model_copy(update={"micro_batch_rows": 1}), stage)
        trainer.resume()
        backward = trainer._gradients.backward

        def stop_in_the_second_step(batch, scale):
            if trainer.step == 1:
                stage.stop_request.exit_code = 130
            return backward(batch, scale)

        trainer._gradients.backward = stop_in_the_second_step
        trainer.observe(trainer.validate([toy_stage.CountingRows(seed=1).rows(range(8))]))
        for _ in trainer:
            pass

    assert run(tmp_path, entry=entry) == 130
    folder = tmp_path / "checkpoints" / "toy.partial" / "checkpoints" / "step_00000001"
    snapshot = read_snapshot(folder)
    assert snapshot.step == 1 and snapshot.cursor["rows_drawn"] == 4 and len(snapshot.records["history"]) == 2


def test_asked_to_stop_before_the_first_step_saves_step_0(tmp_path, uninterrupted):
    write_config(tmp_path, **SETTINGS)

    def entry(config, stage):
        stage.stop_request.exit_code = 75
        return main(config, stage)

    assert run(tmp_path, entry=entry) == 75
    assert (tmp_path / "checkpoints/toy.partial/checkpoints/step_00000000/manifest.json").exists()
    assert run(tmp_path) == 0
    assert artifact_files(tmp_path) == artifact_files(uninterrupted)


def process(root: Path) -> subprocess.Popen:
    command = [sys.executable, toy_stage.__file__, str(root), "--config", str(root / "toy.json")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "codes"), [(signal.SIGKILL, {-9}), (signal.SIGTERM, {75})])
def test_killed_process_continues_to_the_same_bytes(tmp_path, number, codes):
    settings = SETTINGS | {"steps": 30}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for root in (whole, killed):
        root.mkdir()
        write_config(root, **settings)
    assert run(whole) == 0
    child = process(killed)
    folder = killed / "checkpoints" / "toy.partial" / "checkpoints"
    deadline = time.monotonic() + 60
    while not list(folder.glob("step_0000001*")) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    child.send_signal(number)
    child.communicate()
    if child.returncode != 0:  # it may have been faster than the signal
        assert child.returncode in codes
        assert run(killed) == 0
    assert artifact_files(killed) == artifact_files(whole)


def interrupted(root: Path, **values) -> Path:
    """A partial build with checkpoints of steps 3 and 6; returns the newest."""
    write_config(root, **(SETTINGS | {"keep_best": False} | values))
    assert run(root, entry=stopping_main(7, "die")) == 4
    return root / "checkpoints" / "toy.partial" / "checkpoints" / "step_00000006"


def test_the_checkpoint_chain_names_parents_steps_and_cursor(tmp_path):
    newest = interrupted(tmp_path)
    manifests = [
        json.loads((folder / "manifest.json").read_text()) for folder in sorted(newest.parent.glob("step_*"))
    ]
    assert [each["checkpoint"]["step"] for each in manifests] == [3, 6]
    assert manifests[1]["checkpoint"]["parent"] == manifests[0]["output_digest"]
    assert manifests[1]["checkpoint"]["cursor"]["rows_drawn"] == 24
    assert manifests[0]["checkpoint"]["parent"] == "" and manifests[0]["key"] == manifests[1]["key"]


def test_no_checkpoint_holds_a_pickle(tmp_path):
    names = {path.name for path in interrupted(tmp_path).rglob("*") if path.is_file()}
    assert names == {
        "manifest.json",
        "trainer.json",
        "history.jsonl",
        "samples.jsonl",
        "model.safetensors",
        "optimizer.safetensors",
        "rank_00000.safetensors",
    }


def test_a_checkpoint_cut_short_is_refused_by_name(tmp_path, capsys):
    newest = interrupted(tmp_path)
    path = newest / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    assert run(tmp_path) == 3
    message = capsys.readouterr().err
    assert "step_00000006/model.safetensors" in message and "tampered" in message


def test_a_checkpoint_altered_in_place_is_refused(tmp_path, capsys):
    newest = interrupted(tmp_path)
    path = newest / "optimizer.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert run(tmp_path) == 3
    assert "step_00000006/optimizer.safetensors is tampered" in capsys.readouterr().err


def test_a_changed_learning_rate_is_refused_with_the_field(tmp_path, capsys):
    interrupted(tmp_path, optimizer={"learning_rate": 4e-4})
    write_config(tmp_path, **SETTINGS, optimizer={"learning_rate": 3e-4})
    assert run(tmp_path) == 3
    assert "learning_rate: 0.0004 -> 0.0003" in capsys.readouterr().err


def test_a_checkpoint_of_another_run_is_refused_with_the_field(tmp_path, capsys):
    ours, other = tmp_path / "ours", tmp_path / "other"
    ours.mkdir(), other.mkdir()
    newest, foreign = interrupted(ours), interrupted(other, seed=5)
    shutil.rmtree(newest)
    shutil.copytree(foreign, newest)
    assert run(ours) == 3
    assert "step_00000006 is stale (config.seed: 5 -> 0)" in capsys.readouterr().err


def test_changed_runtime_fields_continue(tmp_path, capsys):
    interrupted(tmp_path)
    write_config(tmp_path, **SETTINGS | {"save_every_steps": 1, "micro_batch_rows": 2})
    assert run(tmp_path) == 0
    assert "from step_00000006" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "edit", "named"),
    [
        ("model.safetensors", lambda t: t.pop("model.norm.weight"), "tensor model.norm.weight is missing"),
        ("model.safetensors", lambda t: t.update(odd=torch.zeros(1)), "tensor odd belongs to no parameter"),
        (
            "model.safetensors",
            lambda t: t.update({"model.norm.weight": torch.ones(3)}),
            "tensor model.norm.weight is (3,)",
        ),
        (
            "optimizer.safetensors",
            lambda t: t.pop("exp_avg/model.norm.weight"),
            "exp_avg/model.norm.weight is missing",
        ),
    ],
)
def test_a_checkpoint_that_verifies_but_does_not_load_never_starts_over(
    tmp_path, capsys, monkeypatch, file, edit, named
):
    newest = interrupted(tmp_path)

    def resealed(folder):
        tensors = load_file(folder / file)
        edit(tensors)
        save_file(tensors, folder / file)
        return read_snapshot(folder)

    monkeypatch.setattr("utils.training.loop.read_snapshot", resealed)
    before = sorted(path.name for path in newest.parent.iterdir())
    assert run(tmp_path) == 4
    message = capsys.readouterr().err
    assert "step_00000006 verifies but cannot be loaded" in message and "will not start over" in message
    assert file in message and named in message
    assert sorted(path.name for path in newest.parent.iterdir()) == before


def test_leftovers_of_a_killed_writer_are_swept_and_never_read(tmp_path, uninterrupted):
    newest = interrupted(tmp_path, keep_best=True)
    half = newest.parent / ".writing-step_00000009"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert run(tmp_path) == 0
    assert not list((tmp_path / "checkpoints/toy/checkpoints").glob(".writing*"))
    assert artifact_files(tmp_path) == artifact_files(uninterrupted)


WRITE_POINTS = {
    "before a file": (checkpoint, "_write_tensors", 4),
    "inside a file": (checkpoint, "_write_tensors", 5),
    "before the random state": (checkpoint, "_write_tensors", 6),
    "before the records": (checkpoint, "write_lines", 3),
    "before the manifest": (seal, "compute_seal", 2),
    "between the manifest and its name": (seal.os, "replace", 2),
    "before the rename": (checkpoint, "_into_place", 2),
    "before best.json": (checkpoint.CheckpointStore, "point_to_best", 2),
    "before the old ones go": (checkpoint.CheckpointStore, "_prune", 2),
}


@pytest.mark.parametrize("moment", WRITE_POINTS)
def test_dying_at_any_write_point_leaves_whole_checkpoints_and_a_run_that_continues(
    tmp_path, uninterrupted, monkeypatch, moment
):
    """Each takes away the thread that writes, and leaves on disk what is there at that moment."""
    write_config(tmp_path, **SETTINGS)
    owner, name, last = WRITE_POINTS[moment]
    original, calls = getattr(owner, name), []

    def dying(*arguments, **more):
        if threading.current_thread() is not threading.main_thread():
            calls.append(name)
        if len(calls) >= last:
            if moment == "inside a file":
                original(*arguments)
                arguments[1].write_bytes(arguments[1].read_bytes()[:-100])
            raise StageError("killed")
        return original(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dying)
        assert run(tmp_path) == 4
    partial = tmp_path / "checkpoints/toy.partial/checkpoints"
    named = sorted(partial.glob("step_*"))
    assert named and all(Verifier(workspace_of(tmp_path)).artifact(each)[1].good for each in named)
    assert run(tmp_path) == 0
    assert artifact_files(tmp_path) == artifact_files(uninterrupted)
    assert best_pointer(tmp_path) == best_pointer(uninterrupted)


def best_pointer(root: Path) -> dict:
    """best.json, which must name a checkpoint that is there."""
    folder = root / "checkpoints/toy/checkpoints"
    pointer = json.loads((folder / "best.json").read_text())
    manifest = json.loads((folder / f"step_{pointer['step']:08d}" / "manifest.json").read_text())
    assert pointer.pop("output_digest") == manifest["output_digest"]
    return pointer


def test_a_pointer_that_a_death_left_out_is_written_by_the_next_process(tmp_path, monkeypatch):
    """The best step is not saved again, so nothing else would write it."""
    write_config(tmp_path, **SETTINGS)
    losses = {4: 1.0, 8: 5.0, 10: 6.0}

    def entry(config, stage):
        trainer = toy_trainer(config, stage)
        trainer.resume()
        for step, _ in trainer:
            if trainer.evaluates(step):
                trainer.observe(losses[step])
            trainer.save_if_due()
        return trainer.finish()

    point = checkpoint.CheckpointStore.point_to_best

    def dying(*given):
        if threading.current_thread() is not threading.main_thread():
            raise StageError("killed")
        point(*given)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.CheckpointStore, "point_to_best", dying)
        assert run(tmp_path, entry=entry) == 4
    assert run(tmp_path, entry=entry) == 0
    assert best_pointer(tmp_path) == {"step": 4, "val_loss": 1.0}


def test_a_pointer_to_a_checkpoint_of_another_future_goes(tmp_path):
    folder = interrupted(tmp_path, keep_best=True, keep_last=9).parent
    assert json.loads((folder / "best.json").read_text())["step"] == 4

    def entry(config, stage):
        toy_trainer(config, stage).resume()
        raise StageError("killed")

    assert run(tmp_path, "--resume", str(folder / "step_00000003"), entry=entry) == 4
    assert sorted(path.name for path in folder.iterdir()) == ["step_00000003"]


def test_pruning_keeps_the_newest_and_the_best(tmp_path):
    write_config(tmp_path, **SETTINGS | {"keep_last": 1, "save_every_steps": 1})
    losses = iter([5.0, 1.0, 3.0, 4.0, 6.0])

    def entry(config, stage):
        trainer = toy_trainer(config, stage)
        trainer.resume()
        for step, _ in trainer:
            if step % 2 == 0:
                trainer.observe(next(losses))
            trainer.save_if_due()
        return trainer.finish()

    assert run(tmp_path, entry=entry) == 0
    kept = sorted(path.name for path in (tmp_path / "checkpoints/toy/checkpoints").glob("step_*"))
    assert kept == ["step_00000004", "step_00000010"]


def test_resume_from_a_named_checkpoint_continues_there(tmp_path, capsys, uninterrupted):
    newest = interrupted(tmp_path, keep_best=True)
    older = newest.parent / "step_00000004"
    assert run(tmp_path, "--resume", str(older)) == 0
    assert "from step_00000004" in capsys.readouterr().out
    assert artifact_files(tmp_path) == artifact_files(uninterrupted)


def test_optimizer_state_goes_by_name_and_keeps_its_dtype():
    model = torch.nn.Linear(3, 2)
    one, other = (
        torch.optim.AdamW(order, fused=True)
        for order in ([model.weight, model.bias], [model.bias, model.weight])
    )
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    one.step()
    saved = optimizer_tensors(one, model)
    assert set(saved) == {
        f"{kind}/{name}" for kind in ("step", "exp_avg", "exp_avg_sq") for name in ("weight", "bias")
    }
    saved["exp_avg/weight"] = saved["exp_avg/weight"].double()
    load_optimizer_tensors(other, model, saved)
    assert other.state[model.weight]["exp_avg"].dtype == torch.float64
    assert float(other.state[model.bias]["step"]) == 1


def test_frozen_weights_are_a_digest_not_tensors(tmp_path, capsys):
    def entry(scale, at_step):
        def frozen_main(config, stage):
            trainer = toy_trainer(config, stage)
            model = trainer.model
            for name, parameter in model.named_parameters():
                parameter.requires_grad_("norm" in name)
            with torch.no_grad():
                model.lm_head.weight.mul_(scale)
            optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad])
            trainer = type(trainer)(model, trainer.rows, optimizer, trainer.schedule, config, stage)
            trainer.resume()
            for step, _ in trainer:
                trainer.save_if_due()
                if step == at_step:
                    raise StageError("killed")
            return trainer.finish()

        return frozen_main

    write_config(tmp_path, **SETTINGS)
    assert run(tmp_path, entry=entry(1.0, 3)) == 4
    folder = tmp_path / "checkpoints/toy.partial/checkpoints/step_00000003"
    assert all("norm" in name for name in load_file(folder / "model.safetensors"))
    assert run(tmp_path, entry=entry(2.0, 99)) == 4
    assert "trainer.json: frozen was" in capsys.readouterr().err
    assert run(tmp_path, entry=entry(1.0, 99)) == 0


def test_frozen_digest_sees_every_bit():
    model = torch.nn.Linear(3, 2)
    assert frozen_digest(model) == ""
    model.weight.requires_grad_(False)
    before = frozen_digest(model)
    with torch.no_grad():
        model.weight[0, 0] += 1e-6
    assert frozen_digest(model) != before
