"""
The tamper-and-stale matrix: what a row is, and how one is played.

    @row("2", "G5")
    def shortened(toy: Toy) -> None:
        ...

A row plays on a copy of the built toy chain and raises AssertionError when the chain does not answer as the
specification says. `test_matrix.py` plays each of them; `test_guards.py` plays them with guards switched.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tests.pipeline.toy import Result, Toy


@dataclass(frozen=True)
class Row:
    """One line of the matrix: its number, the guards that it names, whether somebody is refused in it."""

    number: str
    guards: tuple[str, ...]
    play: Callable[[Toy], None]
    refuses: bool = True

    @property
    def name(self) -> str:
        return f"{self.number}-{self.play.__name__}"


ROWS: list[Row] = []


def row(number: str, *guards: str, refuses: bool = True) -> Callable[[Callable[[Toy], None]], Callable]:
    """Register a function as a row."""

    def register(play: Callable[[Toy], None]) -> Callable[[Toy], None]:
        ROWS.append(Row(number, guards, play, refuses))
        return play

    return register


def answers(result: Result, code: int, part: str, kind: str = "") -> None:
    """The exit code, the kind of the verdict, and a part of what was printed or logged."""
    said = f"{result.text}\n{result.verdict}"
    assert result.code == code, f"exit {result.code}, wanted {code}: {said}"
    assert part in said, f"{part!r} is not in: {said}"
    assert result.verdict.startswith(kind), f"{result.verdict!r} is no {kind}"
    assert "Traceback" not in said


def refuses(
    toy: Toy, stage: str, kind: str, part: str, code: int = 3, arguments: tuple[str, ...] = ()
) -> Result:
    """A stage refuses; its fix, followed to the letter, makes the same stage run without refusal."""
    refused = toy.run(stage, *arguments)
    answers(refused, code, part, kind)
    toy.follow(refused.fix)
    again = toy.run(stage)
    assert again.code == 0, f"the fix did not help: {again.text}"
    return refused


def refuses_at_first(toy: Toy, stage: str, kind: str, part: str) -> None:
    """A stage refuses; somebody else will mend it."""
    answers(toy.run(stage), 3, part, kind)


def up_to_date(toy: Toy, stage: str = "") -> None:
    """One stage, or the whole profile, finds nothing to do, and `status` finds nothing wrong."""
    if stage:
        answers(toy.run(stage), 0, "up to date")
        return
    run = toy.tool("run", "demo")
    answers(run, 0, "9 stages: 9 up to date, 0 built, 0 failed")
    status = toy.tool("status", "demo")
    assert status.code == 0 and "code changed" not in status.text, status.text


def found_by(toy: Toy, command: tuple[str, ...], part: str) -> None:
    """A command of tools/pipeline.py exits 3 and names it."""
    answers(toy.tool(*command), 3, part)


def mended_by_status(toy: Toy) -> None:
    """The command that `status` prints makes `status` content."""
    toy.follow(toy.tool("status", "demo").text.splitlines()[-1])
    status = toy.tool("status", "demo")
    assert status.code == 0, status.text
