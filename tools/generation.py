"""
Generations and transforms, finished or not: what there is, how far it is, what it cost, and how it goes on.

    python tools/generation.py list
    python tools/generation.py inspect data/demo/generated
    python tools/generation.py resume data/demo/generated
    python tools/generation.py export data/demo/generated --dataset chat --output rows.jsonl
    python tools/generation.py preview config/demo/10_generate.json 3

An unfinished one is named with or without `.partial`. `preview` makes rows in a temporary place and forgets
them; it asks the real models, and says what that cost.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.pipeline.errors import ConfigError, LockstepError, Stopped
from utils.pipeline.run import Launcher, start_process
from utils.pipeline.signals import StopRequest
from utils.pipeline.workspace import REPOSITORY, Workspace, program_of

if TYPE_CHECKING:
    from utils.config.generate import GenerateConfig
    from utils.generate.sessions import DatasetProgress, Session

MOST_PREVIEWED = 100


def main(
    argv: list[str] | None = None, workspace: Workspace = REPOSITORY, launch: Launcher = start_process
) -> int:
    """Run one command and return its exit code; `launch` stands in for starting a stage in tests."""
    arguments = _parse(argv)
    try:
        return COMMANDS[arguments.command](arguments, workspace, launch)
    except Stopped as stopped:
        return stopped.exit_code
    except KeyboardInterrupt:
        return 130
    except LockstepError as error:
        print(f"error: {error.report()}", file=sys.stderr)
        return error.exit_code


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/generation.py", description=__doc__.splitlines()[1])
    commands = parser.add_subparsers(dest="command", required=True)
    described = {
        "list": "all of them, one line each",
        "inspect": "rows, what was not accepted and why, tokens and cost, the command that continues it",
        "resume": "run the stage with the config that the folder was begun with",
        "export": "the rows that exist so far, as JSON lines",
        "preview": "make a few rows of a config in a temporary place and show them; costs what it says",
    }
    parsers = {
        name: commands.add_parser(name, help=text, description=text) for name, text in described.items()
    }
    for name in ("inspect", "resume", "export"):
        parsers[name].add_argument("folder", type=Path, help="artifact folder, or its .partial")
    parsers["export"].add_argument("--dataset", default="", help="which one, if there are several")
    parsers["export"].add_argument("--output", type=Path, metavar="FILE", help="default: standard output")
    parsers["preview"].add_argument("config", type=Path, help="a config of stage 10")
    parsers["preview"].add_argument("rows", type=int, help="rows of each dataset")
    return parser.parse_args(argv)


def _list(arguments: argparse.Namespace, workspace: Workspace, launch: Launcher) -> int:
    from utils.generate.sessions import find_sessions, read_session

    folders = find_sessions(workspace)
    if not folders:
        print("nothing was generated below data/ so far")
    width = max((len(workspace.relative(folder)) for folder in folders), default=0)
    for folder in folders:
        try:
            text = _summary(read_session(folder, workspace))
        except LockstepError as error:
            text = f"cannot be read: {error}"
        print(f"{workspace.relative(folder):<{width}}   {text}")
    return 0


def _summary(session: Session) -> str:
    from utils.generate.sessions import ago

    rows = "  ".join(f"{d.name} {_of(d.rows, d.wanted)}" for d in session.datasets)
    state = "finished" if session.finished else f"unfinished ({session.ended})"
    spent = f"{session.tokens:,} tokens, cost {session.cost:.4g}"
    return f"{state}, {ago(session.written)} ago   {rows}   {spent}"


def _of(rows: int, wanted: int) -> str:
    return f"{rows:,} of {wanted:,}" if wanted and rows != wanted else f"{rows:,}"


def _inspect(arguments: argparse.Namespace, workspace: Workspace, launch: Launcher) -> int:
    from utils.generate.sessions import ago, read_session, session_folder

    session = read_session(session_folder(arguments.folder, workspace), workspace)
    print(f"{workspace.relative(session.folder)}   {session.stage}")
    print(f"config    {session.config_path}")
    print(f"started   {session.started}")
    print(f"ended     {session.ended}")
    print(f"written   {session.written}, {ago(session.written)} ago\n")
    if session.is_transform:
        head = ("dataset", "rows of the sources", "pairs written", "left out, by reason")
        _print_table(head, [_transformed(dataset) for dataset in session.datasets], left=(0, 3))
    else:
        head = ("dataset", "mode", "rows", "wanted", "missing", "not accepted, by reason")
        _print_table(head, [_progress(dataset) for dataset in session.datasets], left=(0, 1, 5))
    paid = [(name, counts, session.costs[name]) for name, counts in sorted(session.usage.items())]
    rows = [(name, *_amounts(counts), f"{cost:.4f}") for name, counts, cost in paid]
    rows.append(("total", "", "", f"{session.tokens:,}", f"{session.cost:.4f}"))
    print()
    _print_table(("model.step", "replies", "prompt tokens", "answer tokens", "cost"), rows, left=(0,))
    more = "again" if session.is_transform else "more rows"
    print(f"\n{more if session.finished else 'continue'}  {_how_to_go_on(session)}")
    return 0


def _progress(dataset: DatasetProgress) -> tuple[str, ...]:
    counts = (f"{dataset.rows:,}", f"{dataset.wanted:,}", f"{dataset.missing:,}")
    return dataset.name, dataset.mode, *counts, _reasons(dataset)


def _transformed(dataset: DatasetProgress) -> tuple[str, ...]:
    of = f"{dataset.wanted:,}" if dataset.wanted else "-"
    return dataset.name, of, f"{dataset.rows:,}", _reasons(dataset)


def _reasons(dataset: DatasetProgress) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in dataset.reasons.items()) or "none"


def _how_to_go_on(session: Session) -> str:
    if not session.finished:
        return session.command
    if session.is_transform:
        return f"add rows to the sources of {session.config_path}, or change it, then: {session.command}"
    return f"ask for more in {session.config_path}, then: {session.command}"


def _amounts(counts: dict[str, int]) -> list[str]:
    return [f"{counts[name]:,}" for name in ("calls", "prompt_tokens", "completion_tokens")]


def _print_table(head: tuple[str, ...], rows: list[tuple[str, ...]], left: tuple[int, ...]) -> None:
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        cells = [
            text.ljust(width) if column in left else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("   ".join(cells).rstrip())


def _resume(arguments: argparse.Namespace, workspace: Workspace, launch: Launcher) -> int:
    from utils.generate.sessions import read_session, session_folder

    session = read_session(session_folder(arguments.folder, workspace), workspace)
    if session.finished:
        raise ConfigError(
            f"{workspace.relative(session.folder)} is finished: there is nothing to resume",
            fix=_how_to_go_on(session),
        )
    if not workspace.path(session.config_path).is_file():
        raise ConfigError(
            f"the config that it was begun with is gone: {session.config_path}",
            fix="put it back, then resume",
        )
    print(session.command, flush=True)
    command = [sys.executable, *program_of(session.stage), "--config", session.config_path]
    return launch(command, workspace.root)


def _export(arguments: argparse.Namespace, workspace: Workspace, launch: Launcher) -> int:
    from utils.generate.sessions import read_session, rows_of, session_folder

    session = read_session(session_folder(arguments.folder, workspace), workspace)
    names = [dataset.name for dataset in session.datasets]
    dataset = arguments.dataset or (names[0] if len(names) == 1 else "")
    if dataset not in names:
        asked = f'there is no dataset "{dataset}"' if dataset else "there are several datasets"
        raise ConfigError(asked, fix=f"--dataset {' | '.join(names)}")
    rows = rows_of(session, dataset)
    if arguments.output is None:
        _print_lines(rows)
        return 0
    output = workspace.path(arguments.output.absolute())
    _check_place(output, session.folder, workspace)
    with output.open("x", encoding="utf-8", newline="\n") as file:
        count = _write_lines(rows, file.write)
    print(f"{count:,} rows of {dataset} in {arguments.output}")
    return 0


def _check_place(output: Path, folder: Path, workspace: Workspace) -> None:
    """ConfigError for a file that exists, or that would make an artifact differ from its manifest."""
    if output.exists():
        raise ConfigError(f"{output} exists", fix="name another --output, or remove it yourself")
    if output.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"{workspace.relative(folder)} is an artifact", fix="write the rows somewhere else")
    if not output.parent.is_dir():
        raise ConfigError(f"{output.parent} is not a folder")


def _print_lines(rows: Iterable[dict]) -> None:
    """To standard output, as long as anybody listens (`| head`)."""
    try:
        _write_lines(rows, sys.stdout.write)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write_lines(rows: Iterable[dict], write: Callable[[str], object]) -> int:
    count = 0
    for count, row in enumerate(rows, start=1):  # noqa: B007 - the last number is the count
        write(json.dumps(row, ensure_ascii=False) + "\n")
    return count


def _preview(arguments: argparse.Namespace, workspace: Workspace, launch: Launcher) -> int:
    from utils.config.generate import GenerateConfig
    from utils.generate.estimate import estimate
    from utils.generate.given import Given
    from utils.generate.run import generate
    from utils.pipeline.config import load_config

    if not 1 <= arguments.rows <= MOST_PREVIEWED:
        raise ConfigError(f"a preview has 1 to {MOST_PREVIEWED} rows, not {arguments.rows}")
    loaded = load_config(arguments.config.absolute(), GenerateConfig, workspace)
    config = with_rows(loaded.config, arguments.rows)
    print(estimate(config, len(Given.read(config, workspace).topics)).text(), file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder, StopRequest() as stop:
        generated = generate(config, Path(folder), workspace, _say, lambda: bool(stop.exit_code))
        if generated is None:
            raise Stopped(stop.exit_code)
        for name in config.datasets:
            print(f"\n{name}")
            print((Path(folder) / name / "dataset.jsonl").read_text(encoding="utf-8"), end="")
    print(f"\nwhat it took, which a run does not get back:\n{_told(generated.usage)}")
    return 0


def with_rows(config: GenerateConfig, rows: int) -> GenerateConfig:
    """The same config with so many rows in every dataset."""
    document = config.model_dump(mode="json")
    for spec in document["datasets"].values():
        few = {"rows": rows, "num_subtopics": min(spec["num_subtopics"], rows), "num_prompts_per_subtopic": 0}
        spec |= few
    return type(config).model_validate(document)


def _say(event: str, text: str = "", **_: object) -> None:
    print(f"{event:<10} {text}", file=sys.stderr, flush=True)


def _told(usage: dict) -> str:
    lines = [
        f"  {provider}  {model}.{step}   {', '.join(f'{name} {value:,}' for name, value in counts.items())}"
        for provider, models in usage.items()
        for model, steps in models.items()
        for step, counts in steps.items()
    ]
    return "\n".join(lines)


COMMANDS = {
    "list": _list,
    "inspect": _inspect,
    "resume": _resume,
    "export": _export,
    "preview": _preview,
}

if __name__ == "__main__":
    sys.exit(main())
