"""Stage 50 on raw text: trained, killed, resumed, and what it refuses."""

import json
import shutil

import pytest
import torch

from tests.chat.toy_chain import questions
from tests.dying import die, dying_at
from tests.scripts.test_50_pretrain import CONFIG, build_inputs, manifest, run
from utils.pipeline.held_out import corpora_behind
from utils.pipeline.inputs import Input
from utils.pipeline.verify import Verifier
from utils.pipeline.workspace import Workspace

INPUTS = {"tokenizer": "data/toy/tokenizer", "raw": [{"path": "data/raw/corpus/*.txt"}]}
RAW = CONFIG | {
    "inputs": INPUTS,
    "budget": {"unit": "steps", "value": 24},
    "global_batch_tokens": 512,
    "micro_batch_rows": 4,
    "eval_every_steps": 12,
    "save_every_steps": 5,
}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Workspace:
    torch.set_num_threads(1)
    workspace = build_inputs(tmp_path_factory.mktemp("raw"))
    texts = [f"{question} yes, {colour}" for question, colour in questions()]
    documents = [f"{text} {texts[i % 7]}" for i in range(40) for text in texts]
    folder = workspace.path("data/raw/corpus")
    folder.mkdir(parents=True)
    for name, part in (("a", documents[::2]), ("b", documents[1::2])):
        (folder / f"{name}.txt").write_text("\n\n".join(part))
    assert run(workspace, "50_pretrain", RAW) == 0
    return workspace


@pytest.fixture
def copy(built, tmp_path) -> Workspace:
    shutil.copytree(built.root, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoints"))
    return Workspace(tmp_path / "copy", built.stages)


def base(workspace: Workspace) -> dict:
    return manifest(workspace.path("checkpoints/toy/base"))


def test_it_learns_and_names_its_sources(built):
    found = base(built)
    assert found["metrics"]["val_loss"] < found["metrics"]["unigram_loss"]
    assert found["metrics"]["initial_val_loss"] == pytest.approx(found["metrics"]["uniform_loss"], abs=0.1)
    (source,) = found["sources"]
    assert source["name"] == "raw.0" and [file["path"][-5:] for file in source["files"]] == ["a.txt", "b.txt"]
    log = built.path("checkpoints/toy/base/log/events.jsonl").read_text()
    assert "*.txt about 0.15 epochs of about 0.08 M tokens" in log


@pytest.mark.parametrize("step", [3, 13])
def test_a_killed_run_continues_to_the_same_bytes(built, copy, step):
    with dying_at(step):
        assert run(copy, "50_pretrain", RAW) == 4
    assert run(copy, "50_pretrain", RAW) == 0
    assert base(copy)["output_digest"] == base(built)["output_digest"]
    newest = "checkpoints/toy/base/checkpoints/step_00000024/trainer.json"
    ours, theirs = (json.loads(each.path(newest).read_text())["cursor"] for each in (copy, built))
    assert ours == theirs and ours["step"] == 24


@pytest.mark.parametrize("when", ["during", "between"])
def test_a_change_of_the_text_is_refused(copy, capsys, when):
    path = copy.path("data/raw/corpus/b.txt")

    def change() -> None:
        path.write_text(path.read_text() + "\n\none more")

    acts = {"during": (23, change), "between": (7, die)}
    with dying_at(*acts[when]):
        assert run(copy, "50_pretrain", RAW) == (3 if when == "during" else 4)
    if when == "between":
        change()
        assert run(copy, "50_pretrain", RAW) == 3
    assert "raw.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": {"unit": "epochs", "value": 1}}, "which raw text does not tell"),
        ({"inputs": INPUTS | {"data": [{"path": "data/toy/packed"}]}}, 'name either "data"'),
        ({"inputs": {"tokenizer": "data/toy/tokenizer"}}, 'name either "data"'),
        ({"inputs": INPUTS | {"raw": [{"path": "data/raw/none.txt"}]}}, "no file matches"),
    ],
)
def test_what_raw_text_cannot_do_is_said_before_anything_runs(copy, capsys, change, message):
    assert run(copy, "50_pretrain", RAW | change) == 2
    assert message in capsys.readouterr().err


def test_jsonl_of_the_same_documents_trains_alike(copy, built):
    folder = copy.path("data/raw/corpus")
    for name in ("a", "b"):
        texts = (folder / f"{name}.txt").read_text().split("\n\n")
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps({"body": text}) for text in texts))
    raw = [{"path": "data/raw/corpus/*.jsonl", "field": "body"}]
    assert run(copy, "50_pretrain", RAW | {"inputs": INPUTS | {"raw": raw}}) == 0
    ours, theirs = base(copy)["metrics"], base(built)["metrics"]
    assert ours["val_loss"] == pytest.approx(theirs["val_loss"], abs=0.3)
    assert ours["unigram_loss"] == pytest.approx(theirs["unigram_loss"], abs=0.1)


def test_nobody_knows_whether_raw_text_holds_what_is_measured(built):
    verifier = Verifier(built)
    folder = built.path("checkpoints/toy/base")
    (found,) = corpora_behind([Input("base", folder, verifier.manifest(folder))], verifier)
    assert found.path == "checkpoints/toy/base" and found.is_unknown and not found.is_corpus
