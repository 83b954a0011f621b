"""
Talk to a model in the terminal.

    python tools/chat.py --model checkpoints/demo/gguf/model-q8_0.gguf
    python tools/chat.py --model checkpoints/demo/sft --once "What colour is the sky?"
    echo "What colour is the sky?" | python tools/chat.py --model checkpoints/demo/gguf/model-f16.gguf
    python tools/chat.py --model checkpoints/demo/gguf/model-q8_0.gguf --sample data/demo/sft

Commands: /reset forgets the conversation, /system TEXT sets the system message, /exit leaves. Ctrl-C ends an
answer.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.pipeline.errors import ConfigError, LockstepError
from utils.pipeline.workspace import REPOSITORY, Workspace

if TYPE_CHECKING:
    from tools.opening import Opened
    from utils.chat.conversation import Message
    from utils.serving.sampling import Sampling

HELP = "/reset  /system TEXT  /exit   (Ctrl-C ends an answer)"


@dataclass
class Chat:
    """A conversation with an opened model: keeps the messages, drops the oldest when the context is full."""

    opened: Opened
    sampling: Sampling
    system: str = ""
    turns: list[Message] = field(default_factory=list)

    def ask(self, question: str) -> str:
        """Print the answer while it is written; Ctrl-C ends it and keeps what is there."""
        from utils.chat.conversation import Message
        from utils.serving.engine import Generation

        self.turns.append(Message("user", question))
        generation = Generation(self.opened.engine, self._prompt(), self.sampling)
        answer = ""
        try:
            for text in generation.text():
                print(text, end="", flush=True)
                answer += text
        except KeyboardInterrupt:
            print(" [stopped]", end="")
        print(flush=True)
        self.turns.append(Message("assistant", answer))
        return answer

    def reset(self) -> None:
        self.turns.clear()

    def _prompt(self) -> list[int]:
        """Prompt ids that leave room for an answer: whole oldest exchanges go first."""
        from utils.chat.conversation import Message

        room = self.opened.engine.context_tokens - min(
            self.sampling.max_tokens, self.opened.engine.context_tokens // 2
        )
        while True:
            system = [Message("system", self.system)] if self.system else []
            ids = self.opened.encoder.prompt([*system, *self.turns])
            if len(ids) <= room or len(self.turns) == 1:
                break
            self.turns = self.turns[2:]
            print("[the oldest exchange was dropped: the context is full]", file=sys.stderr)
        if len(ids) >= self.opened.engine.context_tokens:
            self.turns.clear()
            raise ConfigError(
                f"the question needs {len(ids)} tokens, the model's context is "
                f"{self.opened.engine.context_tokens}",
                fix="ask something shorter",
            )
        return ids.tolist()


def main(argv: list[str] | None = None, workspace: Workspace = REPOSITORY) -> int:
    """Run the program; returns its exit code."""
    arguments = parse_arguments(argv)
    try:
        return _run(arguments, workspace)
    except LockstepError as error:
        print(f"error: {error.report()}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tools/chat.py", description="Talk to a model in the terminal.")
    parser.add_argument(
        "--model", type=Path, required=True, help="checkpoint folder, adapter folder or .gguf file"
    )
    parser.add_argument("--system", default="", help="system message")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0 takes the likeliest token (default)"
    )
    parser.add_argument("--top-k", type=int, default=0, help="choose among the k likeliest tokens; 0 = all")
    parser.add_argument(
        "--top-p", type=float, default=1.0, help="choose among the tokens that make up this share"
    )
    parser.add_argument("--max-tokens", type=int, default=256, help="longest answer")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same answer")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 = the library's choice")
    once = parser.add_mutually_exclusive_group()
    once.add_argument("--once", default="", metavar="TEXT", help="answer this and leave")
    once.add_argument(
        "--sample", type=Path, help="answer some questions and leave: a text file, or an artifact of stage 60"
    )
    parser.add_argument("--questions", type=int, default=5, help="how many questions --sample asks")
    return parser.parse_args(argv)


def _run(arguments: argparse.Namespace, workspace: Workspace) -> int:
    from tools.opening import open_model
    from utils.serving.sampling import Sampling

    try:
        sampling = Sampling(
            arguments.max_tokens, arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    chat = Chat(open_model(arguments.model, workspace, arguments.threads), sampling, arguments.system)
    try:
        if arguments.sample:
            _sample(chat, sample_questions(workspace.path(arguments.sample), arguments.questions))
        elif arguments.once or not sys.stdin.isatty():
            _once(chat, arguments.once or _readable(sys.stdin.read()).strip())
        else:
            _converse(chat)
    finally:
        chat.opened.engine.close()
    return 0


def _readable(text: str) -> str:
    """The text with every byte that was no UTF-8 replaced."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _once(chat: Chat, question: str) -> None:
    if not question:
        raise ConfigError("nothing was asked", fix='give a question: --once "TEXT", or on standard input')
    chat.ask(question)


def _sample(chat: Chat, questions: list[str]) -> None:
    """A sample conversation for the end of a run: each question on its own, as the model was trained."""
    print(chat.opened.title)
    for question in questions:
        print(f"\nyou    {question}\nmodel  ", end="")
        chat.reset()
        chat.ask(question)


def sample_questions(path: Path, count: int) -> list[str]:
    """
    `count` questions spread over a text file (one a line) or over the held-out rows of a stage-60
    artifact.
    """
    if (path / "test.rows.jsonl.zst").is_file():
        questions = _held_out_questions(path)
    elif path.is_file():
        text = path.read_text(encoding="utf-8", errors="replace")
        questions = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        raise ConfigError(
            f"{path} {'holds no held-out questions' if path.exists() else 'does not exist'}",
            fix="give --sample a text file or an artifact of stage 60",
        )
    step = max(1, len(questions) // max(1, count))
    return questions[::step][:count]


def _held_out_questions(folder: Path) -> list[str]:
    from utils.evaluation.held_out import first_user_turn, read_rows

    rows = read_rows(PlainFolder(folder), "test")
    return list(dict.fromkeys(first_user_turn(row["messages"]) for row in rows))


@dataclass(frozen=True)
class PlainFolder:
    """A folder whose files are only shown, never learned from, so they are opened without proof."""

    path: Path

    def open(self, name: str):
        return open(self.path / name, "rb")


def _converse(chat: Chat) -> None:
    print(f"{chat.opened.title}\n{HELP}")
    while True:
        try:
            line = input("\nyou    ").strip()
        except EOFError:
            return
        command, _, rest = line.partition(" ")
        if command == "/exit":
            return
        if command == "/reset":
            chat.reset()
        elif command == "/system":
            chat.system = rest.strip()
            chat.reset()
        elif command.startswith("/"):
            print(f"no such command: {command}   {HELP}")
        elif line:
            _answer(chat, line)


def _answer(chat: Chat, line: str) -> None:
    print("model  ", end="", flush=True)
    try:
        chat.ask(line)
    except ConfigError as error:
        print(error)


if __name__ == "__main__":
    sys.exit(main())
