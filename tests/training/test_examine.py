"""How a run of stage 50 is examined: what it optimises, which step is its best, how an examination ends."""

import os
import signal
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from transformers import modeling_flash_attention_utils as flash

from tests.scripts.test_50_pretrain import CONFIG, build_inputs, manifest, run
from tests.training.test_attention import flash_arguments
from tests.training.test_selftest import ShiftedAgain
from tests.training.toy_stage import CountingRows, toy_model
from utils.training import examine
from utils.training import loss as loss_module
from utils.training.examine import Examiner

SHORT = CONFIG | {"budget": {"unit": "steps", "value": 12}, "eval_every_steps": 6, "save_every_steps": 5}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    torch.set_num_threads(1)
    return build_inputs(tmp_path_factory.mktemp("examined"))


@pytest.fixture(scope="module")
def undisturbed(workspace):
    assert run(workspace, "50_pretrain", SHORT | {"output": "checkpoints/toy/undisturbed"}) == 0
    return workspace.path("checkpoints/toy/undisturbed")


def test_an_objective_that_shifts_once_more_is_refused_before_the_first_step(workspace, capsys, monkeypatch):
    monkeypatch.setattr(loss_module, "NextTokenLoss", ShiftedAgain)
    assert run(workspace, "50_pretrain", SHORT | {"output": "checkpoints/toy/shifted"}) == 4
    assert "but predicting the next token costs" in capsys.readouterr().err
    assert not list(workspace.path("checkpoints/toy/shifted.partial").glob("checkpoints/step_*"))


def test_a_continuation_that_never_beats_its_start_publishes_its_best_step(workspace, undisturbed, capsys):
    worse = {"continue_from": "checkpoints/toy/undisturbed", "optimizer": {"learning_rate": 0.5}}
    worse |= {"output": "checkpoints/toy/worse", "publish": "best", "schedule": {"kind": "constant"}}
    worse |= {"eval_every_steps": 4, "budget": {"unit": "steps", "value": 8}}
    assert run(workspace, "50_pretrain", SHORT | worse) == 0, capsys.readouterr().err
    metrics = manifest(workspace.path("checkpoints/toy/worse"))["metrics"]
    assert metrics["best_step"] in (4, 8)
    assert metrics["initial_val_loss"] < metrics["val_loss"] == metrics["best_val_loss"]


@pytest.mark.parametrize("moment", [1, 2, 3], ids=["step 0", "step 6", "the last step"])
def test_a_signal_while_samples_are_written_leaves_the_evaluation_to_the_next_process(
    workspace, undisturbed, monkeypatch, moment
):
    written, calls = examine.continuations, []

    def signalled(*given, **options):
        calls.append(options["temperature"])
        if len(calls) == 2 * moment:  # the drawn ones of that evaluation
            os.kill(os.getpid(), signal.SIGTERM)
            assert options["stopping"]()
        return written(*given, **options)

    config = SHORT | {"output": f"checkpoints/toy/stopped{moment}"}
    with monkeypatch.context() as patch:
        patch.setattr(examine, "continuations", signalled)
        assert run(workspace, "50_pretrain", config) == 75
    assert run(workspace, "50_pretrain", config) == 0
    folder = workspace.path(config["output"])
    for name in ("history.jsonl", "samples.jsonl", "model.safetensors"):
        assert (folder / name).read_bytes() == (undisturbed / name).read_bytes()


def test_the_offset_probe_runs_beside_flash_attention_which_takes_no_fp32(monkeypatch):
    dtypes = []

    def strict(q, *given, **options):
        dtypes.append(q.dtype)
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")

    functions = ((None, strict, None, None, None), (flash_arguments, None))
    monkeypatch.setattr(flash, "lazy_import_flash_attention", lambda *_, **__: functions)
    monkeypatch.setattr(flash, "fa_peft_integration_check", lambda q, k, v, _: (q, k, v))
    model, said = toy_model().eval(), []
    model.config._attn_implementation = "flash_attention_2"
    stage = SimpleNamespace(log=lambda *words: said.append(words))
    trainer = SimpleNamespace(model=model, whole_model=nullcontext, stage=stage)
    batches = [CountingRows().rows(range(4))]
    Examiner._probe_offset(SimpleNamespace(_trainer=trainer, _batches=batches, _probed=False))
    assert not dtypes and said[0][0] == "offset probe"
    with pytest.raises(RuntimeError, match="FlashAttention only support"):
        examine.check_offset(model, batches[0])
