"""
Lists of subtopics and prompts: asked for in chunks at the same time, read in chunk order.

    entries = await ListMaker(config, "chat", calls).ask("prompts", 72, known=[], subtopic="animals", turn=0)
"""

import asyncio

from utils.config.generate import GenerateConfig
from utils.generate.calls import Calls, Request
from utils.generate.errors import CallFailed
from utils.generate.parse import parse_list
from utils.generate.templates import render

MOST_CHUNKS = 100_000
"""More calls than one list is ever cut into, so that turn and chunk make one number."""


class ListMaker:
    """Asks for the lists of one dataset."""

    def __init__(self, config: GenerateConfig, dataset: str, calls: Calls) -> None:
        self._config = config
        self._name = dataset
        self._spec = config.datasets[dataset]
        self._calls = calls
        self.failed: list[CallFailed] = []

    async def ask(self, step: str, count: int, known: list[str], subtopic: str, turn: int) -> list[str]:
        """About `count` entries if the model has them, in an order that no timing can change."""
        chunks = _split(count, self._config.refill.entries_per_call)
        asked = [self._chunk(step, size, known, subtopic, turn, index) for index, size in enumerate(chunks)]
        return [entry for entries in await asyncio.gather(*asked) for entry in entries]

    async def _chunk(
        self, step: str, count: int, known: list[str], subtopic: str, turn: int, index: int
    ) -> list[str]:
        number = MOST_CHUNKS * turn + index
        variables = {
            "main_topic": self._config.main_topic,
            "subtopic": subtopic,
            "prompt": "",
            "count": count,
            "exclude": _every_nth(known, self._config.refill.max_excluded, index),
            "is_retry": turn > 0,
            "index": number,
        }
        template = self._config.templates[getattr(self._spec.templates, step)]
        messages = render(template, variables)
        request = Request(self._name, step, self._spec.main_model, messages, f"{subtopic}\n{number}", number)
        try:
            return parse_list((await self._calls.ask(request)).content)
        except CallFailed as failure:
            self.failed.append(failure)
            return []


def _split(count: int, largest: int) -> list[int]:
    """Even chunks of at most `largest`."""
    chunks = -(-count // largest)
    return [count // chunks + (index < count % chunks) for index in range(chunks)]


def _every_nth(known: list[str], most: int, offset: int) -> list[str]:
    """Up to `most` entries spread over all that is known, others for each chunk."""
    if len(known) <= most:
        return known
    return [known[(position * len(known) // most + offset) % len(known)] for position in range(most)]
