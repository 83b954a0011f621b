"""Random state, precision, trackers, progress, cards."""

import json
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from utils.pipeline.errors import ConfigError
from utils.training.card import model_card
from utils.training.precision import FP32, Precision, resolve_precision, resolve_threads, usable_cores
from utils.training.progress import _span
from utils.training.rng import capture_rng, restore_rng, seed_everything
from utils.training.trackers import Trackers

CPU = torch.device("cpu")


def draws():
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1).item()


def test_random_state_survives_a_file(tmp_path):
    seed_everything(3)
    draws()  # leaves half a pair of Gaussians behind in python and in numpy
    save_file(capture_rng(), tmp_path / "rng.safetensors")
    expected = [draws() for _ in range(3)]
    seed_everything(4)
    restore_rng(load_file(tmp_path / "rng.safetensors"))
    assert [draws() for _ in range(3)] == expected


def test_seeding_repeats_everything():
    first = (seed_everything(7), draws())[1]
    assert (seed_everything(7), draws())[1] == first != (seed_everything(8), draws())[1]


def test_auto_precision_follows_the_processor(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for has, name, reason in ((True, "bf16", "AVX512-BF16"), (False, "fp32", "no bf16 instructions")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has)
        assert resolve_precision("auto", CPU) == Precision(name, "cpu", reason)
        assert resolve_precision("fp32", CPU).name == "fp32"


def test_a_launcher_that_contradicts_the_config_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(
        ConfigError, match='"precision" is fp32, but accelerate was launched with mixed precision bf16'
    ):
        resolve_precision("fp32", CPU)
    assert resolve_precision("bf16", CPU).name == "bf16"


def test_bf16_is_a_region_and_fp32_is_none():
    layer, x = torch.nn.Linear(4, 4), torch.ones(1, 4)
    with Precision("bf16", "cpu").autocast():
        assert layer(x).dtype == torch.bfloat16
    with FP32.autocast():
        assert layer(x).dtype == torch.float32


def test_threads_are_shared_among_the_processes_of_a_machine():
    assert resolve_threads("auto", 1) == usable_cores()
    assert resolve_threads("auto", 10_000) == 1 and resolve_threads(3, 2) == 3


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path):
    first = Trackers(tmp_path, [], 0, {}, print)
    for step in (1, 2, 3):
        first.write(step, {"loss": float(step)})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')  # a kill tore the last line
    again = Trackers(tmp_path, [], 2, {}, print)
    again.write(3, {"loss": 30.0})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_a_failing_sink_is_switched_off_with_one_line(tmp_path):
    warnings = []
    trackers = Trackers(tmp_path, ["tensorboard"], 0, {}, warnings.append)

    def full(*_):
        raise OSError("disk full")

    trackers.sinks["tensorboard"].write = full
    for step in (1, 2):
        trackers.write(step, {"loss": 1.0})
    assert warnings == ["tensorboard is switched off: disk full"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_model_card_lists_numbers_samples_and_waivers():
    waiver = {"stage": "50_pretrain", "verdict": "stale", "component": "input.data", "reason": "looked at it"}
    card = model_card(
        "Base model demo",
        {"val_loss": 2.34567, "steps": 1000},
        [{"prompt": "Once", "text": " upon"}],
        [waiver],
    )
    assert "| val loss | 2.346 |" in card and "| steps | 1,000 |" in card
    assert "- 'Once' -> ' upon'" in card and "input.data: looked at it" in card


@pytest.mark.parametrize(("seconds", "text"), [(9.4, "9 s"), (69, "1 m 09 s"), (3600, "60 m 00 s")])
def test_spans(seconds, text):
    assert _span(seconds) == text
