"""A server that repeats the key, in whatever part of a reply: it is written and printed nowhere."""

import importlib.util
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import web

from tests.generate.providers import KEY, Answer, Provider, body, model, opened
from utils.config.generate import GenerateConfig
from utils.generate.errors import CallFailed
from utils.generate.teacher.replies import respond
from utils.pipeline.stage import execute
from utils.pipeline.workspace import STAGES, Workspace

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "10_generate.py"
PLACES = ("content", "reasoning_content", "finish_reason", "thought", "error", "status")
CONFIG = {
    "output": "data/toy/generated",
    "main_topic": "the small world of children",
    "datasets": {"chat": {"mode": "sft", "rows": 12, "num_subtopics": 3, "reasoning": "separate"}},
    "duplicates": {"prompts": 1},
    "journal": {"log_requests": True},
    "validation": {"attempts_per_row": 4},
    "models": {"main": {"provider": "lab", "model": "teacher", "seed": 0, "max_backoff_seconds": 0.01}},
}


def said(place: str = "", content: str = "Fine.") -> str:
    """A completion that holds the key in one place."""
    message = {"role": "assistant", "content": content}
    choice = {"message": message, "finish_reason": "stop"}
    if place == "content":
        message["content"] = f"{content} You sent {KEY}"
    elif place == "thought":
        message["content"] = f"<think>the key is {KEY}</think>{content}"
    elif place == "reasoning_content":
        message["reasoning_content"] = f"they sent {KEY}"
    elif place == "finish_reason":
        choice["finish_reason"] = KEY
    elif place == "error":
        choice["error"] = {"message": f"bad key {KEY}"}
    return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 2, "completion_tokens": 1}})


def echoing(share: int) -> Answer:
    """Every `share`-th call is answered with the key somewhere, the others as the teacher does."""
    places, number = itertools.cycle(PLACES), itertools.count(1)

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        asked = json.loads(await request.read())
        content = respond(0, "teacher", asked["messages"], asked.get("seed", 0)).text
        if asked["max_tokens"] == 1 or next(number) % share:
            return web.Response(text=said("", content), content_type="application/json")
        place = next(places)
        status = 500 if place == "status" else 200
        text = f"no, {KEY}" if status == 500 else said(place, content)
        return web.Response(status=status, text=text, content_type="application/json")

    return answer


def stage_main() -> Callable:
    """The `main` of the stage's script."""
    spec = importlib.util.spec_from_file_location("generate_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def run_script(root: Path, url: str) -> tuple[int, Workspace]:
    """The stage by its script, in a workspace of its own."""
    workspace = Workspace(root, STAGES)
    path = workspace.path("config/toy/10_generate.json")
    path.parent.mkdir(parents=True)
    lab = {"base_url": url, "api_key_env": "PLANTED_KEY", "max_in_flight": 4}
    path.write_text(json.dumps(CONFIG | {"providers": {"lab": lab}}))
    return execute("10_generate", GenerateConfig, stage_main(), ["--config", str(path)], workspace), workspace


def everything(root: Path, capfd: pytest.CaptureFixture) -> bytes:
    """All that was written below a folder, and all that was printed."""
    printed = "".join(capfd.readouterr())
    return b"\n".join(path.read_bytes() for path in root.rglob("*") if path.is_file()) + printed.encode()


def test_a_finished_run_holds_it_nowhere(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PLANTED_KEY", KEY)
    models = body(json.dumps({"data": [{"id": KEY}, {"id": "teacher"}]}))
    with Provider(echoing(3), models=models).in_thread() as url:
        code, workspace = run_script(tmp_path, url)
    assert code == 0
    folder = workspace.path("data/toy/generated")
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"manifest.json", "failures.jsonl", "log/journal.jsonl", "log/requests.jsonl"} <= names
    found = everything(tmp_path, capfd)
    assert b"planted" not in found and b"key_in_reply" in found


@pytest.mark.parametrize("place", ["content", "reasoning_content", "finish_reason", "thought"])
def test_a_run_whose_test_call_holds_it_ends_and_holds_it_nowhere(place, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PLANTED_KEY", KEY)
    with Provider(body(said(place))).in_thread() as url:
        code, _ = run_script(tmp_path, url)
    assert code == 4
    found = everything(tmp_path, capfd)
    assert b"planted" not in found and b'provider "lab" repeats the key in a reply' in found


@pytest.mark.parametrize("place", ["content", "reasoning_content", "finish_reason", "thought"])
def test_a_reply_that_holds_it_anywhere_is_given_up(place):
    import asyncio

    async def ask() -> None:
        provider = Provider(body(said(place)))
        async with provider.served() as url, opened(url) as client:
            await client.complete({"model": "m"}, model(), estimate_tokens=1)

    with pytest.raises(CallFailed, match="key_in_reply"):
        asyncio.run(ask())


def test_a_list_of_models_that_holds_it_is_told_without_it(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PLANTED_KEY", KEY)

    async def refused(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=404, text="no such model")

    models = body(json.dumps({"data": [{"id": KEY}]}))
    with Provider(refused, models=models).in_thread() as url:
        code, _ = run_script(tmp_path, url)
    found = everything(tmp_path, capfd)
    assert code == 2 and b"it lists <key>" in found and b"planted" not in found
