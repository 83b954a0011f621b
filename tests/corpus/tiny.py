"""
A tiny corpus of made-up sentences, and stages run on it in a workspace of their own.

    tiny = Tiny(tmp_path)
    tiny.write_books()
    manifest = tiny.run("20_prepare_corpus", tiny.corpus_config())
"""

import importlib.metadata
import importlib.util
import json
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from utils.pipeline.manifest import Manifest, read_manifest
from utils.pipeline.stage import execute
from utils.pipeline.workspace import STAGES, Workspace

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
NOUNS = [
    "boat",
    "river",
    "lamp",
    "garden",
    "cat",
    "stone",
    "window",
    "bread",
    "hill",
    "song",
    "door",
    "letter",
    "horse",
    "winter",
    "market",
    "bridge",
]
VERBS = ["saw", "found", "carried", "left", "painted", "followed", "opened", "wanted"]
INLINE = {"kind": "inline"}
KILLED_RUN = """
import os, signal, sys
sys.path[:0] = [{root!r}]
from tests.corpus.tiny import Tiny
from utils.pipeline.journal import Journal
from pathlib import Path
import utils.corpus.shards, utils.corpus.sources
utils.corpus.shards.BLOCK_ROWS = 100
utils.corpus.sources.BLOCK_ROWS = {block_rows}
commit, left = Journal.commit, [{commits}]
def deadly(self, record):
    commit(self, record)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
Journal.commit = deadly
if __name__ == "__main__":
    sys.exit(Tiny(Path({workspace!r})).execute({stage!r}))
"""


def load_script(stage: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"script_{stage}", ROOT / "scripts" / f"{stage}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sentence(generator: random.Random) -> str:
    a, b, c = generator.sample(NOUNS, 3)
    return f"The {a} {generator.choice(VERBS)} the {b} near the {c} at {generator.randint(1, 99)}."


def chapters(book: int, count: int) -> list[dict]:
    """Chapters of one book: four paragraphs of three sentences."""
    generator = random.Random(book)
    texts = []
    for _ in range(count):
        paragraphs = (" ".join(sentence(generator) for _ in range(3)) for _ in range(4))
        texts.append("\n\n".join(paragraphs))
    return [{"id": f"{book}-{i}", "text": text, "title": f"Book {book}"} for i, text in enumerate(texts)]


@dataclass(frozen=True)
class Tiny:
    """A workspace with raw files, and the stages that run in it."""

    root: Path

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.root, STAGES)

    def write_books(self, num_files: int = 4, books_per_file: int = 10, chapters_per_book: int = 6) -> None:
        folder = self.root / "data" / "raw" / "corpus"
        folder.mkdir(parents=True)
        for file in range(num_files):
            books = range(file * books_per_file, (file + 1) * books_per_file)
            rows = [row for book in books for row in chapters(book, chapters_per_book)]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"part-{file}.jsonl").write_text(text, encoding="utf-8")

    def corpus_config(self, **changes: object) -> dict:
        fields = {"text": "text", "group": "title", "id": "id"}
        source = {"name": "books", "kind": "local", "paths": ["data/raw/corpus/*"], "fields": fields}
        source |= {"preset": "short", "rules": {"top_4gram": "off"}}
        config = {
            "output": "data/corpus",
            "sources": [source],
            "split": {"val_fraction": 0.2},
            "executor": INLINE,
        }
        return config | changes

    def tokenizer_config(self, **changes: object) -> dict:
        config = {"output": "data/tokenizer", "inputs": {"corpus": "data/corpus"}, "vocab_size": 320}
        return config | {"min_chars_per_token": 1.0} | changes

    def pack_config(self, **changes: object) -> dict:
        inputs = {"corpus": "data/corpus", "tokenizer": "data/tokenizer"}
        return {
            "output": "data/packed",
            "inputs": inputs,
            "sequence_length_tokens": 64,
            "executor": INLINE,
        } | changes

    def write_config(self, stage: str, config: dict) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / f"{stage}.json").write_text(json.dumps(config), encoding="utf-8")

    def execute(self, stage: str, *arguments: str) -> int:
        config_class = self.workspace.config_class(stage)
        argv = ["--config", str(self.root / f"{stage}.json"), *arguments]
        return execute(stage, config_class, load_script(stage).main, argv, workspace=self.workspace)

    def run(self, stage: str, config: dict) -> Manifest:
        """Run a stage that must succeed and return the manifest of its artifact."""
        self.write_config(stage, config)
        assert self.execute(stage) == 0
        manifest, problem = read_manifest(self.root / config["output"])
        assert manifest is not None, str(problem)
        return manifest

    def run_all(self) -> None:
        self.write_books()
        self.run("20_prepare_corpus", self.corpus_config())
        self.run("30_train_tokenizer", self.tokenizer_config())

    def kill_after(self, stage: str, config: dict, commits: int, block_rows: int = 60) -> None:
        """Run a stage in a process that dies by kill -9 right after so many commits."""
        self.write_config(stage, config)
        code = KILLED_RUN.format(
            root=str(ROOT), workspace=str(self.root), stage=stage, commits=commits, block_rows=block_rows
        )
        process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert process.returncode == -9, process.stderr


def check_golden(stage: str, manifest: Manifest) -> None:
    """Compare with tests/golden/<stage>.json, which is only valid for the library versions that it names."""
    golden = json.loads((GOLDEN / f"{stage}.json").read_text(encoding="utf-8"))
    installed = {name: importlib.metadata.version(name) for name in golden["libraries"]}
    if installed != golden["libraries"]:
        pytest.skip(f"the golden digest was made with {golden['libraries']}, installed are {installed}")
    assert manifest.stage_version == golden["stage_version"], (
        f"write the new digest to tests/golden/{stage}.json"
    )
    assert manifest.output_digest == golden["output_digest"], "outputs changed, bump stage_version"
