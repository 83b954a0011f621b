"""
Stages 10, 30 and 50 small enough for tests, so that 60 to 90 run on real artifacts in a temporary workspace.

    workspace = toy_workspace(tmp_path)
    build_upstream(workspace)                              # data/toy/{generated,tokenizer},
    checkpoints/toy/base run(workspace, "60_prepare_sft", SFT_DATA)             # exit code
"""

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from utils.pipeline.config import InputFolder, Section, StageConfig
from utils.pipeline.stage import Stage, execute
from utils.pipeline.workspace import STAGES, Workspace

ROOT = Path(__file__).resolve().parents[2]
COLOURS = ("red", "blue", "green", "black")
THINGS = (
    "cat",
    "dog",
    "sun",
    "car",
    "hat",
    "box",
    "cup",
    "bed",
    "pen",
    "bag",
    "key",
    "map",
    "net",
    "pot",
    "rug",
)
VOCABULARY = 340

SFT_DATA = {
    "output": "data/toy/sft",
    "inputs": {"tokenizer": "data/toy/tokenizer", "generated": "data/toy/generated"},
    "sources": [{"name": "chat", "kind": "generated", "dataset": "chat", "format": "stage10"}],
    "max_conversation_tokens": 64,
    "split": {"val_fraction": 0.15, "test_fraction": 0.15},
}
PREFERENCE_DATA = {
    "output": "data/toy/preferences",
    "inputs": {"tokenizer": "data/toy/tokenizer", "generated": "data/toy/generated"},
    "sources": [{"name": "pairs", "kind": "generated", "dataset": "pairs", "format": "stage10"}],
    "max_pair_tokens": 64,
    "split": {"val_fraction": 0.15, "test_fraction": 0.15},
}
TRAINING = {"cpu_threads": 1, "precision": "fp32", "trackers": [], "micro_batch_rows": 2}
SFT = TRAINING | {
    "output": "checkpoints/toy/sft",
    "inputs": {"base": "checkpoints/toy/base", "data": [{"path": "data/toy/sft"}]},
    "tuning": {"mode": "lora", "rank": 4, "alpha": 8},
    "row_tokens": 64,
    "global_batch_tokens": 256,
    "max_steps": 12,
    "optimizer": {"learning_rate": 0.01},
    "eval_every_steps": 4,
    "save_every_steps": 4,
    "sample_prompts": 2,
    "sample_tokens": 8,
}
PREFERENCES = TRAINING | {
    "output": "checkpoints/toy/preferences",
    "inputs": {
        "base": "checkpoints/toy/base",
        "model": "checkpoints/toy/sft",
        "data": [{"path": "data/toy/preferences"}],
    },
    "adapter": "new",
    "lora": {"rank": 4, "alpha": 8},
    "reference": "adapter_off",
    "row_tokens": 64,
    "global_batch_tokens": 256,
    "max_steps": 12,
    "optimizer": {"learning_rate": 0.01},
    "eval_every_steps": 4,
    "save_every_steps": 4,
}


class ToyGenerateConfig(StageConfig):
    """Chats and pairs about the colours of things."""

    stage: ClassVar[str] = "10_generate"

    ending: str = "."
    """What every answer ends with."""


class ToyTokenizerConfig(StageConfig):
    """A tokenizer by the project's recipe."""

    stage: ClassVar[str] = "30_train_tokenizer"

    seed: int = 0
    """Another seed drops one piece, so it gives another tokenizer."""


class ToyBaseInputs(Section):
    """What the toy base stands on."""

    tokenizer: InputFolder


class ToyBaseConfig(StageConfig):
    """A model of random weights."""

    stage: ClassVar[str] = "50_pretrain"

    inputs: ToyBaseInputs
    seed: int = 0
    """Seed of the weights."""


def questions() -> list[tuple[str, str]]:
    """Each thing and each colour, once."""
    return [(f"is the {thing} {colour}?", colour) for thing in THINGS for colour in COLOURS]


def generate(config: ToyGenerateConfig, stage: Stage) -> dict:
    chats = [
        {
            "id": str(i),
            "messages": [
                {"role": "user", "content": q},
                {"role": "assistant", "content": f"yes, {c}{config.ending}"},
            ],
        }
        for i, (q, c) in enumerate(questions())
    ]
    pairs = [
        {
            "id": str(i),
            "prompt": q,
            "chosen": f"yes, {c}{config.ending}",
            "rejected": f"no, {c}{config.ending}",
        }
        for i, (q, c) in enumerate(questions())
    ]
    for name, rows in (("chat", chats), ("pairs", pairs)):
        (stage.partial / name).mkdir()
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (stage.partial / name / "dataset.jsonl").write_text(text, encoding="utf-8")
    return {}


def train_tokenizer(config: ToyTokenizerConfig, stage: Stage) -> dict:
    from utils.pipeline.tokenizer_identity import tokenizer_block
    from utils.tokenizer.hf import write_hf_files
    from utils.tokenizer.train import train_model

    text = [f"{q} yes, {c}. no, {c}. user system assistant tool the answer is" for q, c in questions()]
    (stage.partial / "tokenizer.model").write_bytes(train_model(text, VOCABULARY - config.seed))
    write_hf_files(stage.partial)
    stage.set_tokenizer(tokenizer_block(stage.partial))
    return {}


def pretrain(config: ToyBaseConfig, stage: Stage) -> dict:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from utils.models.load import copy_tokenizer, save_model

    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    shape = LlamaConfig(
        vocab_size=stage.input("tokenizer").manifest.tokenizer["vocab_size"], hidden_size=32,
        intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        pad_token_id=3, bos_token_id=1, eos_token_id=2, max_position_embeddings=128, tie_word_embeddings=True,
    )  # fmt: skip
    save_model(LlamaForCausalLM(shape), stage.partial)
    copy_tokenizer(stage.input("tokenizer").path, stage.partial)
    return {}


UPSTREAM: dict[str, tuple[type[StageConfig], Callable, dict]] = {
    "10_generate": (ToyGenerateConfig, generate, {"output": "data/toy/generated"}),
    "30_train_tokenizer": (ToyTokenizerConfig, train_tokenizer, {"output": "data/toy/tokenizer"}),
    "50_pretrain": (
        ToyBaseConfig,
        pretrain,
        {"output": "checkpoints/toy/base", "inputs": {"tokenizer": "data/toy/tokenizer"}},
    ),
}


def toy_workspace(root: Path) -> Workspace:
    """A workspace with the project's templates in which 10, 30 and 50 are toys."""
    shutil.copytree(ROOT / "config" / "templates", root / "config" / "templates")
    toys = {name: f"{__name__}:{config.__name__}" for name, (config, _, _) in UPSTREAM.items()}
    return Workspace(root, dict(STAGES) | toys)


def run(workspace: Workspace, name: str, document: dict, *arguments: str) -> int:
    """Write the config (one file per output folder) and run the stage in this process; its exit code."""
    path = workspace.path(f"config/toy/{name}.{Path(document['output']).name}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")
    if name in UPSTREAM:
        config_class, main, _ = UPSTREAM[name]
    else:
        config_class, main = workspace.config_class(name), script(name).main
    return execute(name, config_class, main, ["--config", str(path), *arguments], workspace)


def script(name: str) -> object:
    """The script of a stage as a module."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_upstream(workspace: Workspace) -> None:
    """Run the three toys."""
    for name, (_, _, document) in UPSTREAM.items():
        assert run(workspace, name, document) == 0


def edited(document: dict, **changes: object) -> dict:
    """A deep copy with top-level keys replaced; dictionaries are merged."""
    fresh = json.loads(json.dumps(document))
    for key, value in changes.items():
        fresh[key] = (
            fresh[key] | value if isinstance(value, dict) and isinstance(fresh.get(key), dict) else value
        )
    return fresh
