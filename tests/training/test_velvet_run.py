"""Velvet inside the loop: signals of the whole global batch, logs, skips, checkpoints."""

import json
import math
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from kernels.resolution import resolve_kernel
from tests.training.test_checkpoint import SETTINGS, artifact_files, output_digest, process, stopping_main
from tests.training.test_loop import Poisoned, inside, steps, trainer_with, weights
from tests.training.test_processes import launch
from tests.training.toy_stage import CountingRows, run, toy_model, write_config
from utils.config.pretrain import PretrainConfig
from utils.pipeline.errors import ConfigError
from utils.training.loss import HeadOptions, NextTokenLoss, next_token_targets
from utils.training.machine import Machine, store_parameters
from utils.training.precision import Precision, store_in_bf16

VELVET = {"optimizer": {"kind": "velvet", "perplexity": {"baseline": 10.0}}}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    write_config(root, **SETTINGS, **VELVET)
    assert run(root) == 0
    return root


@pytest.mark.parametrize("at_step", [1, 5, 9])
@pytest.mark.parametrize(("then", "code"), [("stop", 75), ("die", 4)])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(
    tmp_path, uninterrupted, at_step, then, code
):
    write_config(tmp_path, **SETTINGS, **VELVET)
    assert run(tmp_path, entry=stopping_main(at_step, then)) == code
    assert run(tmp_path) == 0
    assert artifact_files(tmp_path) == artifact_files(uninterrupted)
    assert output_digest(tmp_path) == output_digest(uninterrupted)


@pytest.mark.slow
def test_a_run_killed_twice_continues_to_the_same_bytes(tmp_path):
    settings = SETTINGS | {"steps": 30} | VELVET
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for root in (whole, killed):
        root.mkdir()
        write_config(root, **settings)
    assert run(whole) == 0
    folder = killed / "checkpoints" / "toy.partial" / "checkpoints"
    for reached in ("step_0000000*", "step_0000001*"):
        child = process(killed)
        deadline = time.monotonic() + 60
        while not list(folder.glob(reached)) and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        child.communicate()
    if child.returncode != 0:  # it may have been faster than the signal
        assert run(killed) == 0
    assert artifact_files(killed) == artifact_files(whole)


def test_the_checkpoint_holds_moments_and_scalars_by_name(tmp_path):
    write_config(tmp_path, **SETTINGS, **VELVET)
    assert run(tmp_path, entry=stopping_main(7, "die")) == 4
    folder = tmp_path / "checkpoints/toy.partial/checkpoints/step_00000006"
    tensors = load_file(folder / "optimizer.safetensors")
    assert {"run", "config", "m/model.norm.weight", "v/model.norm.weight"} <= tensors.keys()
    assert tensors["run"].dtype == torch.float64 and tensors["run"][0] == 6


@pytest.mark.parametrize("micro_rows", [1, 2])
def test_any_split_into_micro_batches_gives_the_same_signals_and_steps(tmp_path, micro_rows):
    """
    O10: rows have unequal numbers of targets, so a mean of means would differ. In fp64, because an update
    divides by the root of the second moment, which in fp32 makes much of a last bit where that is small.
    """
    roots, found = [tmp_path / "whole", tmp_path / "split"], []

    def main(config, stage):
        loss = NextTokenLoss(HeadOptions(with_entropy=True))
        trainer = trainer_with(config, stage, loss, toy_model().double())
        trainer.resume()
        for _ in trainer:
            pass
        found.append({name: each.detach() for name, each in trainer.model.named_parameters()})
        return trainer.finish()

    for root, rows in zip(roots, (4, micro_rows), strict=True):
        root.mkdir()
        write_config(root, steps=4, micro_batch_rows=rows, **VELVET)
        assert run(root, entry=main) == 0
    for one, other in zip(*map(steps, roots), strict=True):
        for name in ("loss", "eta", "s", "b", "entropy"):
            assert one[name] == pytest.approx(other[name], rel=1e-6), name
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-6, atol=1e-12)


def test_history_has_the_controls_and_the_entropy_of_the_step(tmp_path):
    write_config(tmp_path, steps=3, **VELVET)
    assert run(tmp_path) == 0
    first = steps(tmp_path)[0]
    assert set(first) == {
        "step", "loss", "lr", "grad_norm", "tokens", "skipped", "eta", "s", "b", "entropy"
    }  # fmt: skip
    inputs, targets, position = next_token_targets(CountingRows().rows(range(4)))
    logits = toy_model()(input_ids=inputs, position_ids=position, use_cache=False).logits[targets != -100]
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean() / math.log(32)
    assert first["entropy"] == pytest.approx(float(entropy.detach()), rel=1e-6)
    assert (first["s"], first["b"], first["eta"]) == (1.0, 0.9, first["lr"])  # the first step warms up
    second = steps(tmp_path)[1]
    assert second["s"] == 1.3 and second["eta"] == pytest.approx(1.3 * second["lr"])
    log = (tmp_path / "checkpoints/toy/log/metrics.jsonl").read_text().splitlines()
    row = next(row for row in map(json.loads, log) if row["step"] == 2 and "loss" in row)
    assert row["perplexity"] == pytest.approx(math.exp(row["loss"])) and row["clipped"] is (
        row["grad_norm"] > 1
    )


def test_adamw_has_no_controls_in_its_history_and_computes_no_entropy(tmp_path):
    write_config(tmp_path, steps=2)
    assert run(tmp_path) == 0
    assert set(steps(tmp_path)[0]) == {"step", "loss", "lr", "grad_norm", "tokens", "skipped"}


def test_a_step_that_is_not_finite_keeps_every_state_and_is_written_down(tmp_path):
    write_config(tmp_path, steps=4, **VELVET)
    seen = []

    def main(config, stage):
        loss = Poisoned({2})
        loss.head = HeadOptions(with_entropy=True)
        trainer = trainer_with(config, stage, loss)
        trainer.resume()
        for _ in trainer:
            state = dict(trainer.optimizer.state_dict())
            run_state = state.pop("run").clone()
            kept = [each.detach().clone() for each in [*trainer.model.parameters(), *state.values()]]
            seen.append((run_state, kept))
        return trainer.finish()

    assert run(tmp_path, entry=main) == 0
    assert all(torch.equal(a, b) for a, b in zip(seen[0][1], seen[1][1], strict=True))
    assert torch.equal(seen[0][0][:-1], seen[1][0][:-1]) and seen[1][0][-1] == 1
    assert not torch.equal(seen[1][0], seen[2][0])
    rows = steps(tmp_path)
    assert [row["skipped"] for row in rows] == [False, True, False, False]
    written = (tmp_path / "checkpoints/toy/log/skipped.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == [
        {
            "step": 2,
            "rows": [[0, 4], [0, 5], [0, 6], [0, 7]],
            "cursor": {"rows_drawn": 4, "seed": 0},
            "losses": [rows[0]["loss"]],
        }
    ]


@pytest.mark.slow
def test_two_processes_follow_the_signals_of_both(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for root in (one, two):
        root.mkdir()
        write_config(root, steps=6, micro_batch_rows="auto", **VELVET)
    assert run(one) == 0
    result = launch(two, 2)
    assert result.returncode == 0, result.stderr
    for ours, theirs in zip(steps(one), steps(two), strict=True):
        for name in ("loss", "eta", "s", "b", "entropy", "grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5), name
    for name, tensor in weights(one).items():
        torch.testing.assert_close(weights(two)[name], tensor, rtol=1e-5, atol=1e-6)


def test_asking_for_triton_without_a_gpu_ends_the_stage(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    resolve_kernel.cache_clear()
    write_config(tmp_path, steps=2, kernels="triton")
    if torch.cuda.is_available():
        pytest.skip("this machine can run Triton")
    assert run(tmp_path) == 4
    message = capsys.readouterr().err
    assert 'kernel linear_cross_entropy: "triton" cannot run: Triton compiles for CUDA' in message


def test_the_manifest_says_which_kernels_ran_and_why(tmp_path):
    write_config(tmp_path, steps=2, **VELVET)
    assert run(tmp_path) == 0
    manifest = json.loads((tmp_path / "checkpoints/toy/manifest.json").read_text())
    asked = {"asked": "auto", "resolved": "torch", "reason": "cpu"}
    assert manifest["run"]["rates"]["kernels"] == {"linear_cross_entropy": asked, "velvet_update": asked}


def test_a_run_with_bf16_parameters_resumes_with_its_masters(tmp_path):
    def body(trainer, stage):
        trainer.resume()
        for _ in trainer:
            trainer.save_if_due()
        return trainer.optimizer.state_dict(), trainer.records["history"][-1]["loss"]

    def build(config, stage):
        from tests.training.toy_stage import toy_trainer

        plain = toy_trainer(config, stage)
        store_in_bf16(plain.model)
        from utils.optim.groups import build_optimizer

        optimizer = build_optimizer(plain.model, config.optimizer, 1e-2)
        loss = NextTokenLoss(HeadOptions(with_entropy=True))
        return type(plain)(plain.model, plain.rows, optimizer, plain.schedule, config, stage, loss)

    write_config(tmp_path, steps=30, precision="bf16", save_every_steps=10, **VELVET)
    found = {}

    def main(config, stage):
        trainer = build(config, stage)
        found["state"], found["loss"] = body(trainer, stage)
        found["weight"] = trainer.model.lm_head.weight.detach().clone()
        return {}

    assert run(tmp_path, entry=main) == 0
    master = found["state"]["master/model.embed_tokens.weight"]
    assert master.dtype == torch.float32 and found["weight"].dtype == torch.bfloat16
    assert torch.equal(found["weight"], master.bfloat16())
    folder = tmp_path / "checkpoints/toy/checkpoints/step_00000030"
    assert load_file(folder / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16
    assert found["loss"] < 2.5


def test_bf16_parameters_are_refused_where_they_cannot_be(monkeypatch):
    inputs = {"tokenizer": "t", "data": [{"path": "d"}]}
    given = {"output": "o", "model": "smoke", "inputs": inputs, "parameter_dtype": "bf16"}
    for more in ({}, {"optimizer": {"kind": "velvet"}, "precision": "fp32"}):
        with pytest.raises(ValueError, match='parameter_dtype "bf16" needs optimizer.kind "velvet"'):
            PretrainConfig.model_validate(given | more)
    PretrainConfig.model_validate(given | {"optimizer": {"kind": "velvet"}})
    machine = Machine(None, Precision("fp32", "cpu"), 1, ())
    monkeypatch.setattr(Machine, "num_ranks", property(lambda self: 1))
    with pytest.raises(ConfigError, match='"parameter_dtype": bf16 needs a precision of bf16'):
        store_parameters(toy_model(), "bf16", machine)


def test_inside_a_run_a_head_without_entropy_stops_rather_than_guess(tmp_path, capsys):
    """A script that forgets to ask the head for what the optimizer follows must not train on zeros."""

    def body(trainer, stage):
        forgetful = type(trainer)(
            trainer.model, trainer.rows, trainer.optimizer, trainer.schedule, trainer.config, stage
        )
        for _ in forgetful:
            pass

    assert inside(tmp_path, body, **VELVET)[0] == 4
    assert "5 steps in a row" in capsys.readouterr().err
