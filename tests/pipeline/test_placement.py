"""A slip in `output` costs nothing: a stage replaces only what it made itself."""

from pathlib import Path

import pytest

from tests.pipeline.rows import answers
from tests.pipeline.toy import Toy, all_files

PACK = "40_pack_dataset"


def contents(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in all_files(root) if ".lockstep" not in path.as_posix()}


@pytest.mark.parametrize(
    "output",
    ["", ".", "data", "checkpoints", "config", "data/raw/books", "data/.lockstep/x",
     "../outside/a/b",
     "/etc/passwd", "data/demo/../raw/x", "data/demo/x/../../.."],
)  # fmt: skip
def test_an_output_that_is_no_place_for_an_artifact_is_refused(toy: Toy, output: str) -> None:
    toy.set(PACK, output=output)
    before = contents(toy.root)
    for extra in ((), ("--force",), ("--dry-run",)):
        answers(toy.run(PACK, *extra), 2, "is no place for an artifact")
    assert contents(toy.root) == before


@pytest.mark.parametrize("output", ["data/demo", "data/demo/corpus", "data/demo/corpus/inside"])
def test_an_output_that_touches_an_input_is_refused(toy: Toy, output: str) -> None:
    toy.set(PACK, output=output)
    before = contents(toy.root)
    answers(toy.run(PACK, "--force"), 2, "are not apart")
    assert contents(toy.root) == before


def test_an_artifact_of_another_stage_is_not_replaced(toy: Toy) -> None:
    toy.set(PACK, output="checkpoints/demo/base")
    before = contents(toy.root)
    answers(toy.run(PACK, "--force"), 2, "holds an artifact of 50_pretrain")
    assert contents(toy.root) == before


def test_unknown_files_are_kept_beside_and_only_by_force(toy: Toy) -> None:
    toy.set(PACK, output="data/demo/mine")
    toy.put("data/demo/mine/diary.txt", "dear diary")
    answers(toy.run(PACK), 3, "--force")
    assert (toy.root / "data/demo/mine/diary.txt").read_text() == "dear diary"
    answers(toy.run(PACK, "--force"), 0, "kept as mine.tampered")
    assert (toy.root / "data/demo/mine.tampered/diary.txt").read_text() == "dear diary"
