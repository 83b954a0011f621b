"""
A server over a small model in a thread of this process, for tests that talk to it as anybody would.

    with serving(service, door) as base_url:
        requests.get(f"{base_url}/health")
"""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from aiohttp import web

from tests.export.tiny_model import CHATML, tiny_model
from tools.serve import LOOPBACK, chat_ids
from utils.chat.masks import ChatEncoder
from utils.chat.templates import ChatTemplate
from utils.models.load import load_model
from utils.serving.api import make_app
from utils.serving.door import Door
from utils.serving.service import Limits, ServedModel, Service
from utils.serving.slots import CheckpointSlots, Slots
from utils.serving.worker import Worker
from utils.tokenizer.frozen import FrozenTokenizer

MODEL = ServedModel("toy", "checkpoint", "float32", "d" * 64, "f" * 64, "e" * 64, "a" * 64, ())
OPEN = Door(frozenset(LOOPBACK))
PLAIN = Limits()


def tiny_slots(num_slots: int = 4) -> CheckpointSlots:
    torch.set_num_threads(1)
    return CheckpointSlots(load_model(tiny_model()), num_slots)


def service_over(slots: Slots, limits: Limits = PLAIN, **more: object) -> Service:
    """The tiny model's tokenizer and template over any slots."""
    tokenizer = FrozenTokenizer(tiny_model())
    opened = SimpleNamespace(encoder=ChatEncoder(ChatTemplate(CHATML), tokenizer))
    worker = Worker(slots, tokenizer, frozenset({2, 5}), 128, limits.queue)

    def ids(messages: Sequence[tuple[str, str]]) -> Sequence[int]:
        return chat_ids(opened, messages)

    return Service(MODEL, tokenizer, worker, ids, 128, 512, slots.num_slots, limits, **more)


@contextmanager
def serving(service: Service, door: Door = OPEN) -> Iterator[str]:
    """Yield the address without /v1; the worker ends with the block."""
    loop, ready, address = asyncio.new_event_loop(), threading.Event(), []
    runner = web.AppRunner(
        make_app(service, door), access_log=None, handler_cancellation=True, shutdown_timeout=1
    )

    async def start() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        ready.set()

    def run() -> None:
        loop.run_until_complete(start())
        loop.run_forever()

    service.worker.start()
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield address[0]
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        service.worker.close()
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
