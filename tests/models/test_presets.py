import math

import pytest
import torch

from utils.config.pretrain import PretrainConfig
from utils.models.llama import build_llama
from utils.models.presets import (
    auto_batch_tokens,
    auto_learning_rate,
    count_parameters,
    describe_model,
    expected_initial_loss,
    flops_per_token,
    load_architecture,
    plan_training,
    quantizes_to_k,
    readable,
)
from utils.pipeline.errors import ConfigError
from utils.pipeline.workspace import REPOSITORY, Workspace

COUNTS = {  # name: (tied, untied, body), from specs/train.md T3
    "smoke": (1_443_072, 1_574_144, 1_312_000),
    "demo": (4_458_752, 5_507_328, 3_410_176),
    "micro": (5_244_032, 9_438_336, 1_049_728),
    "tiny": (14_683_392, 23_072_000, 6_294_784),
    "small": (41_949_696, 58_726_912, 25_172_480),
    "medium": (67_121_664, 83_898_880, 50_344_448),
    "base": (124_275_456, 149_441_280, 99_109_632),
    "large": (251_695_872, 276_861_696, 226_530_048),
}


def architecture(name, **changes):
    return load_architecture(name, REPOSITORY).model_copy(update=changes)


def built_parameters(shape, vocab_size):
    with torch.device("meta"):
        model = build_llama(shape, vocab_size, {"bos": 1, "eos": 2, "pad": 3})
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("tied", [True, False])
def test_every_preset_has_exactly_the_stated_parameters(name, tied):
    shape = architecture(name, tie_embeddings=tied)
    count = count_parameters(shape, shape.reference_vocab_size)
    assert (
        built_parameters(shape, shape.reference_vocab_size) == count.total == COUNTS[name][0 if tied else 1]
    )
    assert count.body == COUNTS[name][2]


@pytest.mark.parametrize("name", COUNTS)
def test_declared_parameters_are_true(name):
    shape = architecture(name)
    assert built_parameters(shape, shape.reference_vocab_size) == shape.declared_parameters


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 512},
        {"num_layers": 3},
        {"num_heads": 2, "num_kv_heads": 2},
        {"num_kv_heads": 2},
        {"head_dim": 32},
    ]
    + [{"ffn_size": 256}, {"tie_embeddings": False}],
)
def test_each_size_field_changes_the_built_model_as_counted(changes):
    shape = architecture("smoke", **changes)
    assert built_parameters(shape, 512) == count_parameters(shape, 512).total != COUNTS["smoke"][0]


def test_only_micro_has_rows_that_k_quants_cannot_hold():
    assert [name for name in COUNTS if not quantizes_to_k(architecture(name))] == ["micro"]
    assert "K-quants: no" in describe_model("micro", architecture("micro"), 32768, 1024)


def test_flops_and_auto_rules_match_the_table():
    shapes = {name: architecture(name) for name in COUNTS}
    cost = {
        name: flops_per_token(s, s.reference_vocab_size, s.context_length_tokens) / 1e9
        for name, s in shapes.items()
    }
    assert cost["demo"] == pytest.approx(0.030, abs=5e-4) and cost["base"] == pytest.approx(0.859, abs=5e-4)
    assert auto_learning_rate(6_294_784) == pytest.approx(1.06e-3, abs=5e-6)
    assert auto_learning_rate(99_109_632) == pytest.approx(6.7e-4, abs=5e-6)
    assert auto_batch_tokens(23_072_000) == 32_768 and auto_batch_tokens(1_443_072) == 8_192
    assert auto_batch_tokens(10**13) == 2**19


@pytest.mark.parametrize(("name", "loss"), [("tiny", 10.448), ("small", 10.500), ("base", 10.551)])
def test_expected_initial_loss(name, loss):
    assert expected_initial_loss(architecture(name), 32_768) == pytest.approx(loss, abs=1e-3)


def config(**values):
    inputs = {"tokenizer": "t", "data": [{"path": "d"}]}
    return PretrainConfig.model_validate({"output": "o", "model": "demo", "inputs": inputs} | values)


@pytest.mark.parametrize(
    ("unit", "value", "steps"),
    [("tokens", 1_600_000, 196), ("steps", 7, 7), ("epochs", 2, 10), ("tokens_per_parameter", 0.1, 55)],
)
def test_budget_units(unit, value, steps):
    plan = plan_training(
        config(budget={"unit": unit, "value": value}, global_batch_tokens=8192),
        architecture("demo"),
        4096,
        [(100, 256), (60, 256)],
    )
    assert (plan.steps, plan.batch_rows, plan.batch_tokens) == (steps, 32, 8192)
    assert plan.epochs == pytest.approx(steps * 32 / 160)
    assert plan.learning_rate == auto_learning_rate(3_410_176)


def test_plan_prints_its_arithmetic():
    plan = plan_training(
        config(budget={"unit": "tokens", "value": 1.6e6}, global_batch_tokens=8192),
        architecture("demo"),
        4096,
        [(43_750, 256)],
    )
    assert plan.describe() == (
        "1.61 M tokens = 196 steps x 32 rows x 256; 0.36 tokens/parameter (0.47 without embeddings); "
        "0.14 epochs of 11.2 M"
    )


@pytest.mark.parametrize(
    ("batch", "datasets", "message"),
    [
        (100, [(9, 256)], '"global_batch_tokens": 100 is less than one row of 256 tokens'),
        (8192, [(9, 256), (9, 128)], "rows of 128 and 256 tokens cannot share a batch"),
        (8192, [(9, 512)], "demo declares a context of 256 tokens, the data has rows of 512"),
    ],
)
def test_plans_that_do_not_fit_are_refused(batch, datasets, message):
    with pytest.raises(ConfigError, match=message):
        plan_training(config(global_batch_tokens=batch), architecture("demo"), 4096, datasets)


def test_unknown_architecture_field_is_refused_with_the_nearest_name(tmp_path):
    folder = tmp_path / "config" / "architectures"
    folder.mkdir(parents=True)
    (folder / "odd.json").write_text('{"hiden_size": 4}')
    with pytest.raises(ConfigError, match='unknown key "hiden_size" .did you mean "hidden_size"'):
        load_architecture("odd", Workspace(tmp_path, {}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_kv_heads": 3}, "does not divide num_heads"),
        ({"head_dim": 63}, "is odd"),
        ({"hidden_size": 250}, "no multiple of num_heads"),
    ],
)
def test_impossible_shapes_are_refused(changes, message):
    shape = architecture("demo").model_dump() | changes
    with pytest.raises(ValueError, match=message):
        type(architecture("demo")).model_validate(shape)


def test_readable_counts():
    assert [readable(n) for n in (512, 8_192, 1_600_000, 2.5e9)] == ["512", "8.19 k", "1.6 M", "2.5 G"]
    assert math.isclose(expected_initial_loss(architecture("demo"), 4096), math.log(4096) + 0.0512)
