"""Stages 70 and 90 on toy artifacts: what they write and refuse, kill -9 and resume to the same weights."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from tests.chat import toy_child, toy_ranks
from tests.chat.toy_chain import (
    PREFERENCE_DATA,
    PREFERENCES,
    SFT,
    SFT_DATA,
    UPSTREAM,
    build_upstream,
    edited,
    run,
    toy_workspace,
)
from tests.training.ranks import finish_ranks, run_ranks, start_ranks
from utils.models.adapt import attach_adapter, is_adapter
from utils.models.load import load_model
from utils.pipeline.manifest import Manifest, read_manifest
from utils.pipeline.workspace import Workspace
from utils.serving import batch
from utils.training import examine_tuning, pairs

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    torch.set_num_threads(1)
    workspace = toy_workspace(tmp_path_factory.mktemp("toy"))
    build_upstream(workspace)
    assert run(workspace, "60_prepare_sft", SFT_DATA) == 0
    assert run(workspace, "80_prepare_preferences", PREFERENCE_DATA) == 0
    assert run(workspace, "70_train_sft", SFT) == 0
    assert run(workspace, "90_train_preferences", PREFERENCES) == 0
    return workspace


def manifest(workspace: Workspace, folder: str) -> Manifest:
    return read_manifest(workspace.path(folder))[0]


def weights(workspace: Workspace, folder: str) -> dict[str, torch.Tensor]:
    name = "adapter_model" if is_adapter(workspace.path(folder)) else "model"
    return load_file(workspace.path(f"{folder}/{name}.safetensors"))


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_the_adapter_folder_holds_what_a_model_needs_and_no_base_weights(prepared: Workspace) -> None:
    folder = prepared.path("checkpoints/toy/sft")
    assert {output.path for output in manifest(prepared, "checkpoints/toy/sft").outputs} == {
        "adapter_config.json", "adapter_model.safetensors", "generation_config.json", "chat_template.jinja",
        "MODEL_CARD.md", "tokenizer.model", "tokenizer.json", "tokenizer_config.json",
        "samples.jsonl", "history.jsonl",
    }  # fmt: skip
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == prepared.path(f"data/toy/tokenizer/{name}").read_bytes()
    stops = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert stops == [2, 5]
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    assert AutoTokenizer.from_pretrained(folder).chat_template == template
    assert template == prepared.path("config/templates/chatml.jinja").read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", ["checkpoints/toy/sft", "checkpoints/toy/preferences"])
def test_an_adapter_records_the_base_it_stands_on(prepared: Workspace, folder: str) -> None:
    base = manifest(prepared, "checkpoints/toy/base").output_digest
    assert manifest(prepared, folder).metrics["adapter_base"] == {"role": "base", "output_digest": base}


def test_training_improves_the_held_out_loss(prepared: Workspace) -> None:
    sft, preferences = (
        manifest(prepared, f"checkpoints/toy/{name}").metrics for name in ("sft", "preferences")
    )
    assert sft["val_loss"] < sft["initial_val_loss"] - 0.2
    assert preferences["initial_val_loss"] == pytest.approx(0.693147, abs=1e-6)
    assert preferences["val_loss"] < 0.6 and preferences["accuracy"] > 0.9
    assert preferences["accuracy_low"] < preferences["accuracy"] <= preferences["accuracy_high"]
    assert preferences["pairs_seen"] == sum_of_pairs(prepared)


def sum_of_pairs(workspace: Workspace) -> int:
    lines = workspace.path("checkpoints/toy/preferences/history.jsonl").read_text().splitlines()
    return max(json.loads(line).get("tokens", 0) for line in lines)


def test_samples_are_recorded_with_the_expected_answer(prepared: Workspace) -> None:
    lines = [
        json.loads(line)
        for line in prepared.path("checkpoints/toy/sft/samples.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines] == [0, 0, 4, 4, 8, 8, 12, 12]
    assert all(line["expected"].startswith("yes, ") and line["prompt"].startswith("is the") for line in lines)


@pytest.mark.parametrize(
    ("stage", "document"), [("70_train_sft", SFT), ("90_train_preferences", PREFERENCES)]
)
def test_what_is_read_more_than_four_times_is_said_and_kept(
    prepared: Workspace, capsys: pytest.CaptureFixture, stage: str, document: dict
) -> None:
    often = edited(document, output=f"checkpoints/toy/often_{stage[:2]}", max_steps=0, epochs=5.0)
    assert run(prepared, stage, often) == 0
    metrics, name = (
        manifest(prepared, often["output"]).metrics,
        Path(document["inputs"]["data"][0]["path"]).name,
    )
    (notice,) = metrics["overfitting"]
    assert notice.startswith(
        f"{name} is read {metrics['epochs']:.1f} times; beyond 4 repeated text adds little"
    )
    assert notice in capsys.readouterr().out
    assert notice in prepared.path(f"{often['output']}/MODEL_CARD.md").read_text()
    drawn = metrics["steps"] * metrics["batch_rows"]
    assert metrics["datasets"] == {name: {"weight": 1.0, "rows_drawn": drawn, "share": 1.0}}


def test_the_manifest_of_a_tuning_run_tells_what_auto_came_to(prepared: Workspace) -> None:
    found = manifest(prepared, "checkpoints/toy/sft").run.rates["schedule"]
    assert found["warmup_steps"] == {"asked": "auto", "resolved": 2, "reason": "by steps and beta2"}
    assert found["learning_rate"] == {"asked": 0.01, "resolved": 0.01, "reason": "asked for"}


def test_one_adapter_over_the_base_is_the_tuned_model(prepared: Workspace) -> None:
    """What stage 90 publishes does what it measured: the SFT adapter merged, and the new adapter on top."""
    from utils.packing.rows import RowsDataset

    base, folder = prepared.path("checkpoints/toy/base"), prepared.path("checkpoints/toy/preferences")
    model = attach_adapter(load_model(base), folder).eval()
    data = RowsDataset(prepared.path("data/toy/preferences"), "val")
    won = []
    for k in range(data.num_documents // 2):
        sides = []
        for i in (2 * k, 2 * k + 1):
            ids, trained = data.document(i)
            with torch.no_grad():
                lp = model(input_ids=torch.tensor(ids)[None]).logits[0].log_softmax(-1)
            sides.append(sum(float(lp[t - 1, ids[t]]) for t in range(1, len(ids)) if trained[t]))
        won.append(sides[0] > sides[1])
    measured = manifest(prepared, "checkpoints/toy/preferences").metrics["preference"]
    assert sum(won) / len(won) == pytest.approx(measured)


VARIANTS = [
    {"adapter": "continue", "reference": "cached"},
    {"adapter": "new", "reference": "cached"},
    {"adapter": "none", "reference": "cached"},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=["continue", "new", "none"])
def test_every_way_to_start_and_to_refer(prepared: Workspace, changes: dict) -> None:
    document = edited(
        PREFERENCES, output=f"checkpoints/toy/p_{changes['adapter']}_{changes['reference']}", **changes
    )
    assert run(prepared, "90_train_preferences", document) == 0
    metrics = manifest(prepared, document["output"]).metrics
    assert metrics["initial_val_loss"] == pytest.approx(0.693147, abs=1e-6) and metrics["val_loss"] < 0.68
    assert is_adapter(prepared.path(document["output"])) is (changes["adapter"] != "none")


def test_cached_and_adapter_off_give_the_same_run(prepared: Workspace) -> None:
    document = edited(PREFERENCES, output="checkpoints/toy/p_cached", reference="cached")
    assert run(prepared, "90_train_preferences", document) == 0
    left, right = (
        manifest(prepared, f).metrics for f in ("checkpoints/toy/p_cached", "checkpoints/toy/preferences")
    )
    for name in ("val_loss", "margin", "chosen_drop_nats"):
        assert left[name] == pytest.approx(right[name], abs=1e-4)


def test_full_tuning_then_a_new_adapter_on_its_weights(prepared: Workspace) -> None:
    full = edited(SFT, output="checkpoints/toy/full", tuning={"mode": "full"}, sample_prompts=0)
    assert run(prepared, "70_train_sft", full) == 0
    assert not is_adapter(prepared.path("checkpoints/toy/full"))
    assert "adapter_base" not in manifest(prepared, "checkpoints/toy/full").metrics
    document = edited(
        PREFERENCES, output="checkpoints/toy/p_full", inputs={"model": "checkpoints/toy/full", "base": ""}
    )
    assert run(prepared, "90_train_preferences", document) == 0
    digest = manifest(prepared, "checkpoints/toy/full").output_digest
    assert manifest(prepared, "checkpoints/toy/p_full").metrics["adapter_base"] == {
        "role": "model",
        "output_digest": digest,
    }


SFT_REFUSED = [
    ({"global_batch_tokens": 64_000}, 2, "a step would read the same row twice"),
    ({"row_tokens": 16}, 2, '"row_tokens": 16 is below the longest item of sft (train)'),
    ({"epochs": 1.0}, 2, "give either epochs or max_steps"),
    ({"tuning": {"target_modules": ["q_proj", "query"]}}, 2, 'no linear layer is called "query"'),
    (
        {"inputs": {"data": [{"path": "data/toy/preferences"}]}},
        2,
        'has the layout "pairs", this stage trains on "chat"',
    ),
    ({"micro_batch_rows": 3}, 2, '"micro_batch_rows": 3 does not divide the 4 rows'),
    ({"optimizer": {"learning_rate": -1}}, 2, "learning_rate -1.0 is below 0"),
]
PREFERENCES_REFUSED = [
    ({"global_batch_tokens": 64_000}, 2, "64,000 is 1,000 rows of 64 tokens, and there are only"),
    ({"row_tokens": 40}, 2, '"row_tokens": 40 is below the longest item of preferences (train)'),
    ({"method": "ipo"}, 2, "method"),
    ({"adapter": "continue"}, 2, 'reference "adapter_off" needs adapter "new"'),
    ({"inputs": {"base": ""}}, 2, "holds an adapter: name its base"),
    ({"inputs": {"model": "checkpoints/toy/base"}}, 2, "holds full weights: name no base"),
    (
        {"inputs": {"data": [{"path": "data/toy/sft"}]}},
        2,
        'has the layout "chat", this stage trains on "pairs"',
    ),
]
REFUSED = [("70_train_sft", SFT, *row) for row in SFT_REFUSED]
REFUSED += [("90_train_preferences", PREFERENCES, *row) for row in PREFERENCES_REFUSED]


@pytest.mark.parametrize(
    ("stage", "document", "changes", "code", "message"), REFUSED, ids=[row[4][:30] for row in REFUSED]
)
def test_refusals(
    prepared: Workspace,
    capsys: pytest.CaptureFixture,
    stage: str,
    document: dict,
    changes: dict,
    code: int,
    message: str,
) -> None:
    assert run(prepared, stage, edited(document, output="checkpoints/toy/refused", **changes)) == code
    shown = capsys.readouterr()
    assert message in shown.out + shown.err
    assert not prepared.path("checkpoints/toy/refused/manifest.json").exists()
    shutil.rmtree(prepared.path("checkpoints/toy/refused.partial"), ignore_errors=True)


def test_an_adapter_of_another_base_is_refused(prepared: Workspace, capsys: pytest.CaptureFixture) -> None:
    _, _, document = UPSTREAM["50_pretrain"]
    assert run(prepared, "50_pretrain", edited(document, output="checkpoints/toy/base2", seed=1)) == 0
    wrong = edited(PREFERENCES, output="checkpoints/toy/refused", inputs={"base": "checkpoints/toy/base2"})
    assert run(prepared, "90_train_preferences", wrong) == 3
    shown = capsys.readouterr()
    assert "base: adapter trained on" in shown.out + shown.err
    shutil.rmtree(prepared.path("checkpoints/toy/refused.partial"), ignore_errors=True)


def test_a_wrong_reference_trips_the_check_before_the_first_update() -> None:
    from utils.pipeline.errors import StageError
    from utils.preferences.measures import check_start

    check_start(0.69315, 0.693147, "fp32")
    with pytest.raises(
        StageError, match=r"before the first update is 0\.700000, with policy = reference it is 0\.693147"
    ):
        check_start(0.7, 0.693147, "fp32")
    check_start(0.7, 0.693147, "bf16")


@pytest.mark.parametrize(
    ("stage", "document"), [("70_train_sft", SFT), ("90_train_preferences", PREFERENCES)]
)
def test_kill_and_resume_gives_the_same_weights(prepared: Workspace, stage: str, document: dict) -> None:
    """kill -9 as soon as a checkpoint is there; the same command again ends in the same bytes."""
    document = edited(document, output=f"checkpoints/toy/killed_{stage[:2]}", save_every_steps=2)
    config = prepared.path(f"config/toy/killed_{stage}.json")
    config.write_text(json.dumps(document), encoding="utf-8")
    child = [sys.executable, toy_child.__file__, str(prepared.root), stage, str(config)]
    process = subprocess.Popen(child, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT)
    checkpoints = prepared.path(f"{document['output']}.partial/checkpoints")
    while process.poll() is None and not list(checkpoints.glob("step_*")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not prepared.path(document["output"]).exists()
    done = subprocess.run(child, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "resuming" in done.stdout
    whole = {"70_train_sft": "checkpoints/toy/sft", "90_train_preferences": "checkpoints/toy/preferences"}[
        stage
    ]
    assert equal(weights(prepared, document["output"]), weights(prepared, whole))
    left, right = (manifest(prepared, folder) for folder in (document["output"], whole))
    assert left.output_digest == right.output_digest


MOMENTS = [(1, signal.SIGTERM, 75), (2, signal.SIGINT, 130), (4, signal.SIGTERM, 75)]


@pytest.mark.parametrize(
    ("moment", "number", "code"), MOMENTS, ids=["before step 1", "step 4", "the last step"]
)
def test_a_signal_while_answers_are_written_leaves_the_evaluation_to_the_next_process(
    prepared: Workspace, monkeypatch: pytest.MonkeyPatch, moment: int, number: int, code: int
) -> None:
    answers, calls, written = batch.greedy_answers, [], []

    def signalled(*given: object, stopping: Callable[[], bool]) -> list[batch.Answer]:
        calls.append(given)
        if len(calls) == moment:
            os.kill(os.getpid(), number)
        found = answers(*given, stopping=stopping)
        written.append(sum(len(each.ids) for each in found))
        return found

    document = edited(SFT, output=f"checkpoints/toy/asked{moment}")
    with monkeypatch.context() as patch:
        patch.setattr(batch, "greedy_answers", signalled)
        assert run(prepared, "70_train_sft", document) == code
    assert len(written) == moment and not written[-1] and all(written[:-1])
    assert left_unevaluated(prepared, document) == 4 * (moment - 1)
    assert run(prepared, "70_train_sft", document) == 0
    whole = manifest(prepared, "checkpoints/toy/sft").output_digest
    assert manifest(prepared, document["output"]).output_digest == whole


@pytest.mark.parametrize(
    ("moment", "number", "code"), MOMENTS, ids=["before step 1", "step 4", "the last step"]
)
def test_a_signal_while_pairs_are_measured_leaves_the_evaluation_to_the_next_process(
    prepared: Workspace, monkeypatch: pytest.MonkeyPatch, moment: int, number: int, code: int
) -> None:
    """Between two of several batches; where they are cut changes last bits, so both runs cut alike."""
    measured, spread, calls = examine_tuning.held_out_logps, examine_tuning.spread_batches, []
    monkeypatch.setattr(examine_tuning, "spread_batches", partial(spread, rows_per_batch=1))

    def signalled(*given: object) -> tuple:
        calls.append(given)
        if len(calls) == stopped_at:
            os.kill(os.getpid(), number)
        return measured(*given)

    monkeypatch.setattr(examine_tuning, "held_out_logps", signalled)
    stopped_at, whole = 0, edited(PREFERENCES, output=f"checkpoints/toy/by_one{moment}")
    assert run(prepared, "90_train_preferences", whole) == 0
    evaluations = len([row for row in history(prepared, whole) if "val_loss" in row])
    per_evaluation = len(calls) // evaluations
    assert evaluations == 4 and per_evaluation > 2
    calls.clear()
    stopped_at = per_evaluation * (moment - 1) + 2
    document = edited(whole, output=f"checkpoints/toy/measured{moment}")
    assert run(prepared, "90_train_preferences", document) == code
    assert len(calls) == stopped_at
    assert left_unevaluated(prepared, document) == 4 * (moment - 1)
    assert run(prepared, "90_train_preferences", document) == 0
    assert (
        manifest(prepared, document["output"]).output_digest
        == manifest(prepared, whole["output"]).output_digest
    )


def history(workspace: Workspace, document: dict) -> list[dict]:
    lines = workspace.path(f"{document['output']}/history.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def left_unevaluated(workspace: Workspace, document: dict) -> int:
    """The step of the newest checkpoint, whose evaluation must be missing."""
    folder = max(workspace.path(f"{document['output']}.partial/checkpoints").glob("step_*"))
    state = json.loads((folder / "trainer.json").read_text())
    assert state["unevaluated"]
    return state["step"]


def test_a_signal_while_the_reference_is_computed_leaves_at_the_next_batch(
    prepared: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    score, calls = pairs.answer_logps, []

    def signalled(*given: object) -> torch.Tensor:
        calls.append(given)
        os.kill(os.getpid(), signal.SIGTERM)
        return score(*given)

    document = edited(PREFERENCES, output="checkpoints/toy/unreferred", reference="cached")
    with monkeypatch.context() as patch:
        patch.setattr(pairs, "answer_logps", signalled)
        assert run(prepared, "90_train_preferences", document) == 75
    assert len(calls) == 1
    assert run(prepared, "90_train_preferences", document) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "document"), [("70_train_sft", SFT), ("90_train_preferences", PREFERENCES)]
)
def test_a_signal_for_one_of_two_ranks_inside_an_evaluation(
    prepared: Workspace, stage: str, document: dict
) -> None:
    """The second evaluation, after step 4; both leave together, and end as two that nobody stopped."""
    calm, stopped = (
        edited(document, output=f"checkpoints/toy/{name}_{stage[:2]}") for name in ("calm", "stopped")
    )
    path = prepared.path("toy.json")
    path.write_text(json.dumps(calm), encoding="utf-8")
    run_ranks(prepared.root, stage, program=toy_ranks.__file__)
    path.write_text(json.dumps(stopped), encoding="utf-8")
    ranks = start_ranks(prepared.root, stage, program=toy_ranks.__file__, **{toy_ranks.STOPPED: "1 2"})
    codes, said = finish_ranks(ranks)
    assert codes == [75, 75], said
    assert left_unevaluated(prepared, stopped) == 4
    run_ranks(prepared.root, stage, program=toy_ranks.__file__)
    left, right = (manifest(prepared, each["output"]).output_digest for each in (calm, stopped))
    assert left == right


def test_resume_with_a_changed_learning_rate_is_refused(
    prepared: Workspace, capsys: pytest.CaptureFixture
) -> None:
    document = edited(SFT, output="checkpoints/toy/changed")
    partial = prepared.path("checkpoints/toy/changed.partial")
    config = prepared.path("config/toy/70_train_sft.changed.json")
    config.write_text(json.dumps(document), encoding="utf-8")
    child = [sys.executable, toy_child.__file__, str(prepared.root), "70_train_sft", str(config)]
    process = subprocess.Popen(child, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    while process.poll() is None and not list(partial.glob("checkpoints/step_*")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    changed = edited(document, optimizer={"learning_rate": 0.02})
    assert run(prepared, "70_train_sft", changed) == 3
    shown = capsys.readouterr()
    assert "config.optimizer.learning_rate: 0.01 -> 0.02" in shown.out + shown.err
