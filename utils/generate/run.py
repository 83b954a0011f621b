"""
A whole generation run: providers opened, datasets filled side by side, nothing paid for lost.

    result = generate(config, partial, log=stage.log, stopping=lambda: stage.stopping)
    if result is None: ...      # a stop was asked for; the same command continues
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from utils.config.generate import GenerateConfig, ProviderSpec
from utils.generate.calls import Calls
from utils.generate.client import ChatClient, open_session
from utils.generate.dataset import Dataset
from utils.generate.errors import Draining
from utils.generate.journal import CallJournal
from utils.generate.teacher.process import offline_teacher
from utils.generate.write import Generated, write_failures
from utils.pipeline.errors import ConfigError

LOOK_SECONDS = 0.05
PROGRESS_SECONDS = 10.0


def generate(
    config: GenerateConfig, partial: Path, log: Callable[..., None], stopping: Callable[[], bool]
) -> Generated | None:
    """Fill every dataset; None when `stopping` became true. StageError when counts stay short."""
    keys = {name: api_key(name, provider) for name, provider in config.providers.items()}
    journal = CallJournal(partial / ".journal" / "calls.jsonl", config.journal)
    if len(journal):
        log(
            "journal",
            f"{len(journal):,} replies are already paid for",
            replies=len(journal),
            damaged=journal.damaged,
        )
    try:
        with _endpoints(config) as addresses:
            return asyncio.run(_Run(config, journal, keys, addresses, partial, log, stopping).finish())
    finally:
        journal.close()


def api_key(name: str, provider: ProviderSpec) -> str:
    """The key from the environment, "" for none; ConfigError when only a loopback host needs none."""
    key = os.environ.get(provider.api_key_env, "") if provider.api_key_env else ""
    if not key and provider.kind == "openai" and not _is_loopback(urlsplit(provider.base_url).hostname or ""):
        wanted = provider.api_key_env or "(api_key_env is empty)"
        raise ConfigError(
            f'provider "{name}" needs a key: the environment variable {wanted} is not set',
            fix=f"export {provider.api_key_env or 'NAME'}=... and name it in providers.{name}.api_key_env",
        )
    return key


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


@contextmanager
def _endpoints(config: GenerateConfig) -> Iterator[dict[str, str]]:
    """Base URL of every provider; offline teachers live as long as the block."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(offline_teacher(config.seed))
            if provider.kind == "offline-teacher"
            else provider.base_url
            for name, provider in config.providers.items()
        }


class _Run:
    """One event loop's worth of work."""

    def __init__(
        self,
        config: GenerateConfig,
        journal: CallJournal,
        keys: dict[str, str],
        addresses: dict[str, str],
        partial: Path,
        log: Callable[..., None],
        stopping: Callable[[], bool],
    ) -> None:
        self._config = config
        self._journal = journal
        self._keys, self._addresses = keys, addresses
        self._partial = partial
        self._log, self._stopping = log, stopping

    async def finish(self) -> Generated | None:
        self._closing = asyncio.Event()
        most = sum(provider.max_in_flight for provider in self._config.providers.values())
        async with open_session(most) as session:
            clients = {
                name: ChatClient(
                    name, self._addresses[name], self._keys[name], provider, session, self._closing
                )
                for name, provider in self._config.providers.items()
            }
            calls = Calls(self._config, clients, self._journal)
            datasets = [Dataset(self._config, name, calls) for name in self._config.datasets]
            watch = asyncio.create_task(self._watch(datasets, calls))
            try:
                ends = await asyncio.gather(*(d.fill() for d in datasets), return_exceptions=True)
                self._closing.set()
                await self._drain(calls)
            finally:
                watch.cancel()
                for dataset in datasets:
                    await dataset.leave()
        return self._outcome([end for end in ends if isinstance(end, BaseException)], datasets, calls)

    def _outcome(
        self, errors: list[BaseException], datasets: list[Dataset], calls: Calls
    ) -> Generated | None:
        write_failures(datasets, self._partial)
        for error in errors:
            if not isinstance(error, Draining):
                raise error
        if errors:
            return None
        return Generated(
            datasets, {name: dict(counts) for name, counts in sorted(calls.usage.items())}, calls.made
        )

    async def _drain(self, calls: Calls) -> None:
        """Let calls in flight finish: they are paid for."""
        until = time.monotonic() + self._config.journal.drain_seconds
        while calls.under_way and time.monotonic() < until:
            await asyncio.sleep(LOOK_SECONDS)

    async def _watch(self, datasets: list[Dataset], calls: Calls) -> None:
        """Notice a request to stop; say now and then how far the run is."""
        told = time.monotonic()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self._stopping() and not self._closing.is_set():
                self._log("stopping", "calls in flight may finish; no new ones start")
                self._closing.set()
            if time.monotonic() - told >= PROGRESS_SECONDS:
                told = time.monotonic()
                state = ", ".join(f"{d.name} {d.finished:,} of {d.spec.rows:,}" for d in datasets)
                trouble = f"; last failure {calls.failures()}" if calls.failures() else ""
                self._log("progress", f"{state}; {calls.under_way:,} calls waiting or in flight{trouble}")
