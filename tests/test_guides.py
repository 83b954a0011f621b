"""
The guides under docs/: every JSON block is a valid part of a config, every command names things that exist.
"""

import json
import re
import shlex
from pathlib import Path

import pytest

from utils.config.corpus import CorpusConfig
from utils.config.generate import GenerateConfig
from utils.config.pack import PackConfig
from utils.config.pretrain import PretrainConfig
from utils.config.sft import SFTConfig
from utils.config.sft_data import SFTDataConfig
from utils.config.tokenizer import TokenizerConfig
from utils.config.transform import SFTToDPOConfig
from utils.pipeline.config_file import merge

ROOT = Path(__file__).resolve().parents[1]
GENERATE_BASE = {
    "output": "data/mine/generated",
    "main_topic": "sailing small boats",
    "datasets": {"chat": {"mode": "sft", "rows": 500}},
    "providers": {"lab": {"base_url": "http://127.0.0.1:8000/v1"}},
    "models": {name: {"provider": "lab", "model": name} for name in ("main", "rejected", "judge")},
}
CORPUS_BASE = {
    "output": "data/mine/corpus",
    "sources": [{"name": "books", "kind": "local", "paths": ["data/raw/corpus/*"]}],
}

PRETRAIN_BASE = {
    "output": "checkpoints/mine/base",
    "model": "demo",
    "inputs": {"tokenizer": "data/mine/tokenizer", "data": [{"path": "data/mine/packed"}]},
}


def blocks(guide: str, language: str) -> list[str]:
    text = (ROOT / "docs" / guide).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(guide: str) -> list[str]:
    lines = "\n".join(blocks(guide, "sh")).splitlines()
    return [line for line in lines if line.startswith("python ")]


@pytest.mark.parametrize("block", blocks("chat_data.md", "json"))
def test_blocks_on_chats_are_valid_configs(block: str) -> None:
    inputs = {"tokenizer": "data/mine/tokenizer", "generated": "data/mine/generated"}
    part = json.loads(block)
    config = SFTDataConfig.model_validate({"output": "data/mine/sft", "inputs": inputs} | part)
    assert part and set(part) <= config.model_fields_set


@pytest.mark.parametrize("block", blocks("generate.md", "json"))
def test_generate_blocks_are_valid_configs(block: str) -> None:
    part = json.loads(block)
    if "sources" in part:
        SFTToDPOConfig.model_validate(part)
        return
    config = GenerateConfig.model_validate(merge(GENERATE_BASE, part))
    assert set(part) <= config.model_fields_set


def test_the_generate_guide_has_one_config_per_kind_of_provider() -> None:
    addresses = re.findall(r'"base_url": "([^"]+)"', "".join(blocks("generate.md", "json")))
    assert len(set(addresses)) == 8


@pytest.mark.parametrize("block", blocks("data.md", "json"))
def test_data_blocks_are_valid_configs(block: str) -> None:
    part = json.loads(block)
    base, config_class = CORPUS_BASE, CorpusConfig
    if "sequence_length_tokens" in part or part.keys() & {"mode", "vocab_size"}:
        base, config_class = {}, PackConfig if "sequence_length_tokens" in part else TokenizerConfig
    assert set(part) <= config_class.model_validate(merge(base, part)).model_fields_set


def test_the_adapter_of_the_models_guide_is_a_valid_config() -> None:
    (block,) = blocks("models.md", "json")
    base = {"output": "o", "inputs": {"base": "b", "data": [{"path": "d"}]}, "epochs": 1.0}
    tuning = SFTConfig.model_validate(merge(base, json.loads(block))).tuning
    assert tuning.adapter is not None and tuning.adapter.num_active_ranks == 8


@pytest.mark.parametrize("block", [*blocks("pretraining_data.md", "json"), *blocks("training.md", "json")])
def test_pretraining_blocks_are_valid_configs(block: str) -> None:
    part = json.loads(block)
    assert set(part) <= PretrainConfig.model_validate(PRETRAIN_BASE | part).model_fields_set


@pytest.mark.parametrize("guide", ["generate.md", "data.md", "models.md", "training.md"])
def test_commands_name_scripts_that_exist(guide: str) -> None:
    assert commands(guide)
    for command in commands(guide):
        assert (ROOT / shlex.split(command)[1]).is_file(), command
