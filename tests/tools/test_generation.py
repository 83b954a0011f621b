"""The generation program over a real stage 10 and a real transform, unfinished and finished."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.generate.chat_server import chat_server
from tools import generation, transform
from utils.config.generate import GenerateConfig
from utils.generate.sessions import ago, find_sessions, read_session
from utils.pipeline.stage import execute
from utils.pipeline.workspace import STAGES, Workspace

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "config/toy/10_generate.json"
OUTPUT = "data/toy/generated"


def stage_main() -> Callable:
    """The `main` of the stage's script."""
    spec = importlib.util.spec_from_file_location("generate_script", ROOT / "scripts" / "10_generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def configure(workspace: Workspace, **more: object) -> None:
    document = {
        "output": OUTPUT,
        "main_topic": "the small world of children",
        "datasets": {
            "chat": {"mode": "sft", "rows": 40, "num_subtopics": 4},
            "pairs": {"mode": "dpo", "rows": 20, "num_subtopics": 4},
        },
        "duplicates": {"prompts": 1},
        "providers": {"teacher": {"kind": "offline-teacher", "max_in_flight": 4}},
        "models": {
            "main": {
                "provider": "teacher",
                "model": "teacher",
                "prompt_price": 1000,
                "completion_price": 2000,
            },
            "rejected": {"provider": "teacher", "model": "teacher-weak"},
        },
    }
    path = workspace.path(CONFIG)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document | more))


def generate(workspace: Workspace) -> int:
    argv = ["--config", str(workspace.path(CONFIG))]
    return execute("10_generate", GenerateConfig, stage_main(), argv, workspace)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with an unfinished generation in `toy` and a finished one in `done`."""
    root = tmp_path_factory.mktemp("sessions")
    workspace = Workspace(root, STAGES)
    configure(workspace)
    assert generate(workspace) == 0
    workspace.path("data/toy").rename(workspace.path("data/done"))
    configure(workspace, budget={"max_tokens": 1500})
    assert generate(workspace) == 4
    return root


@pytest.fixture
def workspace(built: Path, tmp_path: Path) -> Workspace:
    shutil.copytree(built, tmp_path / "root")
    return Workspace(tmp_path / "root", STAGES)


def run(workspace: Workspace, *arguments: str, launch: Callable | None = None) -> int:
    def never(command: object, root: object) -> int:
        raise AssertionError(f"{command} was started")

    return generation.main(list(arguments), workspace, launch or never)


def test_list_shows_every_folder_with_rows_tokens_and_cost(workspace: Workspace, capsys) -> None:
    assert run(workspace, "list") == 0
    done, toy = capsys.readouterr().out.splitlines()
    assert done.startswith("data/done/generated ") and "finished, " in done and "chat 40  pairs 20" in done
    assert toy.startswith("data/toy/generated.partial ") and "unfinished (failed, exit 4)" in toy
    assert " of 40" in toy and "tokens, cost " in toy and "cost 0" not in toy


def test_list_of_nothing_says_so(tmp_path: Path, capsys) -> None:
    assert run(Workspace(tmp_path, STAGES), "list") == 0
    assert "nothing was generated" in capsys.readouterr().out


def test_a_folder_that_cannot_be_read_does_not_hide_the_others(workspace: Workspace, capsys) -> None:
    (workspace.path("data/toy/generated.partial") / "state.json").unlink()
    assert run(workspace, "list") == 0
    said = capsys.readouterr().out
    assert "does not say what it is of" in said and "chat 40  pairs 20" in said


def test_looking_changes_nothing(workspace: Workspace, capsys) -> None:
    def state() -> dict[str, tuple]:
        found = (path for path in workspace.path("data").rglob("*") if path.is_file())
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in found}

    before = state()
    time.sleep(0.02)
    for command in (["list"], ["inspect", f"{OUTPUT}"], ["export", OUTPUT, "--dataset", "chat"]):
        assert run(workspace, *rooted(workspace, command)) == 0
    assert state() == before


def rooted(workspace: Workspace, command: list[str]) -> list[str]:
    """The command with its folder below the test's root."""
    return [str(workspace.path(part)) if part.startswith("data/") else part for part in command]


def test_inspect_counts_what_is_there_and_missing_and_says_how_to_go_on(workspace: Workspace, capsys) -> None:
    assert run(workspace, *rooted(workspace, ["inspect", OUTPUT])) == 0
    said = capsys.readouterr().out
    session = read_session(workspace.path(f"{OUTPUT}.partial"), workspace)
    chat = session.datasets[0]
    assert (chat.name, chat.mode, chat.wanted) == ("chat", "sft", 40)
    assert 0 < chat.rows + session.datasets[1].rows < 60 and chat.missing == 40 - chat.rows
    assert f"{chat.rows}       40" in said and "ended     failed, exit 4" in said
    assert "continue  python scripts/10_generate.py --config config/toy/10_generate.json" in said
    main = {name: counts for name, counts in session.usage.items() if name.startswith("main.")}
    paid = sum(1000 * c["prompt_tokens"] + 2000 * c["completion_tokens"] for c in main.values()) / 1e6
    assert session.cost == pytest.approx(paid) and f"{paid:.4f}" in said
    assert 1500 <= session.tokens < 6000


def test_inspect_of_a_finished_one_says_how_to_get_more(workspace: Workspace, capsys) -> None:
    assert run(workspace, *rooted(workspace, ["inspect", "data/done/generated"])) == 0
    said = capsys.readouterr().out
    assert "ended     finished 2" in said
    assert "ask for more in config/toy/10_generate.json, then: python scripts/10_generate.py" in said


def test_resume_runs_the_stage_with_the_recorded_config(workspace: Workspace, capsys) -> None:
    started = []

    def launch(command: list[str], root: Path) -> int:
        started.append((command, root))
        configure(workspace)
        return generate(workspace)

    assert run(workspace, *rooted(workspace, ["resume", f"{OUTPUT}.partial"]), launch=launch) == 0
    command = [sys.executable, "scripts/10_generate.py", "--config", CONFIG]
    assert started == [(command, workspace.root)]
    assert "replies are already paid for" in capsys.readouterr().out
    assert read_session(workspace.path(OUTPUT), workspace).datasets[0].rows == 40


def test_the_exit_code_of_the_stage_is_passed_on(workspace: Workspace) -> None:
    assert run(workspace, *rooted(workspace, ["resume", OUTPUT]), launch=lambda command, root: 75) == 75


def test_resume_of_a_finished_one_or_without_its_config_is_refused(workspace: Workspace, capsys) -> None:
    assert run(workspace, *rooted(workspace, ["resume", "data/done/generated"])) == 2
    assert "is finished: there is nothing to resume" in capsys.readouterr().err
    workspace.path(CONFIG).unlink()
    assert run(workspace, *rooted(workspace, ["resume", OUTPUT])) == 2
    assert "the config that it was begun with is gone: config/toy/10_generate.json" in capsys.readouterr().err


def test_export_of_a_finished_one_is_its_file(workspace: Workspace, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    command = ["export", "data/done/generated", "--dataset", "pairs", "--output", str(output)]
    assert run(workspace, *rooted(workspace, command)) == 0
    assert output.read_bytes() == workspace.path("data/done/generated/pairs/dataset.jsonl").read_bytes()


def test_export_of_an_unfinished_one_has_rows_of_the_finished_one_in_its_order(
    workspace: Workspace, capsys
) -> None:
    names = [d.name for d in read_session(workspace.path(f"{OUTPUT}.partial"), workspace).datasets if d.rows]
    assert run(workspace, *rooted(workspace, ["export", OUTPUT, "--dataset", names[0]])) == 0
    so_far = capsys.readouterr().out.splitlines()
    whole = iter(workspace.path(f"data/done/generated/{names[0]}/dataset.jsonl").read_text().splitlines())
    assert so_far and all(row in whole for row in so_far)


def test_export_refuses_what_would_do_harm(workspace: Workspace, tmp_path: Path, capsys) -> None:
    folder = str(workspace.path("data/done/generated"))
    (tmp_path / "there.jsonl").write_text("mine")
    cases = {
        "there are several datasets": [],
        'there is no dataset "chats"': ["--dataset", "chats"],
        "exists": ["--dataset", "chat", "--output", str(tmp_path / "there.jsonl")],
        "is an artifact": ["--dataset", "chat", "--output", f"{folder}/rows.jsonl"],
        "is not a folder": ["--dataset", "chat", "--output", str(tmp_path / "none" / "rows.jsonl")],
    }
    for message, options in cases.items():
        assert run(workspace, "export", folder, *options) == 2, message
        assert message in capsys.readouterr().err
    assert (tmp_path / "there.jsonl").read_text() == "mine"


def test_a_folder_without_a_journal_is_refused(workspace: Workspace, capsys) -> None:
    assert run(workspace, *rooted(workspace, ["inspect", "data/none"])) == 2
    said = capsys.readouterr().err
    assert "data/none holds no generation" in said and "tools/generation.py list" in said


def test_a_reader_that_goes_away_is_no_error(workspace: Workspace) -> None:
    """`export ... | head -1` closes the pipe early."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom tools import generation\n"
        "from utils.pipeline.workspace import STAGES, Workspace\n"
        "sys.exit(generation.main(sys.argv[2:], Workspace(Path(sys.argv[1]), STAGES)))\n"
    )
    folder = workspace.path("data/done/generated")
    arguments = [str(workspace.root), "export", str(folder), "--dataset", "chat"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    assert done.returncode == 0 and done.stderr == b""


def test_preview_shows_rows_and_their_cost_and_leaves_nothing(workspace: Workspace, capsys) -> None:
    configure(workspace, budget={"max_tokens": 100_000})
    before = sorted(path for path in workspace.root.rglob("*"))
    assert run(workspace, "preview", str(workspace.path(CONFIG)), "2") == 0
    said = capsys.readouterr()
    rows = [json.loads(line) for line in said.out.splitlines() if line.startswith("{")]
    pair = {"prompt", "chosen", "rejected", "id"}
    assert [set(row) for row in rows] == [{"messages", "id"}] * 2 + [pair] * 2
    assert "what it took" in said.out and "main.chosen" in said.out and "about " in said.err
    assert sorted(path for path in workspace.root.rglob("*")) == before


def test_a_stop_during_a_preview_is_no_result(workspace: Workspace, capsys, monkeypatch) -> None:
    def interrupted(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("utils.generate.run.generate", interrupted)
    assert run(workspace, "preview", str(workspace.path(CONFIG)), "2") == 130
    assert capsys.readouterr().out == ""


def test_preview_of_too_much_or_nothing_is_refused(workspace: Workspace, capsys) -> None:
    for rows in ("0", "101"):
        assert run(workspace, "preview", str(workspace.path(CONFIG)), rows) == 2
        assert f"a preview has 1 to 100 rows, not {rows}" in capsys.readouterr().err


def test_a_transform_is_listed_inspected_and_resumed_like_a_generation(tmp_path: Path, capsys) -> None:
    workspace = Workspace(tmp_path, STAGES)
    raw = workspace.path("raw/a.jsonl")
    raw.parent.mkdir()
    turns = [("user", "Hi"), ("assistant", "Hello.")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    other = {"messages": [{"role": "user", "content": "Bye"}, {"role": "assistant", "content": "See you."}]}
    raw.write_text(f"{json.dumps(row)}\n{json.dumps(other)}\n")
    config = workspace.path("config/toy/15_sft_to_dpo.json")
    config.parent.mkdir(parents=True)
    with chat_server(lambda body: 500 if body["messages"][-1]["content"] == "Bye" else "Go.") as server:
        model = {"provider": "lab", "model": "small", "max_retries": 0, "prompt_price": 10}
        document = {
            "output": "data/toy/pairs",
            "sources": [{"name": "mine", "kind": "local", "paths": ["raw/*"]}],
            "providers": {"lab": {"base_url": server.base_url}},
            "models": {"rejected": model},
        }
        config.write_text(json.dumps(document))
        assert transform.main(["sft-to-dpo", "--config", str(config)], workspace) == 4
    capsys.readouterr()
    folder = str(workspace.path("data/toy/pairs"))
    assert find_sessions(workspace) == [Path(f"{folder}.partial")]
    assert run(workspace, "inspect", folder) == 0
    said = capsys.readouterr().out
    head = "dataset +rows of the sources +pairs written +left out, by reason"
    assert re.search(rf"{head}\npairs +2 +1 +http_500 1", said)
    assert "wanted" not in said and "main.preflight" not in said
    assert re.search(r"rejected.preflight +1 +", said)
    assert "http_500 1" in said and "python tools/transform.py sft-to-dpo --config" in said
    session = read_session(Path(f"{folder}.partial"), workspace)
    assert (session.tokens, session.cost) == (20, pytest.approx(140e-6))
    assert run(workspace, "export", folder) == 0
    assert json.loads(capsys.readouterr().out)["rejected"] == [{"role": "assistant", "content": "Go."}]
    with open(f"{folder}.partial/pairs/dataset.jsonl", "a") as file:
        file.write('{"id": "torn')
    assert run(workspace, "export", folder) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1, "a row in the making is not exported"
    started = []
    assert run(workspace, "resume", folder, launch=lambda command, root: started.append(command) or 0) == 0
    assert started == [[sys.executable, "tools/transform.py", "sft-to-dpo", "--config", session.config_path]]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59, "59 s"), (61, "1 min"), (7300, "2 h"), (200_000, "2 d")]
)
def test_times_are_told_in_their_largest_unit(seconds: int, text: str) -> None:
    assert ago("1970-01-01T00:00:10Z", now=10.0 + seconds) == text
