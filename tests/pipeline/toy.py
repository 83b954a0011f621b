"""
The toy chain: nine stages of a few milliseconds each on the real runner, in a folder of its own.

    toy = Toy(tmp_path / "root").write()
    toy.run("20_prepare_corpus")            # Result: code, text, verdict, fix
    toy.tool("run", "demo")
    toy.hooks["40.committed"] = lambda stage: ...       # called at that point of the stage

What a real stage spends its time on is replaced by something small; what floor 1 sees is the same: verified
readers, journals, sealed checkpoints, tokenizer files, a GGUF with its lineage.
"""

import importlib.util
import io
import json
import os
import re
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from tests.pipeline.toy_configs import CLASSES, FOLDERS, config_of
from tests.pipeline.toy_stages import MAINS
from utils.pipeline.config import StageConfig
from utils.pipeline.hashing import REPOSITORY_ROOT
from utils.pipeline.manifest import compute_output_digest, compute_seal
from utils.pipeline.stage import Main, Stage, execute
from utils.pipeline.workspace import Workspace

SHARDS = 3


@dataclass(frozen=True)
class Result:
    """What a command left: exit code, what it printed, and the verdict and fix of its JSON log line."""

    code: int
    text: str
    verdict: str = ""
    fix: str = ""


@dataclass
class Toy:
    """A root folder with configs, raw files and the nine stages."""

    root: Path
    hooks: dict[str, Callable[[Stage], None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        stages = {stage: f"{cls.__module__}:{cls.__name__}" for stage, cls in CLASSES.items()}
        self.workspace = Workspace(self.root, stages)
        self.tools = load_tools()

    # the folder

    def write(self, profile: str = "demo") -> "Toy":
        """Raw texts, configs, templates and a little code to be recorded."""
        for number in range(SHARDS):
            text = "\n".join(f"the hero of tale {number} and line {line}" for line in range(30))
            self.put(f"raw/books/{number}.txt", text)
        self.put("config/templates/plain.jinja", "{{ messages }}")
        self.put("utils/packing/pack.py", '"""Packs."""\n\n\ndef pack(ids):\n    return ids\n')
        for stage in CLASSES:
            self.put(f"scripts/{stage}.py", f'"""{stage}."""\nfrom utils.packing.pack import pack\n')
        self.write_configs(profile)
        return self

    def write_configs(self, profile: str) -> None:
        for stage in CLASSES:
            self.put(f"config/{profile}/{stage}.json", json.dumps(config_of(stage, profile)))

    def put(self, relative: str, text: str) -> None:
        path = self.root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def set(self, stage: str, profile: str = "demo", **values: object) -> None:
        """Change top-level keys of a stage's config."""
        path = f"config/{profile}/{stage}.json"
        self.put(path, json.dumps(json.loads((self.root / path).read_text()) | values))

    def folder(self, stage: str, profile: str = "demo") -> Path:
        return self.root / FOLDERS[stage].format(profile)

    def manifest(self, stage: str, profile: str = "demo") -> dict:
        return json.loads((self.folder(stage, profile) / "manifest.json").read_text())

    def digest(self, stage: str) -> str:
        return self.manifest(stage)["output_digest"]

    def digests(self) -> dict[str, str]:
        return {stage: self.digest(stage) for stage in CLASSES}

    def flip(self, stage: str, name: str, offset: int = -1) -> Path:
        """Change one byte of an output, without changing its size."""
        path = self.folder(stage) / name
        data = bytearray(path.read_bytes())
        data[offset] ^= 1
        path.write_bytes(data)
        return path

    def edit_manifest(self, stage: str, edit: Callable[[dict], object], reseal: bool) -> None:
        """Change a manifest as somebody would who knows, or does not know, about the seal."""
        raw = self.manifest(stage)
        edit(raw)
        if reseal:
            raw["manifest_sha256"] = compute_seal(raw)
        (self.folder(stage) / "manifest.json").write_text(json.dumps(raw, indent=1) + "\n")

    # running

    def run(self, stage: str, *arguments: str, profile: str = "demo") -> Result:
        """One stage in this process, as its script would run it."""
        argv = ["--config", f"config/{profile}/{stage}.json", *arguments]
        if "--config" in arguments:
            argv = list(arguments)
        return self._captured(
            lambda: execute(stage, CLASSES[stage], self.main_of(stage), argv, self.workspace)
        )

    def tool(self, *arguments: str) -> Result:
        """tools/pipeline.py in this process, stages included."""
        return self._captured(lambda: self.tools.main(arguments, self.workspace, self._launch))

    def build(self, last: str = "120_convert_gguf") -> "Toy":
        result = self.tool("run", "demo", "--to", last)
        assert result.code == 0, result.text
        return self

    def _launch(self, command: list[str], root: Path) -> int:
        stage = Path(command[1]).stem
        return execute(stage, CLASSES[stage], self.main_of(stage), command[2:], self.workspace)

    def _captured(self, call: Callable[[], int]) -> Result:
        text, seen, before = io.StringIO(), Counter(self.events()), Path.cwd()
        os.chdir(self.root)
        try:
            with redirect_stdout(text), redirect_stderr(text):
                code = call()
        finally:
            os.chdir(before)
        rows = [json.loads(line) for line in (Counter(self.events()) - seen).elements()]
        refused = [row for row in rows if row["event"] in ("refused", "failed")]
        last = refused[-1] if refused and code else {}
        return Result(code, text.getvalue(), last.get("verdict", ""), last.get("fix", ""))

    def events(self) -> list[str]:
        """Every JSON log line of the workspace and of its artifacts and build folders."""
        paths = [self.workspace.records / "events.jsonl", *self.root.glob("*/*/*/log/events.jsonl")]
        return [line for path in paths if path.is_file() for line in path.read_text().splitlines()]

    def killed(self, stage: str, point: str, times: int = 1) -> None:
        """Run a stage in a child process that gets SIGKILL when it comes to `point` for the nth time."""
        child = os.fork()
        if child == 0:
            left = iter(range(times - 1, -1, -1))

            def die(_stage: Stage) -> None:
                if next(left) == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

            self.hooks = {point: die}
            try:
                self.run(stage)
            finally:
                os._exit(99)  # it was never reached
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"{stage} never came to {point} for the {times}th time"

    def follow(self, fix: str) -> None:
        """Type the commands of a fix, one after the other; each must succeed."""
        commands = commands_in(fix)
        assert commands, f"no command in the fix: {fix}"
        for program, *arguments in commands:
            stage = Path(program).stem
            done = self.tool(*arguments) if stage == "pipeline" else self.run(stage, *arguments)
            assert done.code == 0, f"{program} {arguments}: {done.text}"

    def main_of(self, name: str) -> Main:
        """The stage's `main`, with the hooks of this toy."""

        def main(config: StageConfig, stage: Stage) -> dict:
            return MAINS[name](config, stage, lambda point: self._at(point, stage))

        return main

    def _at(self, point: str, stage: Stage) -> None:
        if point in self.hooks:
            self.hooks[point](stage)


@lru_cache
def load_tools() -> ModuleType:
    """tools/pipeline.py as a module."""
    spec = importlib.util.spec_from_file_location("pipeline_tool", REPOSITORY_ROOT / "tools" / "pipeline.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands_in(fix: str) -> list[list[str]]:
    """The commands that a fix asks for, without alternatives after `or` and remarks after three blanks."""
    lines = [line for line in fix.splitlines() if not line.strip().startswith("or ")]
    found = [re.search(r"python ((?:scripts|tools)/.*?)(?:   |$)", line) for line in lines]
    return [shlex.split(match[1]) for match in found if match]


def reseal_outputs(raw: dict) -> None:
    """Recompute the output digest of an edited manifest."""
    raw["output_digest"] = compute_output_digest(raw["outputs"])


def all_files(folder: Path) -> Iterable[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


_watched: dict[str, list[str]] = {}


def _audit(event: str, arguments: tuple) -> None:
    if event == "open" and _watched and isinstance(arguments[0], (str, bytes, os.PathLike)):
        name = os.path.realpath(os.fsdecode(arguments[0]))
        if name in _watched:
            _watched[name].append(name)


@contextmanager
def watching(*paths: Path) -> Iterator[list[str]]:
    """Which of these files are opened meanwhile, by any name, as the interpreter itself sees it."""
    opened: list[str] = []
    _watched.update({os.path.realpath(path): opened for path in paths})
    try:
        yield opened
    finally:
        _watched.clear()


sys.addaudithook(_audit)
