"""Stages 60 and 80 on datasets of a Hub on loopback: parquet files, broken connections, limits, faults."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pyarrow
import pyarrow.parquet
import pytest

from tests.chat.toy_chain import PREFERENCE_DATA, ROOT, SFT_DATA, build_upstream, edited, toy_workspace
from tests.corpus.fake_hub import FakeHub, fake_hub
from utils.pipeline.manifest import read_manifest
from utils.pipeline.workspace import Workspace

CHATS = {"name": "web", "kind": "hub", "id": "me/chats", "ignore_fields": ["note"]}
PAIRS = {
    "name": "web",
    "kind": "hub",
    "id": "me/pairs",
    "split": "train_prefs",
    "format": "dpo",
    "licence": "MIT",
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = toy_workspace(tmp_path_factory.mktemp("toy"))
    build_upstream(workspace)
    return workspace


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub() as running:
        running.push("me/chats", chats())
        running.push("me/pairs", {"data/train_prefs-00000-of-00001.parquet": parquet(map(pair, range(60)))})
        yield running


def parquet(rows: Iterator[dict]) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), out, row_group_size=20)
    return out.getvalue()


def chats(first: int = 0) -> dict[str, bytes]:
    """Two files of 60 conversations."""
    return {
        f"data/train-{part:05}-of-00002.parquet": parquet(
            map(chat, range(first + 60 * part, first + 60 * part + 60))
        )
        for part in range(2)
    }


def chat(number: int) -> dict:
    turns = [("user", f"what is {number}?"), ("assistant", f"it is {number}.")]
    messages = [{"role": role, "content": text} for role, text in turns]
    return {"messages": messages, "note": "noise"}


def pair(number: int) -> dict:
    """A row as binarised feedback has it: the answers are whole dialogues."""
    prompt, messages = f"what is {number}?", chat(number)["messages"]
    worse = [messages[0], {"role": "assistant", "content": "who knows?"}]
    return {"prompt": prompt, "chosen": messages, "rejected": worse}


def run(hub: FakeHub, workspace: Workspace, document: dict, **environment: str) -> tuple[int, str]:
    """A stage as a process that takes the fake for the Hub; exit code and output."""
    stage = "60_prepare_sft" if "max_conversation_tokens" in document else "80_prepare_preferences"
    config = workspace.path(f"config/toy/{stage}.json")
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps(document), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "tests/chat/toy_child.py", str(workspace.root), stage, str(config)],
        cwd=ROOT,
        env=os.environ | hub.environment(workspace.root / "home") | environment,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def config(base: dict, folder: str, source: dict, **changes: object) -> dict:
    inputs = {"tokenizer": "data/toy/tokenizer"}
    return edited(base, output=f"data/toy/{folder}", inputs=inputs, sources=[source | changes])


@pytest.mark.slow
def test_chats_survive_a_broken_connection_and_a_branch_that_moves(hub: FakeHub, workspace: Workspace):
    whole, broken = (config(SFT_DATA, name, CHATS) for name in ("whole", "broken"))
    code, said = run(hub, workspace, whole)
    assert code == 0 and "reading    web (chats train) as messages" in said, said
    hub.break_after(700)
    code, said = run(hub, workspace, broken)
    assert (code, hub.breaks) == (0, []), said
    found = [read_manifest(workspace.path(one["output"]))[0] for one in (whole, broken)]
    assert found[0].output_digest == found[1].output_digest
    source = found[1].sources[0]
    assert (source.kind, source.requested_revision) == ("hub", "main")
    assert source.resolved_revision == hub.branches["me/chats"]["main"]
    assert (source.rows_read, source.rows_kept) == (120, 120)

    hub.push("me/chats", chats(first=500))
    code, said = run(hub, workspace, broken)
    assert code == 0 and "up to date" in said, "the commit is what counts, not the branch"


@pytest.mark.slow
def test_pairs_of_whole_dialogues_are_read_and_no_more_of_them_than_asked(hub: FakeHub, workspace: Workspace):
    document = config(PREFERENCE_DATA, "pairs", PAIRS, limit_rows=45)
    code, said = run(hub, workspace, document)
    assert code == 0, said
    source = read_manifest(workspace.path("data/toy/pairs"))[0].sources[0]
    assert (source.id, source.rows_read, source.rows_kept) == ("me/pairs, train_prefs", 45, 45)
    card = workspace.path("data/toy/pairs/DATA_CARD.md").read_text()
    commit = hub.branches["me/pairs"]["main"]
    said = f"`me/pairs` of the Hugging Face Hub, split train_prefs, commit {commit}, licence MIT."
    assert card.endswith(f"Source web: {said}\n")


@pytest.mark.slow
def test_what_the_hub_lacks_is_said_in_one_line(hub: FakeHub, workspace: Workspace):
    cases = {
        'source "web": there is no dataset me/none on the Hub': ({"id": "me/none"}, 2),
        'source "web": "me/a--b" cannot be the name of a dataset of the Hub': ({"id": "me/a--b"}, 2),
        '"sources[0].revision"': ({"revision": ""}, 2),
        'source "web" (me/chats): Bad split: test.': ({"split": "test"}, 2),
        'source "web" of kind "hub" needs "id"': ({"id": ""}, 2),
        'source "web" of kind "hub" takes no "paths"': ({"paths": ["data/raw/*"]}, 2),
        'the format does not use "note" (120 rows)': ({"ignore_fields": []}, 2),
    }
    for message, (changes, expected) in cases.items():
        code, said = run(hub, workspace, config(SFT_DATA, "refused", CHATS, **changes))
        assert (code, "Traceback" in said) == (expected, False), said
        assert message in said
    code, said = run(hub, workspace, config(SFT_DATA, "refused", CHATS), HF_HUB_OFFLINE="1")
    assert code == 4 and "HF_HUB_OFFLINE is set" in said, said
