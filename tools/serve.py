"""
Serve a model over HTTP, in the shape of OpenAI's API.

    python tools/serve.py --model checkpoints/demo/gguf/model-q8_0.gguf
    python tools/serve.py --model checkpoints/demo/sft --port 8081 --slots 8
    curl -s http://127.0.0.1:8080/v1/chat/completions -d '{"messages": [{"role": "user", "content": "Hi"}]}'

Routes: POST /v1/chat/completions, /v1/completions, /generate, /generate/batch, /generate/stream;
GET /v1/models, /health, /info. Only this machine can reach it unless --host says otherwise, and then it asks
for a key. The first line on standard output is JSON with the base URL. A model that is not what its manifest,
or its own header, says is refused with exit code 3.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.pipeline.errors import ConfigError, LockstepError, Stopped
from utils.pipeline.signals import handled, stop_at_once
from utils.pipeline.workspace import REPOSITORY, Workspace

if TYPE_CHECKING:
    from tools.opening import Opened
    from utils.serving.door import Door
    from utils.serving.service import Limits, Service

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def main(argv: list[str] | None = None, workspace: Workspace = REPOSITORY) -> int:
    """Run the program; returns its exit code: 0 after a stop by signal."""
    arguments = parse_arguments(argv)
    try:
        return _run(arguments, workspace)
    except LockstepError as error:
        print(f"error: {error.report()}", file=sys.stderr)
        return error.exit_code
    except Stopped as stopped:
        return stopped.exit_code


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tools/serve.py", description="Serve a model over HTTP.")
    add = parser.add_argument
    add("--model", type=Path, required=True, help="checkpoint folder, adapter folder or .gguf file")
    add("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    add("--port", type=int, default=8080, help="0 takes any that is free")
    add("--slots", type=_at_least_one, default=4, help="answers written at the same time (default 4)")
    add("--threads", type=int, default=0, help="CPU threads; 0 = the library's choice")
    add("--api-key-env", default="", metavar="NAME", help="environment variable with the key to ask for")
    add("--without-key", action="store_true", help="let everybody in who can reach --host")
    add("--allow-host", action="append", default=[], metavar="NAME", help="also answer to this Host header")
    add("--cors-origin", default="", metavar="ORIGIN", help="let pages of this origin call; default: none")
    add("--max-body-bytes", type=_at_least_one, default=1024 * 1024, help="largest request")
    add("--max-prompt-tokens", type=int, default=0, help="longest prompt; 0 = what fits the context")
    add("--max-tokens", type=_at_least_one, default=4096, help="longest answer that may be asked for")
    add("--max-batch-prompts", type=_at_least_one, default=64, help="prompts in one request")
    add("--queue", type=int, default=64, help="answers that may wait for a slot; more get HTTP 429")
    add("--timeout-seconds", type=float, default=120.0, help="longest time for one answer, waiting included")
    add("--idle-seconds", type=float, default=30.0, help="how long a client may neither send nor take")
    add("--log-prompts", action="store_true", help="write requests to standard error")
    return parser.parse_args(argv)


def _at_least_one(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _run(arguments: argparse.Namespace, workspace: Workspace) -> int:
    from utils.serving.api import make_app
    from utils.serving.server import bind, serve

    door = _door(arguments)
    with handled(stop_at_once), bind(arguments.host, arguments.port) as sock:
        from tools.opening import open_model

        opened = open_model(arguments.model, workspace, arguments.threads)
        service = _service(arguments, opened)
        service.worker.start()
        try:

            def announce(base_url: str) -> None:
                print(f"{opened.title}\nlistening on {base_url}; Ctrl-C stops", file=sys.stderr, flush=True)
                print(json.dumps({"base_url": base_url, "model": service.model.name}), flush=True)

            asyncio.run(serve(make_app(service, door), sock, service.limits.stop_seconds, announce))
        finally:
            service.worker.close()
            opened.engine.close()
    return 0


def _door(arguments: argparse.Namespace) -> Door:
    """Who may come in. ConfigError for a server that the network reaches and that asks for no key."""
    from utils.serving.door import Door
    from utils.serving.server import is_loopback

    key = os.environ.get(arguments.api_key_env, "") if arguments.api_key_env else ""
    if arguments.api_key_env and not key:
        raise ConfigError(
            f"the environment variable {arguments.api_key_env} holds no key",
            fix=f"export {arguments.api_key_env}=...",
        )
    if not (key or arguments.without_key or is_loopback(arguments.host)):
        raise ConfigError(
            f"others could reach {arguments.host}, and no key is asked for",
            fix="--api-key-env NAME, or --without-key if everybody may use it",
        )
    hosts = {*LOOPBACK, arguments.host, *arguments.allow_host}
    if not is_loopback(arguments.host):
        hosts.add(socket.gethostname())
    return Door(frozenset(host.lower() for host in hosts), key, arguments.cors_origin)


def _service(arguments: argparse.Namespace, opened: Opened) -> Service:
    from utils.serving.service import Service
    from utils.serving.worker import Worker

    engine, limits = opened.engine, _limits(arguments)
    slots = opened.open_slots(arguments.slots)
    worker = Worker(slots, engine, engine.stop_ids, engine.context_tokens, limits.queue)
    return Service(
        opened.model,
        engine,
        worker,
        lambda messages: chat_ids(opened, messages),
        engine.context_tokens,
        engine.vocab_size,
        arguments.slots,
        limits,
        slots.constraint is not None,
        arguments.log_prompts,
    )


def _limits(arguments: argparse.Namespace) -> Limits:
    from utils.serving.service import Limits

    return Limits(
        max_body_bytes=arguments.max_body_bytes,
        max_prompt_tokens=arguments.max_prompt_tokens,
        max_tokens=arguments.max_tokens,
        max_batch_prompts=arguments.max_batch_prompts,
        queue=arguments.queue,
        request_seconds=arguments.timeout_seconds,
        idle_seconds=arguments.idle_seconds,
    )


def chat_ids(opened: Opened, messages: Sequence[tuple[str, str]]) -> Sequence[int]:
    """Prompt ids of a conversation, its texts trimmed as in training. ValueError says what is wrong."""
    import jinja2

    from utils.chat.conversation import FOLLOWS, NONCHARACTERS, Message, clean_text

    previous, turns = "", []
    for number, (role, text) in enumerate(messages, start=1):
        role = "system" if role == "developer" else role
        if role not in FOLLOWS:
            raise ValueError(f'message {number} has role "{role}": {", ".join(FOLLOWS)} are known')
        if previous not in FOLLOWS[role]:
            raise ValueError(f"message {number} is of {role} after {previous or 'nothing'}")
        if any(character in text for character in NONCHARACTERS):
            raise ValueError(f"message {number} holds a Unicode noncharacter")
        turns.append(Message(role, clean_text(text)))
        previous = role
    if previous not in FOLLOWS["assistant"]:
        raise ValueError(f"the last message is of {previous}, so there is nothing to answer")
    try:
        return opened.encoder.prompt(turns).tolist()
    except jinja2.TemplateError as error:
        raise ValueError(f"the chat template does not take this conversation: {error}") from None


if __name__ == "__main__":
    sys.exit(main())
