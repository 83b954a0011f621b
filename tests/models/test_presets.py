import math

import pytest
import torch

from utils.config.pretrain import PretrainConfig
from utils.models.load import build_model
from utils.models.presets import (
    auto_batch_tokens,
    auto_learning_rate,
    count_parameters,
    describe_gguf,
    describe_model,
    expected_initial_loss,
    flops_per_token,
    gguf_obstacles,
    load_architecture,
    obstacle_view,
    plan_training,
    quantizes_to_k,
    readable,
)
from utils.pipeline.errors import ConfigError
from utils.pipeline.workspace import REPOSITORY, Workspace

COUNTS = {  # name: (tied, untied, body)
    "smoke": (1_443_072, 1_574_144, 1_312_000),
    "demo": (4_458_752, 5_507_328, 3_410_176),
    "micro": (5_244_032, 9_438_336, 1_049_728),
    "tiny": (14_683_392, 23_072_000, 6_294_784),
    "small": (41_949_696, 58_726_912, 25_172_480),
    "medium": (67_121_664, 83_898_880, 50_344_448),
    "base": (124_275_456, 149_441_280, 99_109_632),
    "large": (251_695_872, 276_861_696, 226_530_048),
    "tiny_moe": (28_851_456, 37_240_064, 20_462_848),
    "vesper_tiny": (13_503_744, 21_892_352, 5_115_136),
    "vesper_small": (44_048_896, 60_826_112, 27_271_680),
    "vesper_medium": (110_119_680, 135_285_504, 84_953_856),
    "vesper_large": (341_885_952, 375_440_384, 308_331_520),
    "vesper_xlarge": (1_300_334_592, 1_367_443_456, 1_233_225_728),
    "vesper_tiny_moe": (24_126_720, 32_515_328, 15_738_112),
    "vesper_medium_moe": (506_555_136, 531_720_960, 481_389_312),
    "vesper_large_moe": (3_456_549_888, 3_490_104_320, 3_422_995_456),
}
ACTIVE = {  # met by a token, embedding included
    "tiny_moe": 6_307_072 + 8_388_608,
    "vesper_tiny_moe": 17_048_832,
    "vesper_medium_moe": 166_816_512,
    "vesper_large_moe": 549_897_216,
}
UNTIED_BY_DEFAULT = {"micro", "tiny", "medium", "large"}
GFLOP_PER_TOKEN = {
    "smoke": 0.0094,
    "demo": 0.030,
    "micro": 0.038,
    "tiny": 0.107,
    "small": 0.289,
    "medium": 0.478,
    "base": 0.859,
    "large": 1.736,
    "tiny_moe": 0.107,
    "vesper_tiny": 0.100,
    "vesper_small": 0.315,
    "vesper_medium": 0.774,
    "vesper_large": 2.655,
    "vesper_xlarge": 9.009,
    "vesper_tiny_moe": 0.121,
    "vesper_medium_moe": 1.114,
    "vesper_large_moe": 3.903,
}


def architecture(name, **changes):
    return load_architecture(name, REPOSITORY).model_copy(update=changes)


def built_parameters(shape, vocab_size):
    with torch.device("meta"):
        model = build_model(shape, vocab_size, {"bos": 1, "eos": 2, "pad": 3})
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
    assert shape.tie_embeddings is (name not in UNTIED_BY_DEFAULT)


def test_every_preset_is_counted():
    assert {path.stem for path in REPOSITORY.path("config/architectures").glob("*.json")} == set(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_what_a_token_meets(name):
    shape = architecture(name)
    count = count_parameters(shape, 32_768)
    if name in ACTIVE:
        assert count.active + 32_768 * shape.hidden_size == ACTIVE[name]
    else:
        assert count.active == count.body


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
    assert "as F16, Q8_0 or a type with blocks of 32; K-quants: no" in describe_gguf(architecture("micro"))
    assert describe_gguf(architecture("tiny_moe")) == "GGUF: yes, K-quants: yes"


def test_the_description_has_every_count():
    described = describe_model("tiny_moe", architecture("tiny_moe"), 32_768, 1024)
    assert described == (
        "tiny_moe: 28,851,456 parameters (20,462,848 without embeddings, 6,307,072 of them active per "
        "token), tied, vocabulary 32,768, 107.0 MFLOP/token (97.6 causal)"
    )


@pytest.mark.parametrize("name", COUNTS)
def test_flops_match_the_table(name):
    shape = architecture(name)
    full, causal = (
        flops_per_token(shape, shape.reference_vocab_size, shape.context_length_tokens, each) / 1e9
        for each in (False, True)
    )
    assert full == pytest.approx(GFLOP_PER_TOKEN[name], abs=5e-4)
    attention = shape.num_layers * shape.num_heads * shape.head_dim * shape.context_length_tokens
    assert full - causal == pytest.approx(6e-9 * attention)


def test_the_auto_rules_match_the_table():
    assert auto_learning_rate(6_294_784) == pytest.approx(1.06e-3, abs=5e-6)
    assert auto_learning_rate(99_109_632) == pytest.approx(6.7e-4, abs=5e-6)
    assert auto_batch_tokens(23_072_000) == 32_768 and auto_batch_tokens(1_443_072) == 8_192
    assert auto_batch_tokens(10**13) == 2**19


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({"hidden_act": "era", "gamma": 0.1}, "activation era (gamma 0.1): llama.cpp's llama graph"),
        ({"hidden_act": "gelu_tanh", "gamma": 0.1}, "activation gelu_tanh: llama.cpp's llama graph"),
    ],
)
def test_what_llama_cpp_cannot_compute(values, cause):
    (found,) = gguf_obstacles(values)
    assert found.startswith(cause)
    shape = architecture("vesper_tiny", activation=values["hidden_act"], gamma=None)
    assert describe_gguf(shape) == f"no GGUF: {found}"


ALL_RANKS, SOME_RANKS = {"kind": "fly", "active_ranks": 32}, {"kind": "fly"}
ERA = "activation era (gamma 0.1): llama.cpp's llama graph computes SiLU only"
PER_TOKEN = "adapter fly, 8 of 32 ranks: depends on the token, cannot be merged"
UNMERGED = "not merged into the weights"


@pytest.mark.parametrize("experts", [{}, {"moe": {"num_experts": 4, "experts_per_token": 2}}])
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"family": "llama"}, []),
        ({"activation": "silu"}, []),
        ({"activation": "silu", "adapter": {"kind": "dense"}}, [f"adapter dense, rank 16: {UNMERGED}"]),
        ({"activation": "silu", "adapter": ALL_RANKS}, [f"adapter fly, rank 32: {UNMERGED}"]),
        (
            {"activation": "silu", "adapter": SOME_RANKS},
            [PER_TOKEN],
        ),
        ({}, [ERA]),
        ({"activation": "gelu_tanh"}, ["activation gelu_tanh: llama.cpp's llama graph computes SiLU only"]),
        (
            {"adapter": SOME_RANKS},
            [ERA, "adapter fly, 8 of 32 ranks: depends on the token, cannot be merged"],
        ),
    ],
)
def test_every_variant_has_its_obstacles(changes, expected, experts):
    """Of the architecture before training, and of what the built model writes into config.json."""
    document = architecture("demo").model_dump(exclude={"moe", "activation", "gamma", "adapter"})
    document |= {"family": "vesper", "hidden_size": 32, "ffn_size": 32, "num_layers": 1} | experts | changes
    shape = type(architecture("demo")).model_validate(document)
    assert gguf_obstacles(obstacle_view(shape)) == expected
    model = build_model(shape, 16, {})
    if shape.adapter:
        model.adapt(shape.adapter.model_copy(update={"targets": ("q_proj",)}), seed=0)
    assert gguf_obstacles(model.config.to_dict()) == expected


def test_llama_and_silu_have_no_obstacle():
    assert gguf_obstacles({"hidden_act": "silu", "num_local_experts": 8}) == gguf_obstacles({}) == []
    assert describe_gguf(architecture("vesper_tiny", activation="silu", gamma=None)).startswith("GGUF: yes")


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


def test_every_automatic_number_is_printed_with_its_rule():
    plan = plan_training(config(budget={"value": 2}), architecture("demo"), 4096, [(43_750, 256)])
    assert plan.rules == (
        "global_batch_tokens = 2^round(log2(32,768 sqrt(4,458,752 / 23e6))) within 2^13..2^19 = 16,384 "
        "-> 64 rows x 256 = 16,384",
        "tokens = 2 tokens_per_parameter x 4,458,752 = 8,917,504",
        "steps = ceil(8,917,504 / 16,384) = 545",
        "learning_rate = 0.003239 - 0.0001395 ln(3,410,176) = 0.00114",
    )
    given = config(global_batch_tokens=1000, optimizer={"learning_rate": 0.01})
    rules = plan_training(given, architecture("demo"), 4096, [(43_750, 256)]).rules
    assert rules[0] == "global_batch_tokens = 1,000 -> 4 rows x 256 = 1,024"
    assert rules[3] == "learning_rate = as configured = 0.01"


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
    (folder / "odd.json").write_text('{"moe": {"num_experts": 4, "top_k": 2}}')
    with pytest.raises(ConfigError, match='unknown key "moe.top_k"'):
        load_architecture("odd", Workspace(tmp_path, {}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_kv_heads": 3}, "does not divide num_heads"),
        ({"head_dim": 63}, "is odd"),
        ({"hidden_size": 250}, "no multiple of num_heads"),
        ({"activation": "era"}, 'needs family "vesper"'),
        ({"adapter": {"kind": "dense"}}, 'adapter needs family "vesper"'),
        ({"adapter": {"kind": "dense", "targets": ["lm_head"]}}, "adapter.targets.0"),
        ({"adapter": {"kind": "fly", "targets": ["o_proj", "gate_up_proj"]}}, "adapter.targets.1"),
        ({"family": "vesper", "activation": "silu", "gamma": 0.2}, 'gamma belongs to activation "era"'),
        ({"moe": {"num_experts": 2, "experts_per_token": 3}}, "experts_per_token 3 of 2 experts"),
    ],
)
def test_impossible_shapes_are_refused(changes, message):
    shape = architecture("demo").model_dump() | changes
    with pytest.raises(ValueError, match=message):
        type(architecture("demo")).model_validate(shape)


def test_readable_counts():
    assert [readable(n) for n in (512, 8_192, 1_600_000, 2.5e9)] == ["512", "8.19 k", "1.6 M", "2.5 G"]
    assert math.isclose(expected_initial_loss(architecture("demo"), 4096), math.log(4096) + 0.0512)
