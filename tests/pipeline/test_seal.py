"""Sealing in steps that a kill cannot leave half done (P28), and one builder at a time (P29)."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pipeline.rows import answers
from tests.pipeline.toy import Toy
from utils.pipeline import seal
from utils.pipeline.errors import StageError
from utils.pipeline.locks import exclusive
from utils.pipeline.stage import Stage
from utils.pipeline.verify import verify_artifact

PACK = "40_pack_dataset"
STEPS = [
    (os, "fsync"),
    (os, "rename"),
    (os, "replace"),
    (shutil, "rmtree"),
    (Path, "unlink"),
    (seal, "hash_files"),
]


def dies_at(point: int) -> Callable[[Stage], None]:
    """A hook after which the process is killed before (odd) or after (even) the nth step of sealing."""
    left = iter(range(point - 1, -1, -1))

    def die() -> None:
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def counting(step: Callable) -> Callable:
        def counted(*arguments: object, **options: object) -> object:
            die()
            result = step(*arguments, **options)
            die()
            return result

        return counted

    def hook(_stage: Stage) -> None:
        for place, name in STEPS:
            setattr(place, name, counting(getattr(place, name)))

    return hook


def killed_at(toy: Toy, point: int, *arguments: str) -> bool:
    """Run the stage in a child that is killed at this point of sealing; False when there are fewer points."""
    child = os.fork()
    if child == 0:
        toy.hooks = {"40.done": dies_at(point)}
        try:
            toy.run(PACK, *arguments)
        except StopIteration:
            pass
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_a_kill_at_every_point_of_sealing_is_mended_by_the_same_command(toy: Toy) -> None:
    folder, points = toy.folder(PACK), 0
    digests = {}
    for length in (100, 101):
        toy.set(PACK, sequence_length_tokens=length)
        toy.run(PACK)
        digests[length] = toy.digest(PACK)
    while True:
        length = 100 + points % 2  # each time something else than what is there
        toy.set(PACK, sequence_length_tokens=length)
        if not killed_at(toy, points + 1):
            break
        points += 1
        if folder.exists():
            assert str(verify_artifact(folder, toy.workspace)) == "ok"
        assert toy.run(PACK).code == 0
        assert toy.digest(PACK) == digests[length], f"point {points}"
        assert str(verify_artifact(folder, toy.workspace)) == "ok"
        assert sorted(path.name for path in folder.parent.glob("packed*")) == ["packed"]
    assert points > 20


def test_an_altered_folder_survives_a_kill_at_every_point(toy: Toy) -> None:
    folder, points = toy.folder(PACK), 0
    edited = toy.flip(PACK, "train.bin").read_bytes()
    while killed_at(toy, points + 1, "--force"):
        points += 1
        again = toy.run(PACK, "--force")
        assert again.code == 0
        kept = folder.with_name("packed.tampered")
        assert (kept / "train.bin").read_bytes() == edited, f"point {points}"
        shutil.rmtree(folder)
        kept.rename(folder)
    assert points > 20


def test_nothing_that_the_build_needed_is_left(toy: Toy) -> None:
    names = {path.name for path in toy.folder(PACK).rglob("*")}
    assert names == {"train.bin", "train.idx", "val.bin", "val.idx", "manifest.json", "log", "events.jsonl"}


def test_files_named_like_scratch_are_outputs_of_a_checkpoint(toy: Toy) -> None:
    shutil.rmtree(toy.folder("50_pretrain"))
    toy.killed("50_pretrain", "50.sealed", 1)
    folder = toy.folder("50_pretrain").with_name("base.partial") / "checkpoints/step_00000100"
    assert (folder / "state.json").is_file()
    assert str(verify_artifact(folder, toy.workspace)) == "ok"


# locks


def test_a_lock_names_its_holder_and_is_free_afterwards(toy: Toy) -> None:
    with (
        exclusive(toy.workspace, "data/demo/x", "data/demo/x is being built"),
        pytest.raises(
            StageError, match=rf"^data/demo/x is being built \(pid {os.getpid()}, since \d\d:\d\d\)$"
        ),
        exclusive(toy.workspace, "data/demo/x", "data/demo/x is being built"),
    ):
        pass
    with exclusive(toy.workspace, "data/demo/x", ""):
        pass


HOLDER = """
import sys, time
sys.path.insert(0, {repo!r})
from pathlib import Path
from utils.pipeline.locks import exclusive
from utils.pipeline.workspace import Workspace
with exclusive(Workspace(Path({root!r}), {{}}), "data/demo/packed", ""):
    print("held", flush=True)
    time.sleep(60)
"""


def test_kill_9_frees_the_lock_of_another_process(toy: Toy) -> None:
    script = HOLDER.format(repo=str(Path(__file__).parents[2]), root=str(toy.root))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    answers(toy.run(PACK), 4, f"error: data/demo/packed is being built (pid {process.pid}, since ")
    process.kill()
    process.wait()
    answers(toy.run(PACK), 0, "up to date")
