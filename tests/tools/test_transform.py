"""The transform program as a user runs it: order, failed rows, kill -9, Ctrl-C, budget, provenance."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import zstandard

from tests.generate.chat_server import ChatServer, chat_server
from tests.generate.sealed import seal
from tools import pipeline, transform
from utils.config.preference_data import PreferenceDataConfig
from utils.pipeline.manifest import read_manifest
from utils.pipeline.verify import Verifier
from utils.pipeline.workspace import STAGES, Workspace

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = "data/toy/pairs"
PROGRAM = (
    "import sys\nfrom pathlib import Path\nfrom tools import transform\n"
    "from utils.pipeline.workspace import STAGES, Workspace\n"
    "sys.exit(transform.main(sys.argv[2:], Workspace(Path(sys.argv[1]), STAGES)))\n"
)


@dataclass
class Place:
    """A workspace with a config and raw files."""

    workspace: Workspace
    command: str = "sft-to-dpo"

    @property
    def config_path(self) -> Path:
        return self.workspace.path(f"config/toy/15_{self.command.replace('-', '_')}.json")

    @property
    def partial(self) -> Path:
        return self.workspace.path(f"{OUTPUT}.partial")

    def raw(self, name: str, rows: list[dict], pack=lambda data: data) -> None:
        path = self.workspace.path(f"raw/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pack("".join(json.dumps(row) + "\n" for row in rows).encode()))

    def configure(self, base_url: str, **more: object) -> None:
        model = {"provider": "lab", "model": "small", "max_retries": 0, "max_backoff_seconds": 0.01}
        document = {
            "output": OUTPUT,
            "sources": [{"name": "mine", "kind": "local", "paths": ["raw/*"]}],
            "providers": {"lab": {"base_url": base_url, "max_in_flight": 8}},
            "models": {"rejected": model},
        }
        self.config_path.parent.mkdir(parents=True, exist_ok=True)
        self.config_path.write_text(json.dumps(document | more))

    def run(self, *options: str) -> int:
        return transform.main([self.command, "--config", str(self.config_path), *options], self.workspace)

    def start(self) -> subprocess.Popen:
        command = [sys.executable, "-c", PROGRAM, str(self.workspace.root), self.command]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen([*command, "--config", str(self.config_path)], cwd=ROOT, **pipes)

    def rows(self, folder: str = OUTPUT) -> list[dict]:
        text = self.workspace.path(f"{folder}/pairs/dataset.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def failures(self, folder: str = f"{OUTPUT}.partial") -> list[dict]:
        text = self.workspace.path(f"{folder}/failures.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(Workspace(tmp_path, STAGES))


def chat(number: int) -> dict:
    turns = [("user", f"Question {number}?"), ("assistant", f"The answer is {number}.")]
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def wrong(body: dict) -> str:
    return f"No idea about {body['messages'][-1]['content']}"


def test_every_row_of_every_format_comes_out_in_order(place: Place, capsys) -> None:
    place.raw("a.jsonl", [chat(number) for number in range(5)])
    place.raw("b.jsonl.gz", [{"instruction": "Add.", "input": "1 and 2", "output": "3"}], gzip.compress)
    turns = [
        {"from": "system", "value": "Be kind."},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello."},
        {"from": "human", "value": "How are you?"},
        {"from": "gpt", "value": "Well."},
    ]
    compress = zstandard.ZstdCompressor().compress
    place.raw("c.jsonl.zst", [{"conversations": turns}], compress)
    place.raw("d.jsonl", [chat(2)])
    with chat_server(wrong, seconds=0.01) as server:
        place.configure(server.base_url)
        assert place.run() == 0
    rows = place.rows()
    assert [row["chosen"][0]["content"] for row in rows[:5]] == [f"The answer is {n}." for n in range(5)]
    assert rows[5]["prompt"] == [{"role": "user", "content": "Add.\n\n1 and 2"}]
    assert [turn["role"] for turn in rows[6]["prompt"]] == ["system", "user", "assistant", "user"]
    assert rows[6]["chosen"] == [{"role": "assistant", "content": "Well."}]
    assert rows[7] == rows[2] | {"id": rows[7]["id"]} and rows[7]["id"] != rows[2]["id"]
    for row in rows:
        assert row["rejected"][0]["content"] == f"No idea about {row['prompt'][-1]['content']}"
    assert len(server.bodies) == 7, "the repeated row is paid for once"
    assert "pairs: 8 rows, 0 left out" in capsys.readouterr().out


def test_the_result_is_a_link_of_the_chain(place: Place, capsys) -> None:
    place.raw("a.jsonl", [chat(number) for number in range(3)])
    place.workspace.path("tools").mkdir()
    place.workspace.path("tools/transform.py").write_text('"""Stands for the program."""\n')
    with chat_server(wrong) as server:
        place.configure(server.base_url)
        assert place.run() == 0
        assert place.run() == 0
    assert "up to date" in capsys.readouterr().out and len(server.bodies) == 3
    folder = place.workspace.path(OUTPUT)
    manifest, verdict = Verifier(place.workspace).artifact(folder)
    assert verdict.good and manifest.stage == "15_sft_to_dpo"
    source = manifest.sources[0]
    assert source.files[0].path == "raw/a.jsonl" and len(source.files[0].sha256) == 64
    assert (source.rows_read, source.rows_kept) == (3, 3)
    assert manifest.run.argv[0] == "tools/transform.py"
    assert list(manifest.code.modules) == ["tools.transform"]
    assert manifest.metrics["datasets"] == {"pairs": {"mode": "dpo", "rows": 3, "left_out": {}}}
    assert Verifier(place.workspace).chain(folder)[0].verdict.good
    place.raw("a.jsonl", [chat(number) for number in range(4)])
    assert "stale (source.mine" in str(Verifier(place.workspace).chain(folder)[0].verdict)


def test_a_profile_may_hold_a_transform_and_runs_it_like_a_stage(place: Place, capsys) -> None:
    place.raw("a.jsonl", [chat(1)])
    started = []

    def launch(command: list[str], root: Path) -> int:
        started.append(command)
        assert command[1:3] == ["tools/transform.py", "sft-to-dpo"]
        config = place.workspace.path(command[command.index("--config") + 1])
        return transform.main(["sft-to-dpo", "--config", str(config), *command[5:]], place.workspace)

    with chat_server(wrong) as server:
        place.configure(server.base_url)
        assert pipeline.main(["run", "toy"], place.workspace, launch) == 0
        assert pipeline.main(["run", "toy"], place.workspace, launch) == 0
    assert len(started) == 1 and "1 up to date" in capsys.readouterr().out
    assert pipeline.main(["status", "toy"], place.workspace) == 0


def test_the_code_that_it_was_made_with_is_recorded() -> None:
    from utils.pipeline.environment import code_modules
    from utils.pipeline.workspace import program_of

    modules = code_modules(ROOT / program_of("15_sft_to_dpo")[0], ROOT)
    assert {"tools.transform", "utils.generate.transform", "utils.chat.formats"} <= set(modules)


def test_stage_80_takes_it_as_a_generated_dataset(place: Place) -> None:
    """The config that reads it is valid, and the rows are what its reader expects."""
    from utils.chat.pairs import Pair, pair_format

    place.raw("a.jsonl", [chat(1)])
    with chat_server(wrong) as server:
        place.configure(server.base_url)
        assert place.run() == 0
    source = {"name": "pairs", "kind": "generated", "dataset": "pairs", "format": "stage10"}
    inputs = {"tokenizer": "data/toy/tokenizer", "generated": OUTPUT}
    PreferenceDataConfig.model_validate({"output": "data/toy/p", "inputs": inputs, "sources": [source]})
    assert isinstance(pair_format("stage10").convert(place.rows()[0]), Pair)


def test_regenerating_replaces_rejected_answers_and_nothing_else(place: Place) -> None:
    place.command = "regen-rejected"
    pairs = [{"prompt": f"Q{n}?", "chosen": f"Right {n}.", "rejected": "old", "id": str(n)} for n in range(4)]
    place.raw("pairs.jsonl", pairs)
    with chat_server(wrong) as server:
        place.configure(server.base_url, conversational=False)
        assert place.run() == 0
    rows = place.rows()
    assert [(row["prompt"], row["chosen"]) for row in rows] == [(p["prompt"], p["chosen"]) for p in pairs]
    assert [row["rejected"] for row in rows] == [f"No idea about Q{n}?" for n in range(4)]


def test_rows_of_an_artifact_are_read_and_it_becomes_a_parent(place: Place) -> None:
    data = "".join(json.dumps(chat(number)) + "\n" for number in range(2)).encode()
    parent = seal(place.workspace, "data/toy/generated", {"chat/dataset.jsonl": data})
    source = {"name": "chat", "kind": "generated", "dataset": "chat"}
    with chat_server(wrong) as server:
        place.configure(server.base_url, sources=[source], inputs={"generated": "data/toy/generated"})
        assert place.run() == 0
    manifest = read_manifest(place.workspace.path(OUTPUT))[0]
    assert manifest.input_digests == {"generated": read_manifest(parent)[0].output_digest}


def test_a_failed_row_is_reported_retried_and_does_not_abort_the_rest(place: Place, capsys) -> None:
    place.raw("a.jsonl", [chat(number) for number in range(10)])
    broken = {"Question 3?", "Question 7?"}

    def sometimes(body: dict) -> str | int:
        asked = body["messages"][-1]["content"]
        return 500 if asked in broken else wrong(body)

    with chat_server(sometimes) as server:
        place.configure(server.base_url)
        assert place.run() == 4
        said = capsys.readouterr().err
        assert "2 of 10 rows failed: http_500 2" in said and "Traceback" not in said
        assert [(row["row"], row["reason"]) for row in place.failures()] == [(4, "http_500"), (8, "http_500")]
        assert len(place.rows(f"{OUTPUT}.partial")) == 8
        server.bodies.clear()
        broken.clear()
        assert place.run() == 0
    assert sorted(server.prompts()) == ["Question 3?", "Question 7?"]
    assert [row["chosen"][0]["content"] for row in place.rows()] == [f"The answer is {n}." for n in range(10)]
    assert place.failures(OUTPUT) == []


def test_rows_that_cannot_be_read_are_failures_with_their_place(place: Place, capsys) -> None:
    path = place.workspace.path("raw/a.jsonl")
    path.parent.mkdir(parents=True)
    lines = [json.dumps(chat(number)) for number in range(200)]
    lines[1] = "not json"
    path.write_text("\n".join(lines) + "\n")
    with chat_server(wrong) as server:
        place.configure(server.base_url)
        assert place.run() == 4
        failure = place.failures()[0]
        assert (failure["where"], failure["reason"]) == ("mine (a.jsonl), row 2", "bad_json")
        place.configure(server.base_url, max_failed_rows=1)
        assert place.run() == 0
        assert len(server.bodies) == 199
    manifest = read_manifest(place.workspace.path(OUTPUT))[0]
    assert manifest.metrics["datasets"]["pairs"] == {
        "mode": "dpo",
        "rows": 199,
        "left_out": {"bad_json": 1},
    }
    assert "bad_json 1" in place.workspace.path(f"{OUTPUT}/DATA_CARD.md").read_text()


def test_nothing_usable_is_never_a_success(place: Place, capsys) -> None:
    place.raw("a.jsonl", [chat(1)])
    with chat_server(lambda body: 500) as server:
        place.configure(server.base_url, max_failed_rows=5)
        assert place.run() == 4
    assert "1 of 1 rows failed: http_500 1" in capsys.readouterr().err


def test_the_budget_stops_cleanly_and_more_of_it_continues(place: Place, capsys) -> None:
    place.raw("a.jsonl", [chat(number) for number in range(40)])
    with chat_server(wrong) as server:
        place.configure(server.base_url, budget={"max_tokens": 100})
        assert place.run() == 4
        said = capsys.readouterr().err
        assert "budget reached: " in said and "max_tokens 100 reached" in said
        paid = len(server.bodies)
        assert 9 <= paid <= 9 + 8
        assert place.run() == 4
        assert len(server.bodies) == paid, "what earlier runs spent counts"
        place.configure(server.base_url)
        assert place.run() == 0
        assert len(server.bodies) == 40
    assert len(place.rows()) == 40


def test_other_uses_of_the_same_replies_cost_nothing(place: Place) -> None:
    place.raw("a.jsonl", [chat(number) for number in range(5)])
    with chat_server(lambda body: f"<think>hm</think>{wrong(body)}") as server:
        place.configure(server.base_url)
        assert place.run() == 0
        place.configure(server.base_url, reasoning="keep", conversational=False)
        assert place.run() == 0
        assert len(server.bodies) == 5
    assert place.rows()[0]["rejected"].startswith("<think>\nhm\n</think>")


def test_an_unfinished_build_goes_on_when_replies_are_only_used_otherwise(place: Place, capsys) -> None:
    place.raw("a.jsonl", [chat(number) for number in range(4)])
    with chat_server(lambda body: 500 if "3" in body["messages"][-1]["content"] else "Moo.") as server:
        place.configure(server.base_url)
        assert place.run() == 4
        server.answer = wrong
        place.configure(server.base_url, reasoning="keep", validation={"min_characters": 2})
        assert place.run() == 0
        assert len(server.bodies) == 5
    assert "which now asks for more: stale (config." in capsys.readouterr().out


def test_a_changed_question_is_refused_by_name_while_a_build_is_unfinished(place: Place, capsys) -> None:
    place.raw("a.jsonl", [chat(number) for number in range(3)])
    with chat_server(lambda body: 500) as server:
        place.configure(server.base_url)
        assert place.run() == 4
        place.configure(server.base_url, template={"user": "Please: {{ prompt }}"})
        assert place.run() == 3
    said = capsys.readouterr().err
    assert "config.template.user: {{ prompt }} -> Please: {{ prompt }}" in said
    assert "python tools/transform.py sft-to-dpo --config" in said


def test_the_provider_is_looked_at_before_the_first_call_only(place: Place, capsys) -> None:
    place.raw("a.jsonl", [chat(1)])
    with chat_server(lambda body: 500) as server:
        server.trial_answer = 404
        place.configure(server.base_url)
        assert place.run() == 2
        assert 'provider "lab" refuses a call of "small": HTTP 404' in capsys.readouterr().err
        assert server.bodies == []
        server.trial_answer, server.answer = "Yes.", wrong
        assert place.run() == 0
        assert server.trials == 2
        place.configure(server.base_url, include_id=False)
        assert place.run() == 0
    assert server.trials == 2 and len(server.bodies) == 1


def test_attempts_are_logged_when_the_config_asks_for_it(place: Place) -> None:
    place.raw("a.jsonl", [chat(number) for number in range(3)])
    with chat_server(wrong) as server:
        place.configure(server.base_url, journal={"log_requests": True})
        assert place.run() == 0
    lines = place.workspace.path(f"{OUTPUT}/log/requests.jsonl").read_text().splitlines()
    assert [json.loads(line)["status"] for line in lines] == ["200"] * 3
    assert "Question" not in "".join(lines)


def test_a_refused_key_stops_at_once_and_names_the_provider(place: Place, capsys) -> None:
    place.raw("a.jsonl", [chat(number) for number in range(500)])
    with chat_server(lambda body: 401) as server:
        place.configure(server.base_url)
        assert place.run() == 4
        assert len(server.bodies) <= 16
    assert 'provider "lab" refuses the key: HTTP 401' in capsys.readouterr().err


def wait_for(condition, seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.005)
    assert condition()


def kill_when(place: Place, server: ChatServer, calls: int) -> None:
    """Start it and kill -9 it when the server was asked so often."""
    process = place.start()
    wait_for(lambda: len(server.bodies) >= calls or process.poll() is not None)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def test_killed_three_times_it_ends_with_the_same_file_and_pays_twice_only_for_calls_in_flight(
    place: Place, tmp_path: Path
) -> None:
    place.raw("a.jsonl", [chat(number) for number in range(120)])
    moments = sorted(random.Random().sample(range(5, 100), 3))
    with chat_server(wrong, seconds=0.01) as server:
        place.configure(server.base_url)
        for moment in moments:
            kill_when(place, server, moment)
            assert not place.workspace.path(OUTPUT).exists()
        last = place.start()
        said, _ = last.communicate(timeout=60)
        assert last.returncode == 0, said
        assert "replies are already paid for" in said
        assert len(server.bodies) <= 120 + 3 * 8, moments
    rows = place.rows()
    assert [row["chosen"][0]["content"] for row in rows] == [f"The answer is {n}." for n in range(120)]
    with chat_server(wrong) as server:
        whole = Place(Workspace(tmp_path / "whole", STAGES))
        whole.raw("a.jsonl", [chat(number) for number in range(120)])
        whole.configure(server.base_url)
        assert whole.run() == 0
    assert whole.rows() == rows


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_stop_drains_and_a_rerun_pays_for_nothing_twice(place: Place, number: int, code: int) -> None:
    place.raw("a.jsonl", [chat(row) for row in range(60)])
    with chat_server(wrong, seconds=0.1) as server:
        place.configure(server.base_url)
        process = place.start()
        wait_for(lambda: len(server.bodies) >= 10)
        process.send_signal(number)
        said, _ = process.communicate(timeout=30)
        assert process.returncode == code and "Traceback" not in said, said
        assert len(server.bodies) < 60
        assert place.run() == 0
        assert sorted(server.prompts()) == sorted(f"Question {row}?" for row in range(60))
    assert len(place.rows()) == 60


def test_more_rows_than_the_limit_are_refused_before_anything_is_paid_for(place: Place, capsys) -> None:
    place.raw("a.jsonl", [chat(number) for number in range(3)])
    with chat_server(wrong) as server:
        place.configure(server.base_url, limits={"max_rows": 2})
        assert place.run() == 2
        assert server.bodies == []
    assert "the sources have 3 rows, more than limits.max_rows = 2" in capsys.readouterr().err


def test_an_unknown_command_says_what_there_is(place: Place, capsys) -> None:
    assert transform.main(["sft-to-kto"], place.workspace) == 2
    assert "sft-to-dpo --config" in capsys.readouterr().err
    assert transform.main(["--help"], place.workspace) == 0
    with pytest.raises(SystemExit) as left:
        transform.main(["sft-to-dpo", "--help"], place.workspace)
    assert left.value.code == 0 and "usage: tools/transform.py sft-to-dpo" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"template": {"user": "{{ subtopic }}"}}, 'template.user: there is no variable "subtopic"'),
        ({"validation": {"must_match": "x"}}, "validation.must_match: asked of chosen answers only"),
        ({"limits": {"max_subtopics": 3}}, "limits.max_subtopics: a transform has no subtopics"),
        ({"rejected_model": "weak"}, 'there is no model "weak" (there are: rejected)'),
        ({"judge": {}}, 'unknown key "judge"'),
        (
            {
                "models": {
                    "rejected": {"provider": "lab", "model": "m"},
                    "b": {"provider": "lab", "model": "m"},
                }
            },
            "models.b: a transform asks only models.rejected",
        ),
        (
            {"models": {"rejected": {"provider": "lab", "model": "m", "response_format": "json_object"}}},
            "models.rejected.response_format: lists and scores are not asked for",
        ),
        (
            {"sources": [{"name": "chat", "kind": "generated", "dataset": "chat"}]},
            'source "chat" is generated, but inputs.generated names no artifact',
        ),
    ],
)
def test_a_config_that_makes_no_sense_is_exit_2_before_any_request(place: Place, change, message, capsys):
    place.raw("a.jsonl", [chat(1)])
    with chat_server(wrong) as server:
        place.configure(server.base_url, **change)
        assert place.run() == 2
        assert server.bodies == []
    assert message in capsys.readouterr().err
