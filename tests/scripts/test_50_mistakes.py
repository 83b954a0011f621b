"""Stage 50 given a mistake: one message that names it and the edit, an exit code, and nothing in the way."""

import json
import math
import shutil

import pytest
import torch

from tests.chat.toy_chain import script
from tests.scripts.test_50_pretrain import CONFIG, build_inputs, manifest, run
from utils.config.pretrain import PretrainConfig
from utils.pipeline.errors import lacking_resource
from utils.pipeline.stage import execute
from utils.pipeline.workspace import Workspace
from utils.training.precision import usable_cores

SHORT = CONFIG | {"budget": {"unit": "steps", "value": 4}, "eval_every_steps": 2, "save_every_steps": 2}
OUTPUT = "checkpoints/toy/base"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Workspace:
    torch.set_num_threads(1)
    return build_inputs(tmp_path_factory.mktemp("mistakes"))


@pytest.fixture
def copy(inputs, tmp_path) -> Workspace:
    shutil.copytree(inputs.root, tmp_path / "copy")
    return Workspace(tmp_path / "copy", inputs.stages)


def shape(workspace: Workspace, name: str, **changes: object) -> None:
    """An architecture file beside `toy`; a key that is given as None is left out."""
    found = json.loads(workspace.path("config/architectures/toy.json").read_text()) | changes
    kept = {key: value for key, value in found.items() if value is not None}
    workspace.path(f"config/architectures/{name}.json").write_text(json.dumps(kept))


def dry_run(workspace: Workspace, document: dict, *arguments: str) -> int:
    path = workspace.path("config/toy/50_pretrain.json")
    path.write_text(json.dumps(document))
    stage, given = script("50_pretrain"), ["--config", str(path), "--dry-run", *arguments]
    return execute("50_pretrain", PretrainConfig, stage.main, given, workspace, forecast=stage.forecast)


@pytest.mark.parametrize(
    ("change", "message", "fix"),
    [
        ({"global_batch_tokens": 10**12}, "a step would read the same row twice", '"global_batch_tokens": '),
        ({"global_batch_tokens": 20}, "is less than one row of 32 tokens", '"global_batch_tokens": 32 or'),
        ({"micro_batch_rows": 3}, "3 does not divide the 8 rows", '"micro_batch_rows": 1 or 2 or 4 or 8, or'),
        (
            {"model": "narrow"},
            "a context of 16 tokens, the data has rows of 32",
            '"context_length_tokens": 32',
        ),
        ({"precision": "fp64"}, 'did you mean "fp16"?); known: auto, fp32, bf16, fp16', ""),
        (
            {"inputs": CONFIG["inputs"] | {"data": 2 * [{"path": "data/toy/packed"}]}},
            "data/toy/packed is named twice",
            "",
        ),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_its_edit(copy, capsys, change, message, fix):
    shape(copy, "narrow", context_length_tokens=16)
    assert run(copy, "50_pretrain", SHORT | change) == 2
    said = capsys.readouterr().err
    assert message in said and fix in said


def test_what_was_never_trained_stands_in_nobody_s_way(copy, capsys):
    shape(copy, "mine", hidden_size=None)
    mine = SHORT | {"model": "mine"}
    assert dry_run(copy, mine) == 2
    assert "would build" not in capsys.readouterr().out
    assert not copy.path(f"{OUTPUT}.partial").exists()
    assert run(copy, "50_pretrain", mine) == 2
    assert copy.path(f"{OUTPUT}.partial").is_dir()
    shape(copy, "mine")
    assert dry_run(copy, mine) == 0
    assert "steps = ceil(" in capsys.readouterr().out
    assert run(copy, "50_pretrain", mine) == 0


def test_a_dry_run_refuses_what_the_run_refuses(copy, capsys):
    mine = SHORT | {"optimizer": {"learning_rate": 1e30}, "max_consecutive_skips": 2}
    assert run(copy, "50_pretrain", mine) == 4
    for start in (dry_run, lambda copy, document: run(copy, "50_pretrain", document)):
        assert start(copy, SHORT) == 3
        assert "config.optimizer.learning_rate" in capsys.readouterr().err
    assert dry_run(copy, SHORT, "--resume", "never") == 0


def test_skipped_steps_name_the_weights_of_the_checkpoint_and_the_way_on(copy, capsys):
    wild = SHORT | {"optimizer": {"learning_rate": 1e30}, "max_consecutive_skips": 2, "save_every_steps": 1}
    assert run(copy, "50_pretrain", wild) == 4
    said = capsys.readouterr().err
    assert "the last good checkpoint is step_00000002, if step 1 was good" in said
    assert "--resume never" in said


def test_a_run_that_diverged_says_so_and_blames_no_offset(copy, capsys):
    wild = SHORT | {"optimizer": {"learning_rate": 30.0}, "schedule": {"kind": "constant", "warmup_steps": 1}}
    assert run(copy, "50_pretrain", wild) == 0
    said = "".join(capsys.readouterr())
    folder = copy.path(OUTPUT)
    metrics = manifest(folder)["metrics"]
    assert metrics["val_loss"] > math.log(1e9) and "(ppl >1e9)" in said
    (notice,) = metrics["notices"]
    assert "worse than those before step 1" in notice and notice in said
    assert notice in (folder / "MODEL_CARD.md").read_text() and "offset probe" not in said


def test_a_sound_run_has_no_notice_and_is_asked_for_its_offset(copy, capsys):
    assert run(copy, "50_pretrain", SHORT) == 0
    assert "notices" not in manifest(copy.path(OUTPUT))["metrics"]
    assert capsys.readouterr().out.count("offset probe") == 1


def test_more_threads_than_cores_are_used_with_a_warning(copy, capsys):
    assert run(copy, "50_pretrain", SHORT | {"cpu_threads": usable_cores() + 1}) == 0
    torch.set_num_threads(1)
    assert f"and this process may use {usable_cores()} cores: slower" in "".join(capsys.readouterr())


def test_other_threads_in_a_continued_run_are_told(copy, capsys):
    wild = SHORT | {"optimizer": {"learning_rate": 1e30}, "max_consecutive_skips": 2}
    assert run(copy, "50_pretrain", wild) == 4
    assert run(copy, "50_pretrain", wild | {"cpu_threads": 2}) == 4
    torch.set_num_threads(1)
    assert "threads was 1, is 2: other last bits" in capsys.readouterr().out


def test_a_continued_run_names_the_other_architecture(copy, capsys):
    assert run(copy, "50_pretrain", SHORT) == 0
    shape(copy, "wide", ffn_size=128)
    more = SHORT | {"output": "checkpoints/toy/more", "continue_from": OUTPUT, "model": "wide"}
    assert run(copy, "50_pretrain", more) == 2
    assert 'was made with toy, this config says wide\n  fix       give "model"' in capsys.readouterr().err
    shape(copy, "toy", ffn_size=128)
    assert run(copy, "50_pretrain", more | {"model": "toy"}) == 2
    assert "was made with toy of " in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_field_that_the_text_does_not_have_is_named_with_those_it_has(copy, capsys, kind):
    rows = [{"id": i, "text": f"is the cat {i} red"} for i in range(50)]
    folder = copy.path("data/raw/corpus")
    folder.mkdir(parents=True)
    (folder / "w.jsonl").write_text("\n" + "\n".join(map(json.dumps, rows)))
    if kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "w.parquet")
    raw = {"path": f"data/raw/corpus/w.{kind}", "field": "txt"}
    wrong = {key: value for key, value in CONFIG["inputs"].items() if key != "data"} | {"raw": [raw]}
    assert run(copy, "50_pretrain", SHORT | {"inputs": wrong}) == 2
    said = capsys.readouterr().err
    assert f'data/raw/corpus/w.{kind} has no field "txt"; it has id, text' in said and '"field"' in said


def test_words_of_torch_for_a_full_memory_are_known():
    text = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"
    assert lacking_resource(RuntimeError(text)) == "out of memory"
    assert not lacking_resource(RuntimeError("shapes differ"))


@pytest.mark.parametrize("place", ["models.load.build_model", "training.loop.frozen_digest"])
def test_a_model_that_does_not_fit_is_one_message(copy, capsys, monkeypatch, place):
    def full(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(f"utils.{place}", full)
    assert run(copy, "50_pretrain", SHORT) == 4
    said = capsys.readouterr().err
    assert "out of memory while toy was built on cpu: its " in said and 'a smaller "model"' in said
    assert "Traceback" not in said
