"""The upload program as a user runs it: exit codes, messages, and what a dry run does not do."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.generate.fake_hub import FakeHub, fake_hub
from tests.generate.sealed import seal
from tools import upload
from utils.pipeline.workspace import STAGES, Workspace

TOKEN = "hf_" + "t0" * 17
REPO = "me/stories"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with fake_hub(TOKEN) as running:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, running.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr("utils.generate.hub.pause_seconds", lambda *_: 0.0)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path, STAGES)
    seal(workspace, "data/toy/generated", {"chat/dataset.jsonl": b'{"messages": []}\n' * 1000})
    return workspace


def run(workspace: Workspace, *arguments: str) -> int:
    return upload.main([str(workspace.path("data/toy/generated")), *arguments], workspace)


def test_an_upload_says_what_it_sent_and_where(hub, workspace, capsys) -> None:
    assert run(workspace, "--repo", REPO, "--private") == 0
    said = capsys.readouterr()
    assert "data/toy/generated -> datasets/me/stories, branch main" in said.out
    assert "17,000  chat/dataset.jsonl" in said.out and "committed " in said.out
    assert TOKEN not in said.out + said.err
    assert run(workspace, "--repo", REPO) == 0
    assert "up to date: me/stories already holds exactly these files" in capsys.readouterr().out


def test_a_dry_run_needs_no_network_and_no_token(hub, workspace, capsys, monkeypatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert run(workspace, "--repo", REPO, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "17,000  chat/dataset.jsonl" in said and "config_name: chat" in said and "nothing was sent" in said
    assert hub.requests == []


def test_without_a_token_nothing_is_asked(hub, workspace, capsys, monkeypatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert run(workspace, "--repo", REPO) == 2
    assert "there is no token for the Hub" in capsys.readouterr().err and hub.requests == []


def test_a_token_on_the_command_line_is_refused_and_not_repeated(hub, workspace, capsys) -> None:
    for arguments in (["--token", TOKEN], [f"--token={TOKEN}"], [TOKEN]):
        assert run(workspace, "--repo", REPO, *arguments) == 2
        said = capsys.readouterr()
        assert "a token on the command line" in said.err and TOKEN not in said.out + said.err


def test_usage_errors_are_exit_2(hub, workspace, capsys) -> None:
    for arguments in (["--repo", "stories"], ["--repo", REPO, "--forse"], []):
        with pytest.raises(SystemExit) as left:
            run(workspace, *arguments)
        assert left.value.code == 2, arguments
    assert '"stories" is not of the form USER/NAME' in capsys.readouterr().err


def test_an_altered_folder_is_exit_3_before_any_request(hub, workspace, capsys) -> None:
    (workspace.path("data/toy/generated") / ".env").write_text("X=1")
    assert run(workspace, "--repo", REPO) == 3
    said = capsys.readouterr().err
    assert "tampered (extra file: .env)" in said and "Traceback" not in said and hub.requests == []


def test_the_own_token_in_a_file_is_exit_4_before_any_request(hub, workspace, capsys, monkeypatch) -> None:
    """Also a token of a shape that nobody knows."""
    monkeypatch.setenv("HF_TOKEN", token := "correct-horse-battery")
    seal(workspace, "data/toy/generated", {"notes.md": f"my token is {token}\n".encode()})
    assert run(workspace, "--repo", REPO) == 4
    said = capsys.readouterr().err
    assert "notes.md, line 1: a key that is in use" in said and token not in said and hub.requests == []


def test_a_hub_that_stays_broken_is_exit_4_with_one_readable_error(hub, workspace, capsys) -> None:
    hub.fail("commit", 500)
    assert run(workspace, "--repo", REPO) == 4
    said = capsys.readouterr().err
    assert said.count("error:") == 1 and "HTTP 500" in said and "Traceback" not in said


def test_a_refused_token_is_exit_4_and_not_shown(hub, workspace, capsys, monkeypatch) -> None:
    wrong = "hf_" + "w1" * 17
    monkeypatch.setenv("HF_TOKEN", wrong)
    assert run(workspace, "--repo", REPO) == 4
    said = capsys.readouterr()
    assert "HTTP 401" in said.err and "hf auth login" in said.err and wrong not in said.out + said.err


def test_ctrl_c_is_exit_130(hub, workspace, capsys, monkeypatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("utils.generate.hub.Hub.send", interrupted)
    assert run(workspace, "--repo", REPO) == 130
    assert "stopped" in capsys.readouterr().err
