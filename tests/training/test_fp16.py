"""fp16 with a scaled loss: it learns, finds its scale, and resumes with it."""

import json

import pytest
import torch

from tests.training.test_checkpoint import SETTINGS, artifact_files, stopping_main
from tests.training.test_loop import Poisoned, steps, trainer_with
from tests.training.toy_stage import run, write_config
from utils.pipeline.errors import ConfigError
from utils.training.machine import Machine
from utils.training.precision import Precision, resolve_precision

FP16 = {"precision": "fp16"}
VELVET = {"optimizer": {"kind": "velvet", "perplexity": {"baseline": 10.0}}}


def test_fp16_is_a_region_with_a_scaler_and_others_have_none():
    layer, x = torch.nn.Linear(4, 4), torch.ones(1, 4)
    with Precision("fp16", "cpu").autocast():
        assert layer(x).dtype == torch.float16
    assert Precision("fp16", "cpu").scaler().is_enabled() and str(Precision("fp16", "cpu")) == "fp16 autocast"
    assert not any(Precision(name, "cpu").scaler().is_enabled() for name in ("fp32", "bf16"))


@pytest.mark.parametrize(("capability", "name"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_auto_is_fp16_on_gpus_without_bf16(monkeypatch, capability, name):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    found = resolve_precision("auto", torch.device("cuda"))
    assert found == Precision(name, "cuda", f"CUDA capability {capability[0]}.{capability[1]}")


def test_a_launcher_that_asks_for_another_precision_is_refused_by_both_names(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ConfigError, match='"precision" is bf16, .* launched with mixed precision fp16'):
        resolve_precision("bf16", torch.device("cpu"))
    assert resolve_precision("fp16", torch.device("cpu")).name == "fp16"


def test_sharded_weights_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Machine, "sharded", property(lambda self: True))
    write_config(tmp_path, **FP16)
    assert run(tmp_path) == 2
    assert '"precision": fp16 is not for sharded weights' in capsys.readouterr().err


@pytest.mark.parametrize("optimizer", [{}, VELVET], ids=["adamw", "velvet"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_16_bits_agree_with_fp32(tmp_path, precision, optimizer):
    for name in ("fp32", precision):
        (tmp_path / name).mkdir()
        write_config(tmp_path / name, steps=20, precision=name, **optimizer)
        assert run(tmp_path / name) == 0
    wide, narrow = (steps(tmp_path / name) for name in ("fp32", precision))
    assert narrow[0]["loss"] != wide[0]["loss"]
    assert narrow[-1]["loss"] == pytest.approx(wide[-1]["loss"], rel=0.02)
    assert narrow[0]["grad_norm"] == pytest.approx(wide[0]["grad_norm"], rel=0.02)  # unscaled again
    if precision == "fp16":
        assert narrow[0]["loss_scale"] == 65536 and not narrow[0]["overflow"]
    for row in (wide[0], *([narrow[0]] if precision == "bf16" else [])):
        assert "loss_scale" not in row and "overflow" not in row


def too_large_scale(self):
    """What a run meets that starts 2^24 above what fp16 holds: one step back is enough."""
    return torch.amp.GradScaler(
        "cpu", init_scale=2.0**40, backoff_factor=2.0**-30, growth_interval=4, enabled=self.name == "fp16"
    )


@pytest.mark.parametrize("optimizer", [{}, VELVET], ids=["adamw", "velvet"])
def test_an_overflow_skips_the_step_and_is_counted_apart(tmp_path, monkeypatch, optimizer):
    monkeypatch.setattr(Precision, "scaler", too_large_scale)
    write_config(tmp_path, steps=8, max_consecutive_skips=1, **FP16, **optimizer)
    assert run(tmp_path) == 0
    first, second, *_ = rows = steps(tmp_path)
    assert first["skipped"] and first["overflow"] and first["grad_norm"] is None
    assert not second["skipped"] and second["grad_norm"] > 0
    assert [row["loss_scale"] for row in rows] == [2.0**40, *[2.0**10] * 4, *[2.0**11] * 3]
    metrics = json.loads((tmp_path / "checkpoints/toy/manifest.json").read_text())["metrics"]
    assert (metrics["skipped_steps"], metrics["overflowed_steps"]) == (0, 1)
    assert not (tmp_path / "checkpoints/toy/log/skipped.jsonl").exists()


def test_a_loss_that_is_not_finite_is_no_overflow(tmp_path, capsys):
    write_config(tmp_path, steps=8, max_consecutive_skips=2, **FP16)

    def main(config, stage):
        for _ in trainer_with(config, stage, Poisoned({3, 4})):
            pass
        return {}

    assert run(tmp_path, entry=main) == 4
    assert (
        "2 steps in a row had a gradient that is not finite, the last one step 4" in capsys.readouterr().err
    )


def test_a_resumed_run_has_the_scale_of_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(Precision, "scaler", too_large_scale)
    roots = [tmp_path / "whole", tmp_path / "stopped"]
    for root in roots:
        root.mkdir()
        write_config(root, **SETTINGS, **FP16)
    assert run(roots[1], entry=stopping_main(5)) == 75
    folder = roots[1] / "checkpoints/toy.partial/checkpoints/step_00000005"
    state = json.loads((folder / "trainer.json").read_text())
    assert state["scaler"]["scale"] == 2.0**11 and state["overflows"] == 1
    assert [run(root) for root in roots] == [0, 0]
    assert artifact_files(roots[0]) == artifact_files(roots[1])
