"""
The command line of the offline teacher.

    python tools/teacher.py --port 8008 --seed 0 --faults 429:0.1:0.5,drop:0.05 --latency-ms 200
"""

import argparse
import asyncio
import os
import sys

from utils.generate.teacher.faults import KINDS, Faults
from utils.generate.teacher.server import Teacher, serve
from utils.pipeline.errors import ConfigError


def main(arguments: list[str] | None = None) -> None:
    """Serve until Ctrl-C; exit 2 when an option makes no sense."""
    given = _parser().parse_args(arguments)
    try:
        teacher = Teacher(
            seed=given.seed,
            faults=Faults.parse(given.faults, given.seed),
            latency_seconds=given.latency_ms / 1000,
            requests_per_minute=given.requests_per_minute,
            key=_key(given.api_key_env),
        )
        asyncio.run(serve(teacher, given.port, given.exit_with_stdin))
    except ConfigError as error:
        print(f"error: {error.report()}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="The offline teacher: a seeded OpenAI-compatible server.",
        epilog=f"Faults: {', '.join(KINDS)}. AMOUNT: seconds of Retry-After (429), else ms.",
    )
    parser.add_argument("--port", type=int, default=8008, help="0 lets the kernel choose")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other answers")
    parser.add_argument(
        "--faults", default="", help="faulty share of calls: 429:0.1:0.5,drop:0.05, all:0.2 or a .json file"
    )
    parser.add_argument("--latency-ms", type=_not_negative, default=0.0, help="what every reply takes")
    parser.add_argument(
        "--requests-per-minute", type=_count, default=0, help="answer 429 above this rate; 0 = no limit"
    )
    parser.add_argument("--api-key-env", default="", help="ask for the key in this environment variable")
    parser.add_argument("--exit-with-stdin", action="store_true", help="stop when stdin closes")
    return parser


def _not_negative(text: str) -> float:
    value = float(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return value


def _key(name: str) -> str:
    if name and not os.environ.get(name):
        raise ConfigError(f"the environment variable {name} is not set", fix=f"export {name}=...")
    return os.environ[name] if name else ""


if __name__ == "__main__":
    main()
