"""The server as a program: what it says, refuses and does when asked to stop; stage 10 over our model."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
import torch

from tests.export.tiny_model import conversations
from tests.export.toy_run import ToyRun
from tools import serve, transform
from utils.config.generate import GenerateConfig
from utils.generate.run import generate
from utils.pipeline.workspace import STAGES, Workspace

ROOT = Path(__file__).resolve().parents[2]
ROWS = conversations(60, seed=300)
QUESTION, ANSWER = ROWS[0][0]["content"], ROWS[0][1]["content"]
PROMPTS = list(dict.fromkeys(row[0]["content"] for row in ROWS))
ADAPTER = "checkpoints/toy/sft"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ToyRun:
    torch.set_num_threads(1)
    return ToyRun.build(tmp_path_factory.mktemp("run"))


class Server:
    """`tools/serve.py` in a process of its own, over a toy workspace."""

    def __init__(self, workspace: Workspace, model: str, *arguments: str, **environment: str) -> None:
        argv = ["--model", model, "--port", "0", "--threads", "1", *arguments]
        program = (
            "import sys; from pathlib import Path; from tools import serve; "
            "from utils.pipeline.workspace import Workspace; "
            f"sys.exit(serve.main({argv!r}, Workspace(Path({str(workspace.root)!r}), {workspace.stages!r})))"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        first = self.process.stdout.readline()
        assert first, self.process.stderr.read()
        self.told = json.loads(first)
        self.url = self.told["base_url"].removesuffix("/v1")

    def ask(self, prompt: str, **more: object) -> requests.Response:
        return requests.post(f"{self.url}/generate", json={"prompt": prompt} | more, timeout=60)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()


@contextmanager
def started(workspace: Workspace, model: str, *arguments: str, **environment: str) -> Iterator[Server]:
    server = Server(workspace, model, *arguments, **environment)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def server(run: ToyRun) -> Iterator[Server]:
    with started(run.workspace, ADAPTER, "--max-tokens", "64") as server:
        yield server


def test_it_says_where_it_is_and_what_it_serves(server: Server, run: ToyRun) -> None:
    manifest = json.loads(run.path(f"{ADAPTER}/manifest.json").read_text())
    health = requests.get(f"{server.url}/health").json()
    assert server.told["model"] == health["name"] == "toy/sft"
    assert (health["kind"], health["type"]) == ("adapter", "float32")
    assert health["output_digest"] == manifest["output_digest"]
    assert health["manifest_sha256"] == manifest["manifest_sha256"]
    assert health["tokenizer_fingerprint"] == manifest["tokenizer"]["fingerprint"]
    assert server.url.startswith("http://127.0.0.1:")
    assert server.ask(QUESTION).json()["response"] == ANSWER


# the closed loop


def config(server: Server, prompts_file: str) -> dict:
    return {
        "output": "data/toy/generated",
        "prompts_file": prompts_file,
        "datasets": {"pairs": {"mode": "dpo", "rows": 20}},
        "providers": {"teacher": {"kind": "offline-teacher"}, "own": {"base_url": server.told["base_url"]}},
        "models": {
            "main": {"provider": "teacher", "model": "teacher"},
            "rejected": {"provider": "own", "model": "toy/sft", "temperature": 0.0, "max_output_tokens": 32},
        },
    }


def test_stage_10_takes_rejected_sides_from_the_served_model(
    server: Server, run: ToyRun, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS[:30]))
    document = config(server, str(tmp_path / "prompts.txt"))
    folder = tmp_path / "generated"
    folder.mkdir()
    said: list[str] = []
    generated = generate(
        GenerateConfig.model_validate(document),
        folder,
        run.workspace,
        lambda event, text="", **_: said.append(text),
        lambda: False,
    )
    rows = [json.loads(line) for line in (folder / "pairs" / "dataset.jsonl").open()]
    assert len(rows) == generated.metrics["datasets"]["pairs"]["rows"] == 20
    assert generated.usage["own"]["rejected"]["rejected"]["calls"] >= 20
    for row in rows:
        assert row["rejected"] == server.ask(row["prompt"]).json()["response"] != row["chosen"]
    assert any('provider "own" answers: toy/sft' in text for text in said)


def test_rejected_answers_are_made_again_by_the_served_model(
    server: Server, run: ToyRun, capsys: pytest.CaptureFixture
) -> None:
    rows = [{"prompt": prompt, "chosen": "Good.", "rejected": "Old."} for prompt in PROMPTS[:5]]
    source = run.path("data/raw/pairs.jsonl")
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = config(server, "")
    document = {
        "output": "data/toy/again",
        "dataset": "pairs",
        "sources": [{"name": "mine", "kind": "local", "paths": ["data/raw/pairs.jsonl"]}],
        "providers": {"own": made["providers"]["own"]},
        "models": {"rejected": made["models"]["rejected"]},
    }
    path = run.path("config/toy/16_regen_rejected.json")
    path.write_text(json.dumps(document))
    workspace = Workspace(run.workspace.root, run.workspace.stages | STAGES)
    assert transform.main(["regen-rejected", "--config", str(path)], workspace) == 0, capsys.readouterr().err
    made_rows = [json.loads(line) for line in run.path("data/toy/again/pairs/dataset.jsonl").open()]
    assert [row["prompt"][0]["content"] for row in made_rows] == PROMPTS[:5]
    for row in made_rows:
        assert row["rejected"][0]["content"] == server.ask(row["prompt"][0]["content"]).json()["response"]


# what it refuses


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--host", "192.0.2.7"], 2, "others could reach 192.0.2.7, and no key is asked for"),
        (["--api-key-env", "NO_SUCH_KEY"], 2, "NO_SUCH_KEY holds no key"),
        (["--model", "no/such/model"], 2, "neither a .gguf file nor a checkpoint folder"),
        (["--model", "checkpoints/toy/base"], 2, "a base model continues text and does not chat"),
    ],
)
def test_what_cannot_be_served_says_so(
    run: ToyRun, capsys: pytest.CaptureFixture, arguments: list[str], code: int, message: str
) -> None:
    model = [] if "--model" in arguments else ["--model", ADAPTER]
    assert serve.main([*model, "--port", "0", *arguments], run.workspace) == code
    assert message in capsys.readouterr().err


def test_a_port_that_is_taken_is_refused_before_the_model_is_read(
    server: Server, run: ToyRun, capsys: pytest.CaptureFixture
) -> None:
    port = server.url.rsplit(":", 1)[1]
    assert serve.main(["--model", "no/such/model", "--port", port], run.workspace) == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in capsys.readouterr().err


def test_a_tampered_model_is_not_served(run: ToyRun, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shutil.copytree(run.workspace.root, tmp_path / "run")
    fork = Workspace(tmp_path / "run", run.workspace.stages)
    path = fork.path(f"{ADAPTER}/chat_template.jinja")
    path.write_text(path.read_text() + " ")
    assert serve.main(["--model", ADAPTER, "--port", "0"], fork) == 3
    assert "chat_template.jinja: expected" in capsys.readouterr().err


# the end


def test_sigterm_lets_answers_finish_and_leaves_with_0(server: Server) -> None:
    """The last test of this file: it stops the server that the others share."""
    got: list[requests.Response] = []
    endless = {"max_new_tokens": 64, "logit_bias": {"5": -99, "2": -99}}
    ask = threading.Thread(target=lambda: got.append(server.ask(QUESTION, **endless)))
    ask.start()
    end = time.monotonic() + 20
    while not requests.get(f"{server.url}/health").json()["slots_in_use"]:
        assert time.monotonic() < end
    asked = time.monotonic()
    assert server.end() == 0 and time.monotonic() - asked < 9
    ask.join()
    assert got[0].status_code == 200 and got[0].json()["finish_reason"] == "length"
    with pytest.raises(requests.ConnectionError):
        server.ask(QUESTION)
