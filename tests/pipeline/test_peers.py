"""What several processes of a launch must have in common, and what is said when they do not."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest

from tests.pipeline.toy import Toy
from tests.pipeline.toy_configs import CLASSES
from utils.pipeline.ranks import Farewell, Ranks
from utils.pipeline.stage import Stage, execute

OURS = "60_prepare_sft"
Record = dict[str, str]


class FakeRanks(Ranks):
    """Rank 0 of two, where rank 1 has whatever `change` makes of rank 0's record."""

    def __init__(self, change: Callable[[Record], Record]) -> None:
        super().__init__(rank=0, world_size=2)
        self.change = change

    def first_decides(self, decide: Callable) -> object:
        return decide()

    def watched(self, farewell: Farewell) -> AbstractContextManager:
        return nullcontext()

    def gather(self, value: Record) -> list[Record]:
        return [value, self.change(dict(value))]


def run(toy: Toy, change: Callable[[Record], Record]) -> int:
    def main(_config: object, stage: Stage) -> dict:
        (stage.partial / "rows").write_text("built")
        return {}

    argv = ["--config", str(toy.root / f"config/demo/{OURS}.json"), "--force"]
    return execute(OURS, CLASSES[OURS], main, argv, toy.workspace, FakeRanks(change))


def test_equal_ranks_build(toy: Toy) -> None:
    seen: list[Record] = []
    assert run(toy, lambda record: seen.append(record) or record) == 0
    assert len(seen[0]["build folder"]) == 32, "the folder that rank 0 made is found on disk"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("config", "config is "),
        ('input "tokenizer"', 'input "tokenizer" is '),
        ("python", "python is "),
        ("platform", "platform is "),
    ],
)
def test_a_rank_that_differs_is_named(
    toy: Toy, capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    seen: list[Record] = []
    assert run(toy, lambda record: seen.append(record) or record | {name: "another"}) == 2
    assert name in seen[0]
    message = capsys.readouterr().err
    assert said in message and "another on rank 1" in message and "fix " in message


def test_a_module_that_only_one_rank_has_is_named(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(toy, lambda record: record | {"module utils.odd": "0" * 64}) == 2
    assert "module utils.odd is absent on rank 0 and 000000000000 on rank 1" in capsys.readouterr().err


def test_a_rank_that_does_not_see_the_build_folder_says_so(
    toy: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(toy, lambda record: record | {"build folder": "absent"}) == 2
    message = capsys.readouterr().err
    assert "rank 1 does not see " in message and ".partial" in message and "all machines share" in message


@pytest.mark.parametrize("code", [75, 130])
def test_all_leave_when_one_was_asked_to_stop_before_the_work(toy: Toy, code: int) -> None:
    assert run(toy, lambda record: record | {"asked to stop": str(code)}) == code
