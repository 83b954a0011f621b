"""
Preference pairs from chats, or new rejected answers for pairs: any OpenAI-compatible model writes them.

    python tools/transform.py sft-to-dpo --config config/mine/15_sft_to_dpo.json
    python tools/transform.py regen-rejected --config config/mine/15_regen_rejected.json

Reads   chats (messages, sharegpt, alpaca, ...) or pairs: files of your own, or an artifact of stage 10
Writes  <dataset>/dataset.jsonl in the order of the input, failures.jsonl, DATA_CARD.md, manifest.json

It runs like a stage, with a stage's options and exit codes: see `--help` behind a command. A row that fails
is in failures.jsonl and is asked for again on a rerun; while more than `max_failed_rows` fail, the exit code
is 4.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config.transform import RegenRejectedConfig, SFTToDPOConfig, TransformConfig
from utils.pipeline.errors import ConfigError
from utils.pipeline.stage import Stage, execute
from utils.pipeline.workspace import REPOSITORY, Workspace

if TYPE_CHECKING:
    from utils.chat.conversation import Conversation
    from utils.chat.pairs import Pair
    from utils.generate.transform import SourceRow

COMMANDS = {"sft-to-dpo": SFTToDPOConfig, "regen-rejected": RegenRejectedConfig}


def main(argv: list[str], workspace: Workspace = REPOSITORY) -> int:
    """Run one command and return its exit code."""
    if not argv or argv[0] not in COMMANDS:
        print(__doc__.strip(), file=sys.stdout if argv[:1] in (["-h"], ["--help"]) else sys.stderr)
        return 0 if argv[:1] in (["-h"], ["--help"]) else 2
    config_class = COMMANDS[argv[0]]
    return execute(config_class.stage, config_class, build, argv[1:], workspace)


def build(config: TransformConfig, stage: Stage) -> dict:
    """The work of both commands."""
    from utils.generate.transform_card import write_card
    from utils.generate.transform_run import transform

    total = count_rows(config, stage)
    rows, root = source_rows(config, stage), stage.workspace.root
    made = transform(config, rows, total, stage.partial, root, stage.log, lambda: stage.stopping)
    if made is None:
        stage.stop_point()
    stage.log("transformed", f"{config.dataset}: {made.rows:,} rows, {sum(made.failed.values()):,} left out")
    stage.run_info(calls_made=made.calls_made, usage=made.usage)
    return write_card(config, made, stage.partial)


def count_rows(config: TransformConfig, stage: Stage) -> int:
    """How many rows the sources have. ConfigError, before anything is paid for, if that is a slip."""
    from utils.chat.reading import read_source
    from utils.corpus.row_lines import row_lines

    files = (rows for source in config.sources for _, rows in read_source(stage, source, row_lines))
    total = sum(1 for rows in files for _ in rows)
    if total > config.limits.max_rows:
        raise ConfigError(
            f"the sources have {total:,} rows, more than limits.max_rows = {config.limits.max_rows:,}",
            fix="raise limits.max_rows to mean it, or set limit_rows of a source",
        )
    return total


def source_rows(config: TransformConfig, stage: Stage) -> Iterator[SourceRow]:
    """The rows of all sources in order, numbered from 1; what cannot be read is a row with a problem."""
    from utils.chat.conversation import Rejection
    from utils.chat.formats import FORMATS, chat_format
    from utils.chat.pairs import PAIR_FORMATS, pair_format
    from utils.chat.prepare import adapt_rows
    from utils.chat.reading import read_source
    from utils.corpus.row_lines import row_lines
    from utils.generate.transform import SourceRow

    chats = isinstance(config, SFTToDPOConfig)
    table, named = (FORMATS, chat_format) if chats else (PAIR_FORMATS, pair_format)
    number = 0
    for source in config.sources:
        before = number
        for reading, rows in read_source(stage, source, row_lines):
            name, items = adapt_rows(rows, reading, table, named)
            stage.log("reading", f"{reading.where} as {name}")
            for item in items:
                number += 1
                where = f"{reading.where}, row {item.line:,}"
                if isinstance(item.result, Rejection):
                    yield SourceRow(number, where, problem=item.result.reason, detail=item.result.detail)
                else:
                    yield SourceRow(number, where, *turns_of(item.result))
        if source.kind != "generated":
            stage.source(source.name).count(number - before, number - before)


def turns_of(row: Conversation | Pair) -> tuple[tuple[dict[str, str], ...], str]:
    """The turns up to the answer, and the answer: the last assistant turn, or the chosen one of a pair."""
    from utils.chat.conversation import Conversation

    turns = row.messages[:-1] if isinstance(row, Conversation) else row.prompt
    chosen = row.messages[-1].content if isinstance(row, Conversation) else row.chosen
    return tuple({"role": turn.role, "content": turn.content} for turn in turns), chosen


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
