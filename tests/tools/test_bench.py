"""The benchmarks: fair turns, no figures without a GPU, right contestants, two loops that learn alike."""

import os
import re

import pytest
import torch

from tools.bench import ops, training
from tools.bench.loops import Case, StoryRows
from tools.bench.ops_gpu import bench_era, bench_experts, copy_rate, expert_forms
from tools.bench.text import one_document_each, story_rows
from tools.bench.turns import NOT_MEASURED, judge, take_turns, versions

CPU = torch.device("cpu")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no GPU")


def test_contestants_take_turns_and_the_first_round_does_not_count():
    calls = []
    seconds = take_turns({name: lambda name=name: calls.append(name) for name in "ab"}, 1, CPU)
    assert calls == ["a", "b"] * 6 and seconds.keys() == {"a", "b"}


def test_a_hopeless_contestant_is_timed_once():
    calls = []

    def slow():
        calls.append("slow")
        sum(range(400_000))

    seconds = take_turns({"fast": lambda: None, "slow": slow}, 9, CPU, patience=4.0)
    assert len(calls) == 2 and seconds["slow"] > seconds["fast"]


@pytest.mark.parametrize(
    ("value", "bounds", "held"),
    [
        (1.2, {"least": 1.15}, True),
        (1.1, {"least": 1.15}, False),
        (1.0, {"most": 1.05}, True),
        (1.1, {"most": 1.05}, False),
    ],
)
def test_a_figure_is_printed_beside_its_target(value, bounds, held, capsys):
    assert judge("ratio", value, **bounds) is held
    said = capsys.readouterr().out
    assert f"ratio {value:.3g} (target" in said and ("MISSED" in said) is not held


def test_rows_of_stories_overlap_by_the_token_that_is_predicted():
    rows = story_rows(20, 0, 64)
    assert rows.shape[1] == 65 and rows.max() < 256 and (rows[1:, 0] == rows[:-1, -1]).all()
    batch = one_document_each(rows[:3])
    assert (batch.document == 0).all() and (batch.position == range(65)).all()


def test_rows_of_a_benchmark_go_on_after_a_cursor():
    rows, again = (StoryRows(Case("smoke", 512, 4, 32)) for _ in range(2))
    rows.next_step(0, 1, 2)
    again.restore(rows.cursor())
    one, other = (each.next_step(0, 1, 2) for each in (rows, again))
    assert len(one) == 2 and all((a.tokens == b.tokens).all() for a, b in zip(one, other, strict=True))


@without_gpu
def test_claims_about_a_gpu_print_no_figure_without_one(capsys):
    claims = [
        bench_era(CPU, 5),
        bench_experts(CPU, 5),
        training.bench_end_to_end("TB7", training.XLARGE, 0.5),
    ]
    said = capsys.readouterr().out.splitlines()
    assert all(claims) and len(said) == 3
    for line in said:
        assert line.endswith(NOT_MEASURED) and not re.search(r"\d (tokens/s|ms)|MISSED|\d x", line)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="times kernels on a GPU")
@pytest.mark.parametrize("claim", ["update", "head", "era", "experts"])
def test_claims_about_a_gpu_print_ratios_on_one(claim, capsys):
    ops.check(torch.device("cuda"))
    ops.CLAIMS[claim](torch.device("cuda"), 5)
    said = capsys.readouterr().out
    assert "(target" in said and NOT_MEASURED not in said


@without_gpu
def test_every_kernel_is_right_under_the_interpreter(capsys, monkeypatch):
    ops.check(CPU)
    assert capsys.readouterr().out.count("agrees with torch") == 4
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(SystemExit, match="needs TRITON_INTERPRET=1"):
        ops.check(CPU)


def test_grouped_experts_and_their_peer_compute_the_same():
    forms, leaves = expert_forms(CPU, torch.float32, tokens=50, experts=4, top_k=2, width=16, inner=24)
    found = [forms[name](*leaves) for name in ("grouped", "loop")]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-7)
    gradients = [torch.autograd.grad(each.square().sum(), leaves) for each in found]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-8)
    assert forms["dense"](*leaves).shape == found[0].shape


def test_copy_rate_counts_what_is_read_and_written(monkeypatch):
    monkeypatch.setattr("tools.bench.ops_gpu.COPIED_BYTES", 2**20)
    assert 1e8 < copy_rate(CPU, 5) < 1e13


def test_contestants_of_the_head_compute_one_loss_and_its_gradients():
    passes = ops.head_passes(64, 16)
    loss, *gradients = passes.pop(ops.FULL_LOGITS)()
    assert len(passes) >= 2
    for run in passes.values():
        own_loss, *own_gradients = run()
        assert own_loss.item() == pytest.approx(loss.item(), rel=2e-3)
        for own, gradient in zip(own_gradients, gradients, strict=True):
            assert (own - gradient).norm() <= 0.02 * gradient.norm()


def test_contestants_of_the_update_change_every_parameter(monkeypatch):
    updated = ops.updated
    for kind in ("torch", "adamw", "velvet"):
        parameters = updated(CPU)
        before = [parameter.detach().clone() for parameter in parameters]
        monkeypatch.setattr(ops, "updated", lambda device, parameters=parameters: parameters)
        ops.update_pass(kind, CPU)()
        assert not any(torch.equal(old, new) for old, new in zip(before, parameters, strict=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_our_loop_learns_what_transformers_trainer_learns(precision, monkeypatch, capsys):
    monkeypatch.setattr(training, "CASES", {"demo": Case("smoke", 512, 4, 32)})
    monkeypatch.setattr(training, "BLOCK_TOKENS", 2 * 4 * 32)
    training.bench_loop(5, compiled=False, precision=precision)
    said = capsys.readouterr().out
    apart = float(re.search(r"apart ([\d.]+)% on average", said).group(1))
    assert apart <= (0.01 if precision == "fp32" else 0.3)
    assert "ACCELERATE_MIXED_PRECISION" not in os.environ


def test_versions_name_what_is_not_installed(monkeypatch):
    monkeypatch.setattr("tools.bench.turns.PACKAGES", ("no-such-package",))
    assert "no-such-package absent" in versions(CPU)
