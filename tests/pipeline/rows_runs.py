"""Rows about what happens while a stage runs: edits, kills, leftovers, locks, signals (31-39, 47, 50, 51)."""

import errno
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tests.pipeline.rows import answers, refuses, row, up_to_date
from tests.pipeline.toy import Toy
from utils.pipeline.hashing import sha256_hex
from utils.pipeline.locks import exclusive
from utils.pipeline.manifest import compute_output_digest, compute_seal
from utils.pipeline.seal import partial_of, previous_of
from utils.pipeline.stage import Stage

SHARD = "train/00000.jsonl.zst"


def once(action: Callable[[], object]) -> Callable[[Stage], None]:
    """A hook that acts the first time only."""
    left = [action]
    return lambda stage: left.pop()() if left else None


def changed_meanwhile(
    toy: Toy, stage: str, point: str, action: Callable[[], object], part: str, kind: str
) -> None:
    """The stage refuses to seal what it made from an input that changed; following the fix mends it."""
    shutil.rmtree(toy.folder(stage))
    toy.hooks[point] = once(action)
    refused = toy.run(stage)
    answers(refused, 3, part, kind)
    assert not toy.folder(stage).exists() and partial_of(toy.folder(stage)).is_dir()
    toy.follow(refused.fix)
    answers(toy.run(stage), 0, "up to date")


@row("31", "G14")
def shard_edited_while_running(toy: Toy) -> None:
    part = f'input "corpus" changed while 40_pack_dataset was running: {SHARD}'
    edit = lambda: toy.flip("20_prepare_corpus", SHARD)  # noqa: E731
    changed_meanwhile(toy, "40_pack_dataset", "40.done", edit, part, "tampered")


@row("31", "G14")
def raw_file_edited_while_running(toy: Toy) -> None:
    part = 'source "books" changed while 20_prepare_corpus was running'
    edit = lambda: toy.put("raw/books/0.txt", "another tale")  # noqa: E731
    changed_meanwhile(toy, "20_prepare_corpus", "20.committed", edit, part, "stale")


@row("31", "G14")
def raw_file_deleted_while_running(toy: Toy) -> None:
    part = "raw/books/0.txt: No such file"
    delete = (toy.root / "raw/books/0.txt").unlink
    changed_meanwhile(toy, "20_prepare_corpus", "20.committed", delete, part, "stale")


@row("32", "G14")
def parent_rebuilt_while_running(toy: Toy) -> None:
    def rebuild() -> None:
        toy.set("40_pack_dataset", sequence_length_tokens=128)
        toy.run("40_pack_dataset")

    part = 'input "data" changed while 50_pretrain was running'
    changed_meanwhile(toy, "50_pretrain", "50.done", rebuild, part, "stale")


@row("33", "G23")
def shard_edited_and_restored_while_read(toy: Toy) -> None:
    shard = toy.folder("20_prepare_corpus") / SHARD
    before = shard.read_bytes()
    other = (toy.folder("20_prepare_corpus") / "train/00001.jsonl.zst").read_bytes()
    toy.hooks["40.before_read"] = once(lambda: shard.write_bytes(other))
    toy.hooks["40.after_read"] = once(lambda: shard.write_bytes(before))
    shutil.rmtree(toy.folder("40_pack_dataset"))
    refused = toy.run("40_pack_dataset")
    answers(refused, 3, "bytes read do not match", "tampered")
    assert "then rerun" in refused.fix  # the file is whole again, so the same command is the fix
    answers(toy.run("40_pack_dataset"), 0, "resuming")


@row("34", refuses=False)
def killed_while_packing(toy: Toy) -> None:
    expected = toy.digest("40_pack_dataset")
    for point in ("40.before_commit", "40.committed"):
        for times in (1, 2):
            shutil.rmtree(toy.folder("40_pack_dataset"))
            toy.killed("40_pack_dataset", point, times)
            answers(toy.run("40_pack_dataset"), 0, "resuming   an unfinished build")
            assert toy.digest("40_pack_dataset") == expected, f"{point} {times}"


@row("34", refuses=False)
def killed_while_training(toy: Toy) -> None:
    expected, metrics = toy.digests(), toy.manifest("120_convert_gguf")["metrics"]
    for point, times in (("50.step", 1), ("50.step", 3), ("50.sealed", 1), ("50.sealed", 4), ("50.done", 1)):
        shutil.rmtree(toy.folder("50_pretrain"))
        toy.killed("50_pretrain", point, times)
        answers(toy.run("50_pretrain"), 0, "resuming   an unfinished build")
        assert toy.digest("50_pretrain") == expected["50_pretrain"], f"{point} {times}"
    for stage in ("70_train_sft", "110_merge_lora", "120_convert_gguf"):
        answers(toy.run(stage, "--force"), 0, "done")
    # a GGUF tells the seals of its ancestors, which name their runs, so its own bytes are those of this run
    assert toy.digests() | {"120_convert_gguf": ""} == expected | {"120_convert_gguf": ""}
    assert toy.manifest("120_convert_gguf")["metrics"] == metrics


@row("35", "G15", refuses=False)
def killed_then_seed_changed(toy: Toy) -> None:
    shutil.rmtree(toy.folder("20_prepare_corpus"))
    toy.killed("20_prepare_corpus", "20.committed", 2)
    toy.set("20_prepare_corpus", seed=1)
    answers(toy.run("20_prepare_corpus"), 0, "discarding an unfinished build: stale (config.seed: 0 -> 1)")
    resumed = toy.digest("20_prepare_corpus")
    toy.run("20_prepare_corpus", "--force")
    assert toy.digest("20_prepare_corpus") == resumed


def killed_in_training(toy: Toy, times: int = 2) -> Path:
    """A base model killed after checkpoint 200 was sealed; its build folder."""
    shutil.rmtree(toy.folder("50_pretrain"))
    toy.killed("50_pretrain", "50.sealed", times)
    return partial_of(toy.folder("50_pretrain"))


@row("36", "G15")
def killed_then_learning_rate_changed(toy: Toy) -> None:
    partial = killed_in_training(toy)
    toy.set("50_pretrain", optimizer={"learning_rate": 3e-4})
    part = "stale (config.optimizer.learning_rate: 0.0004 -> 0.0003)"
    refused = toy.run("50_pretrain")
    answers(refused, 3, part, "stale")
    assert "put the old value back" in refused.text and (partial / "checkpoints/step_00000200").is_dir()
    toy.set("50_pretrain", optimizer={"learning_rate": 4e-4})
    answers(toy.run("50_pretrain", "--dry-run"), 0, "would build")
    toy.set("50_pretrain", optimizer={"learning_rate": 3e-4})
    refuses(toy, "50_pretrain", "stale", part)


@row("37", "G15")
def killed_then_other_data(toy: Toy) -> None:
    killed_in_training(toy)
    toy.set("40_pack_dataset", sequence_length_tokens=128)
    answers(toy.run("40_pack_dataset"), 0, "done")
    refuses(toy, "50_pretrain", "stale", "input.data:")


@row("38", "G5")
def newest_checkpoint_cut(toy: Toy) -> None:
    weights = killed_in_training(toy) / "checkpoints/step_00000200/model.safetensors"
    size = weights.stat().st_size
    os.truncate(weights, size - 1)
    part = f"step_00000200/model.safetensors is tampered (model.safetensors: expected {size:,} bytes"
    refuses(toy, "50_pretrain", "tampered", part)


@row("39", "G22")
def checkpoint_verifies_and_does_not_load(toy: Toy) -> None:
    folder = killed_in_training(toy) / "checkpoints/step_00000200"
    (folder / "model.safetensors").write_bytes(b"nonsense")
    raw = json.loads((folder / "manifest.json").read_text())
    data = {"bytes": 8, "sha256": sha256_hex(b"nonsense")}
    raw["outputs"] = [row | data if row["path"] == "model.safetensors" else row for row in raw["outputs"]]
    raw["output_digest"] = compute_output_digest(raw["outputs"])
    raw["manifest_sha256"] = compute_seal(raw)
    (folder / "manifest.json").write_text(json.dumps(raw))
    refuses(toy, "50_pretrain", "", "will not start over", code=4)


@row("47", "G16")
def profile_run_twice_at_once(toy: Toy) -> None:
    with exclusive(toy.workspace, "profile-demo", "held by the test"):
        part = f"error: another run of profile demo is active (pid {os.getpid()}, since "
        answers(toy.tool("run", "demo"), 4, part)
    up_to_date(toy)


@row("47", "G16")
def output_built_twice_at_once(toy: Toy) -> None:
    shutil.rmtree(toy.folder("40_pack_dataset"))
    seen = []
    toy.hooks["40.done"] = once(lambda: seen.append(toy.run("40_pack_dataset")))
    side = once(lambda: seen.append(toy.run("60_prepare_sft", "--force")))
    toy.hooks["40.before_read"] = side
    assert toy.run("40_pack_dataset").code == 0
    beside, second = seen
    assert beside.code == 0, "stages with different outputs run side by side"
    answers(second, 4, f"error: data/demo/packed is being built (pid {os.getpid()}, since ")
    up_to_date(toy, "40_pack_dataset")


@row("50", "G17", refuses=False)
def crash_between_the_renames(toy: Toy) -> None:
    folder = toy.folder("40_pack_dataset")
    before = toy.digest("40_pack_dataset")
    folder.rename(partial_of(folder))
    answers(toy.run("40_pack_dataset"), 0, "finished an interrupted rename: the new build is in place")
    folder.rename(previous_of(folder))
    answers(toy.run("40_pack_dataset"), 0, "finished an interrupted rename: the old build is back in place")
    assert toy.digest("40_pack_dataset") == before
    up_to_date(toy)


def raises(error: BaseException) -> Callable[[Stage], None]:
    def hook(_stage: Stage) -> None:
        raise error

    return hook


def signals(number: int) -> Callable[[Stage], None]:
    return lambda _stage: signal.raise_signal(number)


STOPS = {
    "disk_full": (4, raises(OSError(errno.ENOSPC, "No space left on device")), "the disk is full"),
    "out_of_memory": (4, raises(MemoryError()), "out of memory"),
    "worker_killed": (4, raises(BrokenProcessPool()), "a worker process died"),
    "preempted": (75, signals(signal.SIGTERM), "everything committed is kept"),
    "interrupted": (130, signals(signal.SIGINT), "everything committed is kept"),
}


def _stopped(name: str) -> Callable[[Toy], None]:
    code, hook, part = STOPS[name]

    def play(toy: Toy) -> None:
        assert threading.current_thread() is threading.main_thread()
        for stage, point in (("20_prepare_corpus", "20.work"), ("50_pretrain", "50.step")):
            expected = toy.digest(stage)
            shutil.rmtree(toy.folder(stage))
            toy.hooks = {point: hook}
            stopped = toy.run(stage)
            answers(stopped, code, "rerun to continue")
            assert part in stopped.text and not toy.folder(stage).exists()
            toy.hooks = {}
            answers(toy.run(stage), 0, "resuming")
            assert toy.digest(stage) == expected

    play.__name__ = name
    return play


for _name in STOPS:
    row("51", refuses=False)(_stopped(_name))
