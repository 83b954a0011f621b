"""
A small sealed run for tests of stages 100-120 and of the chat program: real artifacts, made by the real
runner.

    run = ToyRun.build(tmp_path)       # base, an SFT adapter, corpus, chats and pairs below tmp_path
    run.stage("110_merge_lora")        # exit code; config in config/toy/110_merge_lora.json
"""

import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from tests.export.tiny_model import chat_ids, conversations, stories, tiny_model
from utils.models.adapt import LoRAShape, add_adapter, save_adapter
from utils.models.load import load_model
from utils.packing.index import SpecialIds
from utils.packing.rows import RowsWriter
from utils.pipeline.config import InputFolder, Section, StageConfig
from utils.pipeline.stage import Stage, execute
from utils.pipeline.workspace import STAGES, Workspace
from utils.tokenizer.frozen import FrozenTokenizer

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER_SET = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


class ToyInputs(Section):
    """Parents of a toy artifact."""

    base: InputFolder = ""
    """Base model."""


class ToyConfig(StageConfig):
    """Base of the stand-ins: they seal a folder that the test filled."""

    stage: ClassVar[str] = "toy"
    inputs: ToyInputs = ToyInputs()


class Corpus(ToyConfig):
    """Stands for stage 20."""

    stage: ClassVar[str] = "20_prepare_corpus"


class Base(ToyConfig):
    """Stands for stage 50."""

    stage: ClassVar[str] = "50_pretrain"


class Chats(ToyConfig):
    """Stands for stage 60."""

    stage: ClassVar[str] = "60_prepare_sft"


class Tuned(ToyConfig):
    """Stands for stage 70."""

    stage: ClassVar[str] = "70_train_sft"


class Pairs(ToyConfig):
    """Stands for stage 80."""

    stage: ClassVar[str] = "80_prepare_preferences"


TOYS = {toy.stage: toy for toy in (Corpus, Base, Chats, Tuned, Pairs)}


@dataclass(frozen=True)
class ToyRun:
    """A workspace below a temporary folder."""

    workspace: Workspace

    @classmethod
    def build(cls, root: Path) -> "ToyRun":
        real = {name: STAGES[name] for name in ("100_evaluate", "110_merge_lora", "120_convert_gguf")}
        toys = {name: f"tests.export.toy_run:{toy.__name__}" for name, toy in TOYS.items()}
        run = cls(Workspace(root, real | toys))
        run.seal("50_pretrain", "checkpoints/toy/base", write_base)
        run.seal("20_prepare_corpus", "data/toy/corpus", write_corpus)
        run.seal("60_prepare_sft", "data/toy/sft", write_chats)
        run.seal("80_prepare_preferences", "data/toy/preferences", write_pairs)
        run.seal("70_train_sft", "checkpoints/toy/sft", write_adapter, {"base": "checkpoints/toy/base"})
        run.configure("100_evaluate", EVALUATE)
        run.configure("110_merge_lora", MERGE)
        run.configure("120_convert_gguf", GGUF)
        return run

    def path(self, relative: str) -> Path:
        return self.workspace.path(relative)

    def configure(self, stage: str, config: dict) -> None:
        path = self.path(f"config/toy/{stage}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(config))

    def seal(
        self,
        stage: str,
        output: str,
        write: Callable[[Path], dict | None],
        inputs: dict[str, str] | None = None,
    ) -> None:
        """Make an artifact with the real runner from what `write` puts into the build folder."""
        name = f"{stage}-{output.replace('/', '-')}"
        path = self.path(f"config/made/{name}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"output": output, "inputs": inputs or {}}))

        def main(config: ToyConfig, stage: Stage) -> dict:
            metrics = write(stage.partial) or {}
            if stage.has_input("base"):
                digest = stage.input("base").manifest.output_digest
                metrics["adapter_base"] = {"role": "base", "output_digest": digest}
            if (stage.partial / "tokenizer.model").is_file():
                stage.set_tokenizer(tokenizer_of(stage.partial))
            return metrics

        code = execute(stage, TOYS[stage], main, ["--config", str(path)], self.workspace)
        assert code == 0, f"{name} left with {code}"

    def stage(self, name: str, *arguments: str) -> int:
        """Run a real stage of this repository in the toy workspace."""
        spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / "scripts" / f"{name}.py")
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        config = str(self.path(f"config/toy/{name}.json"))
        config_class = self.workspace.config_class(name)
        return execute(name, config_class, script.main, ["--config", config, *arguments], self.workspace)


EVALUATE = {
    "output": "data/toy/evaluation",
    "bootstrap_resamples": 200,
    "inputs": {
        "base": "checkpoints/toy/base",
        "sft": "checkpoints/toy/sft",
        "corpus": "data/toy/corpus",
        "sft_data": "data/toy/sft",
        "preference_data": "data/toy/preferences",
    },
    "generation": {"limit_rows": 12, "max_new_tokens": 16},
    "perplexity": {"limit_tokens": 400},
}
MERGE = {
    "output": "checkpoints/toy/merged",
    "verify": {"prompts": 6},
    "inputs": {"base": "checkpoints/toy/base", "adapter": "checkpoints/toy/sft", "prompts": "data/toy/sft"},
}
GGUF = {
    "output": "checkpoints/toy/gguf",
    "name": "toy",
    "outputs": ["f16", "q4_k_m"],
    "llama_timeout_seconds": 120,
    "inputs": {
        "model": "checkpoints/toy/merged",
        "corpus": "data/toy/corpus",
        "prompts": "data/toy/sft",
        "evaluation": "data/toy/evaluation",
    },
    "verify": {"texts": 40, "sequences": 4, "prompts": 4, "max_new_tokens": 16},
}


def tokenizer_of(folder: Path) -> dict:
    return FrozenTokenizer(folder).block


def copy_tokenizer_set(target: Path) -> None:
    for name in TOKENIZER_SET:
        shutil.copyfile(tiny_model() / name, target / name)


def write_base(folder: Path) -> dict:
    shutil.copytree(tiny_model(), folder, dirs_exist_ok=True)
    (folder / "chat_template.jinja").unlink()
    return {"val_loss": 0.6, "unigram_loss": 4.5, "bigram_loss": 2.5, "uniform_loss": 6.24}


def write_adapter(folder: Path) -> None:
    """An adapter that changes the model a little, trained marker rows included."""
    torch.manual_seed(1)
    model = add_adapter(load_model(tiny_model()), LoRAShape(rank=4, alpha=8), token_rows=[4, 5])
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.01)
    save_adapter(model, folder, "checkpoints/toy/base")
    copy_tokenizer_set(folder)


def write_corpus(folder: Path) -> None:
    from utils.corpus.shards import write_shards

    for split, seed in (("train", 100), ("val", 101)):
        rows = [
            {"group": "", "id": f"{i:032x}", "meta": {}, "source": "toy", "text": text}
            for i, text in enumerate(stories(40, seed))
        ]
        write_shards(
            folder / split, (json.dumps(row, sort_keys=True).encode() + b"\n" for row in rows), 1 << 20
        )


def write_chats(folder: Path) -> None:
    for split, chats in zip(("train", "val", "test"), _by_question(), strict=True):
        writer = _rows_writer(folder, split)
        for number, messages in enumerate(chats):
            ids = chat_ids(_pieces(), messages)
            trained = [0] * (len(ids) - 6) + [1] * 5 + [0]
            writer.append(f"{number:032x}", torch.tensor(ids).numpy(), torch.tensor(trained).numpy(), 0)
        writer.close()
        rows = [{"id": f"{i:032x}", "messages": messages, "meta": {}} for i, messages in enumerate(chats)]
        _write_rows(folder, split, rows)
    shutil.copyfile(tiny_model() / "chat_template.jinja", folder / "chat_template.jinja")


def write_pairs(folder: Path) -> None:
    for split, chats in zip(("train", "val", "test"), _by_question(), strict=True):
        writer, rows = _rows_writer(folder, split), []
        for number, (question, answer) in enumerate(chats):
            wrong = answer["content"].replace("It is", "It was never")
            for text in (answer["content"], wrong):
                prompt = chat_ids(_pieces(), [question], prompt=True)
                ids = [*prompt, *_pieces().encode(text), 5]
                trained = [0] * len(prompt) + [1] * (len(ids) - len(prompt))
                writer.append(f"{number:032x}", torch.tensor(ids).numpy(), torch.tensor(trained).numpy(), 0)
            rows.append(
                {
                    "id": f"{number:032x}",
                    "prompt": [question],
                    "chosen": answer["content"],
                    "rejected": wrong,
                    "meta": {},
                }
            )
        writer.close()
        _write_rows(folder, split, rows)


def _by_question() -> tuple[list, list, list]:
    """Conversations with distinct questions, cut into train, val and test."""
    seen = {messages[0]["content"]: messages for messages in conversations(400, seed=200)}
    rows = list(seen.values())
    return rows[:24], rows[24:36], rows[36:48]


def _pieces():
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_file=str(tiny_model() / "tokenizer.model"))


def _rows_writer(folder: Path, split: str) -> RowsWriter:
    return RowsWriter(folder, split, 512, tokenizer_of(tiny_model())["fingerprint"], SpecialIds(1, 2, 3))


def _write_rows(folder: Path, split: str, rows: list[dict]) -> None:
    from utils.corpus.shards import CompressedLines

    writer = CompressedLines(folder / f"{split}.rows.jsonl.zst")
    for row in rows:
        writer.write(json.dumps(row, sort_keys=True).encode() + b"\n")
    writer.close()
