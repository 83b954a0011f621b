"""
What becomes of a leftover build, and what of the file that a stage carries from one build to the next.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from utils.pipeline.config import StageConfig
from utils.pipeline.errors import StageError
from utils.pipeline.stage import Stage, execute
from utils.pipeline.workspace import Workspace

STAGE = "10_generate"
OUTPUT = Path("data/demo/generated")
PAID = "log/paid.txt"


class PaidConfig(StageConfig):
    """A stage that pays for lines; asking for more lines adds to what was paid."""

    stage: ClassVar[str] = STAGE
    determinism: ClassVar[str] = "stochastic"
    keeps_partial: ClassVar[bool] = True
    carried: ClassVar[str] = PAID

    lines: int = 2
    mood: str = "calm"

    @classmethod
    def only_adds(cls, before: Mapping, after: Mapping) -> bool:
        return before["mood"] == after["mood"] and before["lines"] <= after["lines"]


class House:
    """One stage in an empty workspace; `affordable` lines can be paid before a run breaks off."""

    def __init__(self, root: Path) -> None:
        self.workspace = Workspace(root, {STAGE: f"{__name__}:PaidConfig"})
        self.output = root / OUTPUT
        self.partial = root / f"{OUTPUT}.partial"
        self.affordable = 100
        self.paid_now = 0
        (root / "config/demo").mkdir(parents=True)

    def run(self, *arguments: str, **config: object) -> int:
        path = self.workspace.root / f"config/demo/{STAGE}.json"
        path.write_text(json.dumps({"output": str(OUTPUT)} | config))
        self.paid_now = 0
        return execute(STAGE, PaidConfig, self._main, ["--config", str(path), *arguments], self.workspace)

    def _main(self, config: PaidConfig, stage: Stage) -> dict:
        paid = stage.partial / PAID
        paid.parent.mkdir(exist_ok=True)
        paid.touch()
        while len(paid.read_text().splitlines()) < config.lines:
            if self.paid_now == self.affordable:
                raise StageError("no money left")
            with open(paid, "a") as file:
                file.write(f"{config.mood}\n")
            self.paid_now += 1
        (stage.partial / "out.txt").write_text("\n".join(paid.read_text().splitlines()[: config.lines]))
        (stage.partial / "scrap.txt").write_text(config.mood)
        return {}


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


@pytest.fixture
def unfinished(house: House) -> House:
    """Three of five lines are paid for."""
    house.affordable = 3
    assert house.run(lines=5) == 4
    (house.partial / "half.bin").write_bytes(b"half")
    house.affordable = 100
    return house


def test_a_config_that_only_asks_for_more_continues_a_leftover(
    unfinished: House, capsys: pytest.CaptureFixture
) -> None:
    assert unfinished.run(lines=7) == 0
    assert "resuming" in (said := capsys.readouterr().out) and "config.lines: 5 -> 7" in said
    assert unfinished.paid_now == 4
    assert json.loads((unfinished.output / "manifest.json").read_text())["config"]["semantic"]["lines"] == 7
    assert unfinished.run(lines=7) == 0 and unfinished.paid_now == 0


def test_any_other_change_is_refused_with_its_field_and_both_ways_out(
    unfinished: House, capsys: pytest.CaptureFixture
) -> None:
    assert unfinished.run(lines=7, mood="wild") == 3
    said = "".join(capsys.readouterr())
    assert "config.lines: 5 -> 7" in said and "config.mood: calm -> wild" in said
    assert "--resume never" in said and "--force" in said
    assert (unfinished.partial / PAID).read_text() == "calm\n" * 3


def test_force_keeps_what_was_paid_for_and_nothing_else(unfinished: House) -> None:
    assert unfinished.run("--force", lines=5, mood="wild") == 0
    assert unfinished.paid_now == 2
    assert (unfinished.output / "out.txt").read_text().split() == ["calm"] * 3 + ["wild"] * 2
    assert not (unfinished.output / "half.bin").exists()


def test_resume_never_pays_for_everything_again(unfinished: House) -> None:
    assert unfinished.run("--resume", "never", lines=5) == 0
    assert unfinished.paid_now == 5


def test_a_leftover_without_its_state_still_carries(unfinished: House) -> None:
    (unfinished.partial / "state.json").unlink()
    assert unfinished.run(lines=5) == 0
    assert unfinished.paid_now == 2 and not (unfinished.output / "half.bin").exists()


def test_a_finished_artifact_hands_on_what_was_paid_for(house: House) -> None:
    assert house.run(lines=5) == 0
    assert house.run(lines=6) == 0
    assert house.paid_now == 1
    assert house.run("--force", lines=6) == 0
    assert house.paid_now == 0
    assert house.run("--force", "--resume", "never", lines=6) == 0
    assert house.paid_now == 6


def test_nothing_is_carried_from_an_altered_artifact(house: House) -> None:
    assert house.run(lines=5) == 0
    (house.output / "out.txt").write_text("altered")
    assert house.run(lines=6) == 3
    assert house.run("--force", lines=6) == 0
    assert house.paid_now == 6


def test_a_copy_that_was_cut_short_is_no_carried_file(house: House) -> None:
    assert house.run(lines=5) == 0
    torn = house.partial / (PAID + ".new")
    torn.parent.mkdir(parents=True)
    torn.write_text("ca")
    assert house.run(lines=6) == 0
    assert house.paid_now == 1
    assert not list(house.output.rglob("*.new"))


def test_the_carried_file_is_no_output(house: House) -> None:
    assert house.run(lines=5) == 0
    before = json.loads((house.output / "manifest.json").read_text())
    assert [output["path"] for output in before["outputs"]] == ["out.txt", "scrap.txt"]
    shutil.rmtree(house.output / "log")
    assert house.run(lines=5) == 0 and house.paid_now == 0
