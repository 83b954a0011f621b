import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from utils.config.pretrain import PretrainConfig
from utils.config.training import OptimizerConfig, ScheduleConfig
from utils.pipeline.config import load_config, semantic_view
from utils.pipeline.errors import ConfigError
from utils.pipeline.workspace import REPOSITORY

RUNTIME = {
    "micro_batch_rows",
    "cpu_threads",
    "save_every_steps",
    "save_every_minutes",
    "keep_last",
    "keep_best",
    "preempt_deadline_seconds",
}
RUNTIME |= {"log_every_steps", "trackers", "kernels", "attention", "compile", "activation_checkpointing"}
NEUTRAL = {"parameter_dtype", "document_attention", "deterministic"}  # at their defaults
NEUTRAL |= {"early_stopping_patience_evals"}
INPUTS = {"continue_from"}  # by the digest of what is there
MINIMAL = {"output": "o", "model": "demo", "inputs": {"tokenizer": "t", "data": [{"path": "d"}]}}


@pytest.mark.parametrize("profile", ["smoke", "demo", "local", "tiny", "small", "base"])
def test_shipped_configs_load(profile):
    loaded = load_config(Path(f"config/{profile}/50_pretrain.json"), PretrainConfig, REPOSITORY)
    assert loaded.config.output == f"checkpoints/{profile}/base"
    assert (loaded.config.precision == "fp32") is (profile == "smoke")


def test_runtime_fields_stay_out_of_the_key_and_all_others_are_in_it():
    view = semantic_view(PretrainConfig.model_validate(MINIMAL), REPOSITORY)
    fields = set(PretrainConfig.model_fields) - {"output"}
    assert fields - set(view) == RUNTIME | NEUTRAL | INPUTS
    assert len(view["model"]) == 64  # the architecture file's digest, not its name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": {"betas": [0.9, 1.0]}}, "must lie in"),
        ({"optimizer": {"learning_rate": -1}}, "learning_rate -1.0 is below 0"),
        ({"schedule": {"warmup_steps": 0}}, "warmup_steps 0 is below 1"),
        ({"micro_batch_rows": 0}, "0 is below 1"),
        ({"precision": "fp8"}, "fp16"),
    ],
)
def test_values_out_of_range_are_refused_with_the_reason(change, message):
    with pytest.raises(ValidationError, match=message):
        PretrainConfig.model_validate(MINIMAL | change)


def test_a_typo_is_refused_with_the_nearest_name(tmp_path):
    path = tmp_path / "50.json"
    path.write_text(json.dumps(MINIMAL | {"optimizer": {"learning_rat": 1e-3}}))
    with pytest.raises(
        ConfigError, match='unknown key "optimizer.learning_rat" .did you mean "learning_rate"'
    ):
        load_config(path, PretrainConfig, REPOSITORY)


def test_every_field_is_documented():
    for section in (PretrainConfig, OptimizerConfig, ScheduleConfig):
        assert [name for name, field in section.model_fields.items() if not field.description] == []
