"""
The chain from above: what would run, run it, what state it is in, why, and does it prove itself.

    python tools/pipeline.py run demo
    python tools/pipeline.py status demo
    python tools/pipeline.py why checkpoints/demo/base
    python tools/pipeline.py verify checkpoints/demo/gguf/model-q8_0.gguf

Exit codes are those of the stages: 0, 2 config, 3 upstream, 4 failed, 75 preempted, 130 interrupted.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config.architecture import Architecture
from utils.config.pretrain import PretrainConfig
from utils.models.presets import (
    describe_model,
    gguf_obstacles,
    in_columns,
    load_architecture,
    obstacle_view,
)
from utils.pipeline.config import StageConfig
from utils.pipeline.errors import ConfigError, LockstepError, Stopped
from utils.pipeline.locks import exclusive
from utils.pipeline.manifest import read_manifest
from utils.pipeline.plan import (
    Node,
    describe_difference,
    first_problem,
    fix_of,
    plan,
    read_profile,
    status,
)
from utils.pipeline.review import abandoned_builds, explain, verify_chain_rows, verify_gguf_rows
from utils.pipeline.run import NAME_COLUMN, Launcher, run_profile
from utils.pipeline.seal import TAMPERED
from utils.pipeline.signals import handled, stop_at_once
from utils.pipeline.verify import Verifier
from utils.pipeline.workspace import REPOSITORY, Workspace

NOT_GOOD = 3
GGUF_STAGE = "120_convert_gguf"


def main(argv: Sequence[str], workspace: Workspace = REPOSITORY, launch: Launcher | None = None) -> int:
    """
    Run one command and return its exit code; `launch` stands in for starting a stage's process in tests.
    """
    arguments = _parse(argv)
    try:
        with handled(stop_at_once):
            if arguments.command == "run":
                return run_profile(arguments, workspace, launch)
            return COMMANDS[arguments.command](arguments, workspace)
    except Stopped as stopped:
        print(f"stopped (exit {stopped.exit_code}); rerun to continue", file=sys.stderr)
        return stopped.exit_code
    except LockstepError as error:
        print(f"error: {error.report()}", file=sys.stderr)
        return error.exit_code


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/pipeline.py", description=__doc__.splitlines()[1])
    commands = parser.add_subparsers(dest="command", required=True)
    described = {
        "plan": "what `run` would do, and why",
        "run": "bring every stage of a profile up to date",
        "status": "the verdict on every artifact of a profile; exit 3 unless all are ok or allowed",
        "why": "why an artifact is what it is: which input or setting changed",
        "verify": "check an artifact or a GGUF, down to the raw inputs; exit 3 unless all is well",
        "diff": "what two artifacts of one kind differ in",
        "gc": "abandoned build folders; removes them with --yes",
    }
    parsers = {
        name: commands.add_parser(name, help=text, description=text) for name, text in described.items()
    }
    for name in ("plan", "run", "status", "gc"):
        parsers[name].add_argument("profile")
    for name in ("why", "verify"):
        parsers[name].add_argument(
            "path", type=Path, help="an artifact folder" + " or .gguf" * (name == "verify")
        )
    parsers["diff"].add_argument("before", type=Path)
    parsers["diff"].add_argument("after", type=Path)
    for name in ("plan", "status", "verify", "diff"):
        parsers[name].add_argument("--json", action="store_true", help="print data instead of text")
    for name in ("plan", "run", "status", "verify"):
        parsers[name].add_argument("--verify", dest="mode", choices=["full", "cached"], default="full")
    parsers["status"].add_argument(
        "--online", action="store_true", help="ask the Hub whether a branch that was read has moved"
    )
    run = parsers["run"]
    run.add_argument(
        "--from", dest="first", default="", metavar="STAGE", help="leave earlier stages as they are"
    )
    run.add_argument("--to", dest="last", default="", metavar="STAGE", help="stop after this stage")
    run.add_argument("--force", default="", metavar="STAGE", help="build this stage even if it is up to date")
    run.add_argument(
        "--accelerate", default="", metavar="FILE", help="launch training stages with this config"
    )
    parsers["gc"].add_argument("--yes", action="store_true", help="really remove them")
    return parser.parse_args(argv)


def _plan(arguments: argparse.Namespace, workspace: Workspace) -> int:
    steps = plan(read_profile(arguments.profile, workspace), Verifier(workspace, arguments.mode))
    if arguments.json:
        keys = ("stage", "action", "reason", "seconds")
        rows = [(step.node.stage, step.action, step.reason, step.seconds) for step in steps]
        return _print_json([dict(zip(keys, row, strict=True)) for row in rows])
    width = max(len(step.reason) for step in steps)
    for step in steps:
        about = f"about {step.seconds:.0f} s" if step.seconds and step.action != "up to date" else ""
        action = step.action if step.action == "up to date" else f"{step.action:<8}"
        print(f"{step.node.stage:<{NAME_COLUMN}}{action}{step.reason:<{width}}   {about}".rstrip())
    for line in _about_the_model([step.node for step in steps], workspace):
        print(line)
    return 0


def _about_the_model(nodes: Sequence[Node], workspace: Workspace) -> list[str]:
    """The model that a profile trains: its name and size, and what of it llama.cpp cannot express."""
    configs = {node.stage: node.loaded.config for node in nodes}
    pretrain = configs.get("50_pretrain")
    if not isinstance(pretrain, PretrainConfig):
        return []
    architecture = load_architecture(pretrain.model, workspace)
    vocab_size = _vocab_size(configs, workspace) or architecture.reference_vocab_size
    packed = configs.get("40_pack_dataset")
    length = packed.sequence_length_tokens if packed else architecture.context_length_tokens
    lines = [f"{'model':<{NAME_COLUMN}}{describe_model(pretrain.model, architecture, vocab_size, length)}"]
    if causes := in_columns(gguf_obstacles(_converted_view(architecture, configs))):
        word = "will refuse" if GGUF_STAGE in configs else "none"
        lines.append(f"{GGUF_STAGE:<{NAME_COLUMN}}{word}: llama.cpp cannot express the model")
    return [*lines, *(f"  {line}" for line in causes)]


def _vocab_size(configs: Mapping[str, StageConfig], workspace: Workspace) -> int:
    """What stage 30 of the profile trains, or the tokenizer that is there has; 0 as long as nobody knows."""
    trained = configs.get("30_train_tokenizer")
    if trained and trained.vocab_size:
        return trained.vocab_size
    manifest, _ = read_manifest(workspace.path(configs["50_pretrain"].inputs.tokenizer))
    return manifest.tokenizer.get("vocab_size", 0) if manifest else 0


def _converted_view(architecture: Architecture, configs: Mapping[str, StageConfig]) -> dict:
    """What stage 120 would find in the model's config.json, after the adapters of stage 70 and the merge."""
    tuned = configs.get("70_train_sft")
    adapter = (tuned and tuned.tuning.adapter) or architecture.adapter
    mergeable = adapter is not None and adapter.num_active_ranks == adapter.num_ranks
    if mergeable and "110_merge_lora" in configs:
        adapter = None
    return obstacle_view(architecture.model_copy(update={"adapter": adapter}))


def _status(arguments: argparse.Namespace, workspace: Workspace) -> int:
    verifier = Verifier(workspace, arguments.mode, arguments.online)
    rows = status(read_profile(arguments.profile, workspace), verifier)
    problem = first_problem(rows)
    code = NOT_GOOD if problem else 0
    if arguments.json:
        keys = ("stage", "verdict", "output_digest", "note")
        data = [
            (row.node.stage, str(row.verdict), row.manifest.output_digest if row.manifest else "", row.note)
            for row in rows
        ]
        _print_json([dict(zip(keys, row, strict=True)) for row in data])
        return code
    for row in rows:
        identity = (
            f"{row.manifest.output_digest[:12]} {_size(row.manifest.total_bytes):>10}" if row.manifest else ""
        )
        detail = "; ".join(text for text in (row.verdict.detail, row.note) if text)
        print(f"{row.node.stage:<{NAME_COLUMN}}{row.verdict.kind:<11}{identity}   {detail}".rstrip())
    if problem:
        bad = sum(not row.verdict.good for row in rows)
        print(f"{bad} problem{'s' * (bad > 1)}: {fix_of(problem, arguments.online)}")
    return code


def _why(arguments: argparse.Namespace, workspace: Workspace) -> int:
    for line in explain(_folder(arguments.path, workspace), workspace):
        print(line)
    return 0


def _verify(arguments: argparse.Namespace, workspace: Workspace) -> int:
    path = workspace.path(arguments.path.absolute())
    verifier = Verifier(workspace, arguments.mode)
    if not path.exists():
        raise ConfigError(f"{arguments.path} does not exist", fix="name an artifact folder or a .gguf file")
    report = verify_gguf_rows(path, verifier) if path.suffix == ".gguf" else verify_chain_rows(path, verifier)
    if arguments.json:
        _print_json(
            {"rows": [row.as_dict() for row in report.rows], "files": report.files, "bytes": report.bytes}
        )
    else:
        width = max(len(row.name) + 2 * row.depth for row in report.rows) + 3
        for row in report.rows:
            print(f"{'  ' * row.depth + row.name:<{width}}{row}")
        print(f"verified {report.files} files, {_size(report.bytes)} in {report.seconds:.1f} s")
    return 0 if all(row.verdict.good for row in report.rows) else NOT_GOOD


def _diff(arguments: argparse.Namespace, workspace: Workspace) -> int:
    manifests = []
    for path in (arguments.before, arguments.after):
        manifest, verdict = read_manifest(_folder(path, workspace))
        if manifest is None:
            raise ConfigError(f"{path} cannot be compared: {verdict}")
        manifests.append(manifest)
    same, differs = describe_difference(*manifests)
    if arguments.json:
        return _print_json({"same": same, "differs": differs})
    print(f"same      {', '.join(same) or 'nothing'}")
    print(f"differs   {'; '.join(differs) or 'nothing'}")
    return 0


def _gc(arguments: argparse.Namespace, workspace: Workspace) -> int:
    nodes: list[Node] = read_profile(arguments.profile, workspace)
    found = abandoned_builds(nodes, Verifier(workspace, "cached"))
    total = sum(row.bytes for row in found)
    count = f"{len(found)} folder{'s' * (len(found) != 1)}, {_size(total)}"
    names = "; ".join(f"{workspace.relative(row.folder)}, abandoned build, {row.note}" for row in found)
    if arguments.yes:
        for row in found:
            output = workspace.relative(row.folder).removesuffix(".partial")
            with exclusive(workspace, output, f"{output} is being built"):
                shutil.rmtree(row.folder)
    ask = "removed" if arguments.yes else "would remove"
    print(f"{ask} {count}{'' if arguments.yes else ' (add --yes)'}{': ' * bool(names)}{names}")
    print("never touched: sealed artifacts, raw sources, logs; .tampered folders are named, not removed")
    for node in nodes:
        kept = node.output.with_name(node.output.name + TAMPERED)
        if kept.is_dir():
            print(f"kept      {workspace.relative(kept)}, an altered artifact that --force set aside")
    return 0


def _folder(path: Path, workspace: Workspace) -> Path:
    folder = workspace.path(path.absolute())
    if not folder.is_dir():
        raise ConfigError(f"{path} is not a folder")
    return folder


def _print_json(data: object) -> int:
    print(json.dumps(data, indent=1))
    return 0


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


COMMANDS: dict[str, Callable[[argparse.Namespace, Workspace], int]] = {
    "plan": _plan,
    "status": _status,
    "why": _why,
    "verify": _verify,
    "diff": _diff,
    "gc": _gc,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
