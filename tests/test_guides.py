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
from utils.config.tokenizer import TokenizerConfig
from utils.config.transform import SFTToDPOConfig
from utils.pipeline.config import merge

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
    "inputs": {"generated": "data/mine/generated"},
    "sources": [{"name": "books", "kind": "local", "paths": ["data/raw/corpus/*"]}],
}


def blocks(guide: str, language: str) -> list[str]:
    text = (ROOT / "docs" / guide).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(guide: str) -> list[str]:
    lines = "\n".join(blocks(guide, "sh")).splitlines()
    return [line for line in lines if line.startswith("python ")]


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
    base, config_class = ({}, TokenizerConfig) if "mode" in part else (CORPUS_BASE, CorpusConfig)
    assert set(part) <= config_class.model_validate(merge(base, part)).model_fields_set


@pytest.mark.parametrize("guide", ["generate.md", "data.md"])
def test_commands_name_scripts_that_exist(guide: str) -> None:
    assert commands(guide)
    for command in commands(guide):
        assert (ROOT / shlex.split(command)[1]).is_file(), command
