"""Uploading against a Hub on loopback: what it gets, what it never gets, and what happens when it fails."""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import CardData, HfApi, constants

from tests.generate.fake_hub import FakeHub, fake_hub
from tests.generate.sealed import seal
from utils.generate.hub import OUR_CARD, Hub, Outcome, Target
from utils.generate.hub_card import card, is_untouched, viewer_configs
from utils.generate.hub_parcel import Parcel, SentFile, pack
from utils.pipeline.errors import ConfigError, StageError, UpstreamError
from utils.pipeline.manifest import compute_key
from utils.pipeline.workspace import STAGES, Workspace

TOKEN = "hf_" + "t0" * 17
REPO = "me/stories"
ROW = b'{"messages": []}\n'
FILES = {
    "chat/dataset.jsonl": ROW * 3,
    "stories/dataset.jsonl": b'{"text": "Once."}\n' * 1000,  # large enough for LFS
    "failures.jsonl": b"",
    "DATA_CARD.md": b"# Generated data\n\nAbout cows.\n",
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with fake_hub(TOKEN) as running:
        yield running


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path, STAGES)


@pytest.fixture
def folder(workspace: Workspace) -> Path:
    return seal(workspace, "data/toy/generated", FILES)


def send(
    hub: FakeHub, parcel: Parcel, said: list[str] | None = None, token: str = TOKEN, **target: object
) -> Outcome:
    where = Target(REPO, parcel.kind, **target)
    lines: list[str] = [] if said is None else said
    api = HfApi(endpoint=hub.url, token=token)
    sender = Hub(where, api, lines.append, sleep=lambda seconds: lines.append(f"slept {seconds:.1f}"))
    sender.rng = random.Random(0)
    return sender.send(parcel, card(parcel, REPO))


def test_a_new_repository_holds_every_listed_file_and_nothing_else(hub, workspace, folder) -> None:
    (folder / "log").mkdir()
    (folder / "log" / "journal.jsonl").write_text("private notes")
    parcel = pack(folder, workspace)
    outcome = send(hub, parcel, private=True)
    sent = hub.files("dataset", REPO)
    manifest = (folder / "manifest.json").read_bytes()
    expected = FILES | {"manifest.json": manifest, "README.md": card(parcel, REPO).encode()}
    assert sent == expected | {".gitattributes": sent[".gitattributes"]}
    assert outcome.created and outcome.commit == hub.repositories["dataset", REPO].branches["main"]
    assert hub.repositories["dataset", REPO].private
    assert parcel.left_out == ["log/"]


def test_the_large_file_goes_through_lfs_and_is_verified_there(hub, workspace, folder) -> None:
    parcel = pack(folder, workspace)
    send(hub, parcel)
    large = next(file for file in parcel.files if file.path == "stories/dataset.jsonl")
    blobs = hub.repositories["dataset", REPO].at("main").files
    assert blobs["stories/dataset.jsonl"].lfs and not blobs["chat/dataset.jsonl"].lfs
    assert hub.objects[large.sha256] == FILES["stories/dataset.jsonl"]
    assert large.sha256 in hub.verified and {"batch", "put", "verify"} <= set(hub.steps())


def test_files_of_others_stay_and_nothing_is_ever_deleted(hub, workspace, folder) -> None:
    repo = hub.add("dataset", REPO, theirs__txt=b"keep me", failures__jsonl=b"old\n")
    before = repo.branches["main"]
    outcome = send(hub, pack(folder, workspace))
    sent = hub.files("dataset", REPO)
    assert sent["theirs.txt"] == b"keep me" and sent["failures.jsonl"] == b""
    assert outcome.replaced == ["failures.jsonl"] and not outcome.created
    assert repo.at("main").parent == before
    assert repo.at(before).files["failures.jsonl"].data == b"old\n"
    assert set(hub.operations) <= {"file", "lfsFile"}
    assert not [request for request in hub.requests if "DELETE" in request or "super" in request]


def test_a_second_upload_makes_no_commit(hub, workspace, folder) -> None:
    first = send(hub, pack(folder, workspace))
    commits = len(hub.repositories["dataset", REPO].commits)
    again = send(hub, pack(folder, workspace))
    assert first.commit and again.commit == "" and again.replaced == []
    assert len(hub.repositories["dataset", REPO].commits) == commits


def test_a_readme_of_people_is_kept_and_ours_goes_beside_it(hub, workspace, folder) -> None:
    hub.add("dataset", REPO, README__md=b"# My words\n")
    said: list[str] = []
    outcome = send(hub, pack(folder, workspace), said)
    sent = hub.files("dataset", REPO)
    assert sent["README.md"] == b"# My words\n" and is_untouched(sent[OUR_CARD].decode())
    assert outcome.card == OUR_CARD and any("kept      README.md" in line for line in said)


def test_a_card_of_ours_is_renewed_until_somebody_edits_it(hub, workspace, folder) -> None:
    send(hub, pack(folder, workspace))
    seal(workspace, "data/toy/generated", {"chat/dataset.jsonl": ROW * 4})
    assert send(hub, pack(folder, workspace)).card == "README.md"
    edited = hub.files("dataset", REPO)["README.md"].replace(b"About cows.", b"About my cows.")
    repo = hub.repositories["dataset", REPO]
    blob = type(repo.at("main").files["README.md"])(edited, False)
    repo.commit("main", {"README.md": blob}, "a person was here")
    assert send(hub, pack(folder, workspace)).card == OUR_CARD
    assert hub.files("dataset", REPO)["README.md"] == edited


def test_a_branch_is_made_from_main_and_main_stays(hub, workspace, folder) -> None:
    main = hub.add("dataset", REPO, theirs__txt=b"1").branches["main"]
    send(hub, pack(folder, workspace), branch="trial")
    repo = hub.repositories["dataset", REPO]
    assert repo.branches["main"] == main and repo.at("trial").parent == main
    assert hub.files("dataset", REPO, "trial")["theirs.txt"] == b"1"


def test_a_failing_commit_is_tried_again(hub, workspace, folder) -> None:
    hub.fail("commit", 500, times=1)
    said: list[str] = []
    assert send(hub, pack(folder, workspace), said).commit
    assert hub.steps().count("commit") == 2
    assert any("to commit again: HTTP 500 planned commit failure" in line for line in said)


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub, workspace, folder) -> None:
    hub.fail("commit", 503, times=1, after=True)
    outcome = send(hub, pack(folder, workspace))
    assert hub.steps().count("commit") == 1
    assert outcome.commit == hub.repositories["dataset", REPO].branches["main"]


def test_what_the_hub_asks_to_wait_is_waited(hub, workspace, folder) -> None:
    hub.fail("commit", 429, times=1, Retry_After="7")
    said: list[str] = []
    send(hub, pack(folder, workspace), said)
    assert "slept 7.0" in said


def test_what_the_hub_says_of_its_own_limit_is_waited(hub, workspace, folder) -> None:
    hub.fail("commit", 429, times=1, ratelimit='"api";r=0;t=55')
    said: list[str] = []
    send(hub, pack(folder, workspace), said)
    assert "slept 55.0" in said


def test_a_hub_that_stays_broken_is_one_readable_error(hub, workspace, folder) -> None:
    hub.fail("commit", 500)
    with pytest.raises(StageError, match=r"could not commit after 6 attempts: HTTP 500 planned") as error:
        send(hub, pack(folder, workspace))
    assert error.value.exit_code == 4 and "rerun to continue" in error.value.fix
    assert hub.steps().count("commit") == 6


def test_a_refused_token_is_not_tried_again_and_not_shown(hub, workspace, folder) -> None:
    wrong = "hf_" + "w1" * 17
    with pytest.raises(StageError, match="HTTP 401") as error:
        send(hub, pack(folder, workspace), token=wrong)
    assert hub.steps() == ["info"] and "hf auth login" in error.value.fix
    assert wrong not in error.value.report() and "<token>" in error.value.report()


def test_a_hub_that_is_not_there_is_one_readable_error(workspace, folder) -> None:
    with fake_hub(TOKEN) as gone:
        pass
    with pytest.raises(StageError, match="could not look at the repository after 6 attempts"):
        send(gone, pack(folder, workspace))


def test_a_readme_that_cannot_be_read_is_tried_again_and_then_an_error(hub, workspace, folder) -> None:
    hub.add("dataset", REPO, README__md=b"# My words\n")
    hub.fail("resolve", 500)
    with pytest.raises(StageError, match="could not read the README after 6 attempts: HTTP 500"):
        send(hub, pack(folder, workspace))
    assert hub.operations == []


def test_a_large_file_that_does_not_get_through_is_an_error_with_its_status(hub, workspace, folder) -> None:
    hub.fail("put", 403)
    with pytest.raises(StageError, match="could not commit: HTTP 403"):
        send(hub, pack(folder, workspace))
    assert hub.operations == []


def test_somebody_faster_on_the_branch_is_not_run_over(hub, workspace, folder) -> None:
    repo = hub.add("dataset", REPO)
    parcel = pack(folder, workspace)
    sender = Hub(Target(REPO, "dataset"), HfApi(endpoint=hub.url, token=TOKEN), print)
    look = sender._have_branch

    def meanwhile() -> str:
        head = look()
        repo.commit("main", {}, "somebody else")
        return head

    sender._have_branch = meanwhile
    with pytest.raises(StageError, match="HTTP 412 A commit has happened since") as error:
        sender.send(parcel, card(parcel, REPO))
    assert "rerun to commit on top" in error.value.fix and repo.at("main").message == "somebody else"


def test_a_file_that_the_hub_ignores_is_not_passed_over_in_silence(hub, workspace, folder) -> None:
    hub.add("dataset", REPO).ignored = "failures.jsonl"
    with pytest.raises(StageError, match=r"failures.jsonl is not in me/stories after the commit"):
        send(hub, pack(folder, workspace))


def test_a_file_that_changes_while_it_is_sent_is_found(hub, workspace, folder) -> None:
    parcel = pack(folder, workspace)
    (folder / "chat" / "dataset.jsonl").write_bytes(ROW * 2 + b'{"messages": 1}\n')
    with pytest.raises(StageError, match=r"holds other bytes in chat/dataset.jsonl"):
        send(hub, parcel)


def test_private_does_not_put_data_into_a_public_repository(hub, workspace, folder) -> None:
    hub.add("dataset", REPO)
    with pytest.raises(ConfigError, match="exists and is public"):
        send(hub, pack(folder, workspace), private=True)
    assert hub.operations == []


def test_a_model_goes_to_a_model_repository(hub, workspace) -> None:
    files = {
        "model-f16.gguf": b"GGUF" + bytes(20_000),
        "MODEL_CARD.md": b"---\nlicense: mit\n---\n\n# Toy\n\n## Lineage\n\nnone\n",
    }
    folder = seal(workspace, "checkpoints/toy/gguf", files, stage="120_convert_gguf")
    parcel = pack(folder, workspace)
    send(hub, parcel)
    text = hub.files("model", REPO)["README.md"].decode()
    front = CardData(**json_of(text)).to_dict()
    assert parcel.kind == "model" and front["license"] == "mit" and front["library_name"] == "gguf"
    assert text.count("## Lineage") == 1 and parcel.files[2].sha256 in text


def json_of(text: str) -> dict:
    import yaml

    return yaml.safe_load(text.split("---\n")[1])


def test_the_card_tells_the_viewer_what_to_show(workspace, folder) -> None:
    parcel = pack(folder, workspace)
    front = json_of(card(parcel, REPO))
    assert front["configs"] == [
        {
            "config_name": "chat",
            "data_files": [{"split": "train", "path": "chat/dataset.jsonl"}],
            "default": True,
        },
        {"config_name": "stories", "data_files": [{"split": "train", "path": "stories/dataset.jsonl"}]},
    ]
    assert front["size_categories"] == ["1K<n<10K"] and "synthetic" in front["tags"]
    text = card(parcel, REPO)
    assert "About cows." in text and "| stories/dataset.jsonl | 1,000 | 18,000 |" in text
    assert parcel.manifest.output_digest in text
    assert all(file.sha256 in text for file in parcel.files)
    assert is_untouched(text) and not is_untouched(text.replace("cows", "pigs"))


def test_the_card_names_sources_waivers_and_what_was_measured(workspace) -> None:
    digest = "ab" * 32
    source = {"name": "books", "kind": "hub", "id": "them/books", "requested_revision": "", "digest": digest}
    source |= {"resolved_revision": "", "files": [], "rows_read": 1, "rows_kept": 1}
    waiver = {"stage": "20_prepare_corpus", "role": "corpus", "verdict": "stale", "component": "config.seed"}
    waiver |= {"before": "0", "after": "1", "reason": "a trial", "at": "50_pretrain"}
    key = compute_key("50_pretrain", 1, {"seed": 0}, {}, {"books": digest})
    more = {
        "sources": [source],
        "mismatches_allowed": [waiver],
        "metrics": {"loss": {"val": 1.5}},
        "key": key,
    }
    folder = seal(workspace, "checkpoints/toy/base", {"config.json": b"{}"}, stage="50_pretrain", **more)
    text = card(pack(folder, workspace), REPO)
    assert "books (them/books) abababababab" in text and "| loss.val | 1.5 |" in text
    assert "- 20_prepare_corpus corpus: stale config.seed: a trial" in text
    assert json_of(text)["library_name"] == "transformers"


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (
            ["train/00000.jsonl.zst", "val/00000.jsonl.zst", "removed/x.jsonl.zst"],
            [("train", "train/*.jsonl.zst"), ("validation", "val/*.jsonl.zst")],
        ),
        (
            ["train.rows.jsonl.zst", "test.rows.jsonl.zst", "train.bin"],
            [("train", "train.rows.jsonl.zst"), ("test", "test.rows.jsonl.zst")],
        ),
        (["dataset.jsonl"], [("train", "dataset.jsonl")]),
        (["report.json"], []),
    ],
)
def test_the_viewer_shows_the_splits_of_every_kind_of_dataset(paths, expected) -> None:
    configs = viewer_configs([SentFile(path, 1, "") for path in paths])
    found = [(entry["split"], entry["path"]) for config in configs for entry in config["data_files"]]
    assert found == expected


def test_a_folder_without_a_manifest_is_refused(workspace) -> None:
    seal(workspace, "data/toy/generated", FILES)
    (workspace.root / "data/toy/generated/manifest.json").unlink()
    with pytest.raises(UpstreamError, match=r"not uploaded: incomplete \(no manifest.json\)") as error:
        pack(workspace.root / "data/toy/generated", workspace)
    assert error.value.exit_code == 3 and "finish it first" in error.value.fix


def test_a_folder_that_is_not_there_is_a_usage_error(workspace) -> None:
    with pytest.raises(ConfigError, match="data/toy/none is not a folder"):
        pack(workspace.root / "data/toy/none", workspace)


@pytest.mark.parametrize("name", [".env", "notes.txt", "chat/.env"])
def test_a_file_outside_the_manifest_is_refused(name, workspace, folder) -> None:
    (folder / name).write_text("LAB_KEY=4f9a8b7c6d")
    with pytest.raises(UpstreamError, match=f"tampered .extra file: {name}"):
        pack(folder, workspace)


def test_a_changed_file_is_refused(workspace, folder) -> None:
    (folder / "chat" / "dataset.jsonl").write_bytes(ROW * 2 + b'{"messages": 1}\n')
    with pytest.raises(UpstreamError, match="tampered .chat/dataset.jsonl"):
        pack(folder, workspace)


def test_a_secret_in_a_listed_file_is_refused_and_not_repeated(workspace) -> None:
    secret = "hf_" + "s9" * 17
    folder = seal(workspace, "data/toy/g", {"a/dataset.jsonl": ROW + secret.encode()})
    with pytest.raises(StageError, match=r"a/dataset.jsonl, line 2: a Hugging Face token") as error:
        pack(folder, workspace)
    assert secret not in error.value.report()


@pytest.mark.parametrize("place", ["environment", ".env"])
@pytest.mark.parametrize("gone", ["data/toy/generated", "data/.lockstep"])
def test_the_key_that_a_config_of_the_chain_names_is_looked_for(place, gone, workspace, monkeypatch) -> None:
    if place == ".env":
        (workspace.root / ".env").write_text("LAB_KEY=correct horse battery\n")
    else:
        monkeypatch.setenv("LAB_KEY", "correct horse battery")
    resolved = {"providers": {"lab": {"api_key_env": "LAB_KEY"}}}
    parent = seal(workspace, "data/toy/generated", FILES, resolved=resolved)
    manifest = json.loads((parent / "manifest.json").read_text())
    record = {
        "role": "generated",
        "path": "data/toy/generated",
        "stage": "10_generate",
        "run_id": "0" * 32,
        "output_digest": manifest["output_digest"],
        "manifest_sha256": manifest["manifest_sha256"],
    }
    key = compute_key("60_prepare_sft", 1, {"seed": 0}, {"generated": manifest["output_digest"]}, {})
    files = {"stats.json": b'{"note": "correct horse battery"}'}
    child = seal(workspace, "data/toy/sft", files, stage="60_prepare_sft", inputs=[record], key=key)
    shutil.rmtree(workspace.path(gone))
    with pytest.raises(StageError, match=r"stats.json, line 1: a key that is in use"):
        pack(child, workspace)
