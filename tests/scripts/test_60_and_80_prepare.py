"""Stages 60 and 80 as a user runs them: golden digests, files of one's own, refusals."""

import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import zstandard

from tests.chat.toy_chain import PREFERENCE_DATA, SFT_DATA, build_upstream, edited, run, toy_workspace
from utils.packing.rows import RowsDataset
from utils.pipeline.manifest import Manifest, read_manifest
from utils.pipeline.workspace import Workspace

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = toy_workspace(tmp_path_factory.mktemp("toy"))
    build_upstream(workspace)
    assert run(workspace, "60_prepare_sft", SFT_DATA) == 0
    assert run(workspace, "80_prepare_preferences", PREFERENCE_DATA) == 0
    return workspace


def manifest(workspace: Workspace, folder: str) -> Manifest:
    return read_manifest(workspace.path(folder))[0]


def rows(workspace: Workspace, folder: str, name: str) -> list[dict]:
    data = zstandard.ZstdDecompressor().stream_reader(workspace.path(f"{folder}/{name}").read_bytes()).read()
    return [json.loads(line) for line in data.splitlines()]


def content_sha256(path: Path) -> str:
    """Of what is in the file: another version of zstandard may write other bytes for the same rows."""
    data = path.read_bytes()
    if path.suffix == ".zst":
        data = zstandard.ZstdDecompressor().stream_reader(data).read()
    return hashlib.sha256(data).hexdigest()


def put(workspace: Workspace, name: str, lines: list) -> str:
    """Write rows to a file below the root; its path."""
    path = workspace.path(f"data/raw/{name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(json.dumps(lines) if name.endswith(".json") else text, encoding="utf-8")
    return f"data/raw/{name}"


def local(workspace: Workspace, lines: list, name: str = "mine.jsonl", **changes: object) -> dict:
    source = {"name": "mine", "kind": "local", "paths": [put(workspace, name, lines)]} | changes
    return edited(SFT_DATA, output="data/toy/other", sources=[source])


def qa(count: int) -> list[dict]:
    return [{"question": f"what is {i}?", "answer": f"it is {i}."} for i in range(count)]


@pytest.mark.parametrize(
    ("stage", "document"), [("60_prepare_sft", SFT_DATA), ("80_prepare_preferences", PREFERENCE_DATA)]
)
def test_outputs_are_those_of_the_golden_file(workspace: Workspace, stage: str, document: dict) -> None:
    """Outputs changed? Then bump stage_version of the config class and write the new digests here."""
    found = {
        output.path: content_sha256(workspace.path(f"{document['output']}/{output.path}"))
        for output in manifest(workspace, document["output"]).outputs
    }
    golden = json.loads((GOLDEN / f"{stage}.json").read_text(encoding="utf-8"))
    assert found == golden["outputs"], "outputs changed, bump stage_version"


def test_the_template_is_part_of_the_tokenizer_from_here_on(workspace: Workspace) -> None:
    before = manifest(workspace, "data/toy/tokenizer").tokenizer
    for folder in ("data/toy/sft", "data/toy/preferences"):
        block = manifest(workspace, folder).tokenizer
        assert before["chat_template_sha256"] == "" != block["chat_template_sha256"]
        assert block["pieces_sha256"] == before["pieces_sha256"]
        source = workspace.path("config/templates/chatml.jinja").read_bytes()
        assert workspace.path(f"{folder}/chat_template.jinja").read_bytes() == source


def test_rows_and_documents_go_together(workspace: Workspace) -> None:
    for folder, sides in (("data/toy/sft", 1), ("data/toy/preferences", 2)):
        for split in ("train", "val", "test"):
            data, kept = (
                RowsDataset(workspace.path(folder), split),
                rows(workspace, folder, f"{split}.rows.jsonl.zst"),
            )
            assert data.num_documents == sides * len(kept) > 0
            ids = [bytes(i).hex() for i in data.index.documents.ids[::sides]]
            assert ids == [row["id"] for row in kept]


def test_held_out_prompts_are_held_out_of_both_stages(workspace: Workspace) -> None:
    chats = {
        row["messages"][0]["content"]: split
        for split in ("train", "val", "test")
        for row in rows(workspace, "data/toy/sft", f"{split}.rows.jsonl.zst")
    }
    pairs = {
        row["prompt"][0]["content"]: split
        for split in ("train", "val", "test")
        for row in rows(workspace, "data/toy/preferences", f"{split}.rows.jsonl.zst")
    }
    assert chats == pairs and set(chats.values()) == {"train", "val", "test"}


def test_files_of_several_formats_are_each_read_in_their_own(workspace: Workspace) -> None:
    put(workspace, "mixed/a.jsonl.gz", qa(30))
    put(
        workspace,
        "mixed/b.json",
        [{"instruction": f"say {i}", "input": "", "response": f"so {i}"} for i in range(30)],
    )
    document = edited(
        SFT_DATA,
        output="data/toy/other",
        sources=[{"name": "mine", "kind": "local", "paths": ["data/raw/mixed/*"]}],
    )
    assert run(workspace, "60_prepare_sft", document) == 0
    found = manifest(workspace, "data/toy/other")
    assert found.metrics["formats"] == {"mine": ["qa", "alpaca"]}
    assert (found.sources[0].rows_read, found.sources[0].rows_kept) == (60, 60)


def test_limit_rows_counts_over_the_files_of_a_source(workspace: Workspace) -> None:
    put(workspace, "limit/a.jsonl", qa(20))
    put(workspace, "limit/b.jsonl", qa(60)[20:])
    source = {"name": "mine", "kind": "local", "paths": ["data/raw/limit/*"], "limit_rows": 35}
    assert run(workspace, "60_prepare_sft", edited(SFT_DATA, output="data/toy/other", sources=[source])) == 0
    assert manifest(workspace, "data/toy/other").metrics["rows"]["read"] == 35


def test_rejected_rows_are_kept_with_line_and_reason(workspace: Workspace) -> None:
    path = workspace.path(put(workspace, "bad.jsonl", qa(60)))
    with open(path, "ab") as file:
        file.write(b'{"question": "cut off\n{"question": "\xff", "answer": "b"}\n')
        file.write(json.dumps({"question": "same?", "answer": "same?"}).encode() + b"\n")
        file.write(json.dumps(qa(1)[0]).encode() + b"\n")
    source = {"name": "mine", "kind": "local", "paths": ["data/raw/bad.jsonl"]}
    document = edited(SFT_DATA, output="data/toy/other", sources=[source], max_rejected_fraction=0.1)
    assert run(workspace, "60_prepare_sft", document) == 0
    left_out = rows(workspace, "data/toy/other", "rejected.jsonl.zst")
    assert [(row["line"], row["reason"]) for row in left_out] == [
        (61, "bad_json"),
        (62, "bad_utf8"),
        (63, "echo"),
        (64, "duplicate"),
    ]
    counts = manifest(workspace, "data/toy/other").metrics["rows"]
    assert counts == {"read": 64, "kept": 60, "rejected": 4}


REFUSED = [
    ({"template": "missing"}, 2, "config/templates/missing.jinja"),
    ({"tempalte": "chatml"}, 2, 'unknown key "tempalte" (did you mean "template"?)'),
    ({"split": {"val_fraction": 0.6, "test_fraction": 0.4}}, 2, "leave nothing for training"),
    ({"split": {"val_fraction": 1e-6}}, 4, 'the split "val" is empty'),
    ({"max_conversation_tokens": 8}, 4, "100.0% of 40 rows were rejected, at most 5.0% may be: too_long 40"),
    ({"inputs": {"tokenizer": "data/toy/nowhere"}}, 3, "missing"),
]


@pytest.mark.parametrize(
    ("changes", "code", "message"), REFUSED, ids=[message[:25] for _, _, message in REFUSED]
)
def test_refusals(
    workspace: Workspace, capsys: pytest.CaptureFixture, changes: dict, code: int, message: str
) -> None:
    document = edited(local(workspace, qa(40)), output="data/toy/refused", **changes)
    assert run(workspace, "60_prepare_sft", document) == code
    shown = capsys.readouterr()
    assert message in shown.out + shown.err
    assert not workspace.path("data/toy/refused/manifest.json").exists()


SOURCES = [
    ([{"x": "y"}] * 3, {}, 2, "no single chat format fits (of 3 rows: 3 of no known format)"),
    (qa(5) + [{"instruction": "a", "output": "b"}] * 5, {}, 2, "5 qa, 5 alpaca"),
    ([row | {"context": "c"} for row in qa(5)], {}, 2, 'the format does not use "context" (5 rows)'),
    (qa(5), {"fields": {"answer": "reply"}}, 2, 'is mapped from "reply", which none of the first 5 rows has'),
    (qa(5), {"kind": "generated"}, 2, 'of kind "generated" needs "dataset"'),
    (qa(5), {"kind": "generated", "dataset": "chat"}, 2, 'of kind "generated" takes no "paths"'),
    (qa(5), {"revision": "main"}, 2, 'of kind "local" takes no "revision"'),
    (qa(5), {"paths": ["data/raw/none*"]}, 2, "no file matches data/raw/none*"),
]


@pytest.mark.parametrize(
    ("lines", "changes", "code", "message"), SOURCES, ids=[message[:25] for *_, message in SOURCES]
)
def test_sources_that_cannot_be_read(
    workspace: Workspace, capsys: pytest.CaptureFixture, lines: list, changes: dict, code: int, message: str
) -> None:
    assert run(workspace, "60_prepare_sft", local(workspace, lines, **changes)) == code
    shown = capsys.readouterr()
    assert message in shown.out + shown.err


def test_pairs_are_rejected_with_their_reasons(workspace: Workspace) -> None:
    good = [{"prompt": f"q {i}", "chosen": "good", "rejected": "bad"} for i in range(60)]
    odd = [
        good[0],
        good[1] | {"chosen": "bad"},
        good[2] | {"chosen": " "},
        good[3] | {"chosen": "long " * 80},
    ]
    path = put(workspace, "pairs.jsonl", good + odd)
    source = {"name": "mine", "kind": "local", "paths": [path]}
    document = edited(
        PREFERENCE_DATA, output="data/toy/other_pairs", sources=[source], max_rejected_fraction=0.1
    )
    assert run(workspace, "80_prepare_preferences", document) == 0
    reasons = manifest(workspace, "data/toy/other_pairs").metrics["rejected_by_reason"]
    assert reasons == {"duplicate_pair": 1, "identical": 1, "empty_response": 1, "too_long": 1}
    card = workspace.path("data/toy/other_pairs/DATA_CARD.md").read_text(encoding="utf-8")
    assert "The chosen answer is the longer one in" in card


def test_a_second_run_is_up_to_date_and_a_rebuild_gives_the_same_bytes(workspace: Workspace) -> None:
    before = manifest(workspace, "data/toy/sft")
    assert run(workspace, "60_prepare_sft", SFT_DATA) == 0
    assert manifest(workspace, "data/toy/sft") == before
    assert run(workspace, "60_prepare_sft", SFT_DATA, "--force") == 0
    assert manifest(workspace, "data/toy/sft").output_digest == before.output_digest


def test_both_sides_of_a_pair_share_their_prompt(workspace: Workspace) -> None:
    data = RowsDataset(workspace.path("data/toy/preferences"), "train")
    for k in range(data.num_documents // 2):
        (chosen, first), (rejected, second) = data.document(2 * k), data.document(2 * k + 1)
        start = int(np.argmax(first))
        assert start == int(np.argmax(second)) > 0
        assert np.array_equal(chosen[:start], rejected[:start]) and chosen[-1] == rejected[-1]
