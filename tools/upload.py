"""
Send a finished artifact to the Hugging Face Hub: a dataset, a tokenizer or a model, with a card.

    python tools/upload.py data/demo/generated --repo USER/NAME --dry-run
    python tools/upload.py data/demo/generated --repo USER/NAME --private
    python tools/upload.py checkpoints/demo/gguf --repo USER/NAME --revision trial

One commit; nothing is deleted and no history is rewritten. The token comes from HF_TOKEN or from
`hf auth login`. Exit codes: 2 usage, 3 the folder is not what its manifest says, 4 a secret or the Hub, 130
Ctrl-C.
"""

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.pipeline.errors import ConfigError, LockstepError
from utils.pipeline.workspace import REPOSITORY, Workspace


def main(argv: list[str] | None = None, workspace: Workspace = REPOSITORY) -> int:
    """Run the program; returns its exit code."""
    try:
        return _run(parse_arguments(argv), workspace)
    except LockstepError as error:
        print(f"error: {error.report()}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; what has arrived is not sent again on a rerun", file=sys.stderr)
        return 130


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line. ConfigError for a token on it, which is never repeated."""
    parser = argparse.ArgumentParser(
        prog="tools/upload.py",
        description="Send an artifact to the Hugging Face Hub.",
        epilog="The token comes from HF_TOKEN or from `hf auth login`.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, help="artifact folder, with its manifest.json")
    parser.add_argument(
        "--repo", required=True, type=repository, metavar="USER/NAME", help="created if it is not there"
    )
    parser.add_argument("--private", action="store_true", help="if it is created, as a private repository")
    parser.add_argument("--revision", default="main", metavar="BRANCH", help="made from main if not there")
    parser.add_argument(
        "--kind", choices=["dataset", "model"], help="default: what the artifact's stage makes"
    )
    parser.add_argument("--dry-run", action="store_true", help="list files and show the card; no network")
    arguments, unknown = parser.parse_known_args(argv)
    if any(text.startswith(("--token", "hf_")) for text in unknown):
        raise ConfigError(
            "a token on the command line would stay in the shell's history and is not taken",
            fix="export HF_TOKEN=..., or hf auth login",
        )
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return arguments


def repository(text: str) -> str:
    """The argument if it can be the name of a repository."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text):
        raise argparse.ArgumentTypeError(f'"{text}" is not of the form USER/NAME')
    return text


def _run(arguments: argparse.Namespace, workspace: Workspace) -> int:
    from huggingface_hub import get_token

    from utils.generate.hub import Target
    from utils.generate.hub_card import card
    from utils.generate.hub_parcel import pack

    token = get_token() or ""
    parcel = pack(arguments.folder, workspace, arguments.kind, [token])
    target = Target(arguments.repo, parcel.kind, arguments.private, arguments.revision)
    text = card(parcel, target.repo)
    print(f"{workspace.relative(parcel.folder)} -> {target}")
    for file in parcel.files:
        print(f"  {file.bytes:>15,}  {file.path}")
    print(f"  {len(text.encode()):>15,}  README.md (the card)")
    print(f"{len(parcel.files) + 1} files, {parcel.total_bytes / 1e6:,.1f} MB")
    if parcel.left_out:
        print(f"stays here: {', '.join(parcel.left_out)}")
    if arguments.dry_run:
        print(f"\n{text}\ndry run: nothing was sent")
        return 0
    return _send(parcel, target, text, token)


def _send(parcel: object, target: object, text: str, token: str) -> int:
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars, logging

    from utils.generate.hub import Hub

    if not token:
        raise ConfigError("there is no token for the Hub", fix="export HF_TOKEN=..., or hf auth login")
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        disable_progress_bars()
    outcome = Hub(target, HfApi(token=token, library_name="lockstep"), print).send(parcel, text)
    if not outcome.commit:
        print(f"up to date: {target.repo} already holds exactly these files")
        return 0
    if outcome.replaced:
        print(f"replaced  {len(outcome.replaced)} files of the same name; the history keeps the old ones")
    print(f"committed {outcome.commit[:12]}  {outcome.url}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
