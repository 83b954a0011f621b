"""
Workers of a Dask cluster, which see the same folders and must run the same code with the same libraries.

    PYTHONPATH=. dask scheduler                                  # on one machine, in the repository
    PYTHONPATH=. dask worker tcp://10.0.0.1:8786                 # on every machine, in the repository
    "executor": {"kind": "dask", "address": "tcp://10.0.0.1:8786"}

Every worker is asked for its versions before the first task, and checks them itself before its own first
task, because workers may join later.
"""

import logging
import platform
import time
import warnings
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from functools import lru_cache, partial
from importlib import metadata
from pathlib import Path

from distributed import Client
from distributed.scheduler import KilledWorker, Scheduler

from utils.corpus.executor import Workers
from utils.pipeline.environment import code_modules
from utils.pipeline.errors import StageError
from utils.pipeline.hashing import digest

# the libraries whose versions shape the bytes of texts, sketches and ids
SHAPING = ("ftfy", "py3langid", "datasketch", "numpy", "sentencepiece", "tokenizers", "xxhash")
CODE_FOLDERS = ("config", "corpus", "tokenizer", "packing")
CONNECT_SECONDS, WITHOUT_WORKERS_SECONDS, LOOK_AT_WORKERS_SECONDS = 20, 30, 2
ROOT = Path(__file__).resolve().parents[2]


class DaskWorkers(Workers):
    """`distributed.Client(address).get_executor(pure=False)`, once all workers are known to be equal."""

    def __init__(self, address: str) -> None:
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        self._address = address
        self._expected = shaping_versions()
        self._client = _connect(address)
        try:
            check_workers(self._client.run(shaping_versions, on_error="return"), self._expected)
            self._prepare_scheduler()
        except BaseException:
            self._client.close()
            raise
        self.look_ahead = 2 * sum(self._client.nthreads().values())
        self._executor = self._client.get_executor(pure=False)
        self._seen_workers = self._looked = time.monotonic()

    def _prepare_scheduler(self) -> None:
        try:
            self._client.run_on_scheduler(_one_death_per_task)
        except ImportError as error:
            raise StageError(
                f"the Dask scheduler at {self._address} cannot run this code: {error}",
                fix="start it in the repository: PYTHONPATH=. dask scheduler",
            ) from None

    def submit(self, function: Callable, /, *args: object, **kwargs: object) -> Future:
        with warnings.catch_warnings():
            # a block may be larger than what Dask thinks a task should carry; every block is needed once
            warnings.filterwarnings("ignore", message="Sending large graph")
            return self._executor.submit(partial(_checked, self._expected, function), *args, **kwargs)

    def died(self, error: BaseException | None) -> bool:
        if isinstance(error, CancelledError):
            raise StageError(
                f"the Dask scheduler at {self._address} dropped a task or is gone",
                fix="start it again, then rerun to continue",
            )
        return isinstance(error, KilledWorker)

    def check(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK_AT_WORKERS_SECONDS:
            return
        self._looked = now
        if self._client.nthreads():
            self._seen_workers = now
        elif now - self._seen_workers > WITHOUT_WORKERS_SECONDS:
            raise StageError(
                f"the Dask cluster at {self._address} has had no worker for {WITHOUT_WORKERS_SECONDS} s",
                fix="start workers, then rerun to continue",
            )

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster, which drops every task that still waits or runs."""
        self._executor.shutdown(wait=False)
        self._client.close()


def _connect(address: str) -> Client:
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
        client.wait_for_workers(1, timeout=CONNECT_SECONDS)
    except (OSError, TimeoutError, ValueError) as error:
        raise StageError(
            f"no Dask cluster with workers answers at {address} ({type(error).__name__})",
            fix="start `dask scheduler` and `dask worker`, or correct executor.address",
        ) from None
    return client


def _one_death_per_task(dask_scheduler: Scheduler) -> None:
    """
    A task whose worker died comes back at once, and ordered_map tries it again, alone. Dask's own way, three
    more workers, would cost a small cluster all that it has. It stays so until the scheduler ends.
    """
    dask_scheduler.allowed_failures = 0


@lru_cache(maxsize=1)
def shaping_versions() -> dict[str, str]:
    """What shapes bytes in this process: Python, the code of the stages, the libraries."""
    files = [path for folder in CODE_FOLDERS for path in sorted((ROOT / "utils" / folder).glob("*.py"))]
    modules = {name: value for path in files for name, value in code_modules(path, ROOT).items()}
    versions = {"python": platform.python_version(), "code": digest("code", modules)[:12]}
    return versions | {name: _version(name) for name in SHAPING}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def check_workers(reports: dict[str, dict[str, str] | Exception], expected: dict[str, str]) -> None:
    """StageError for the first worker that differs, naming it and what differs."""
    for worker, report in sorted(reports.items()):
        if isinstance(report, Exception):
            raise StageError(
                f"Dask worker {worker} cannot run this code: {report}",
                fix="start it in the repository: PYTHONPATH=. dask worker ADDRESS",
            )
        for name, wanted in expected.items():
            if report[name] != wanted:
                raise StageError(
                    f"Dask worker {worker} has {name} {report[name]}, this process {wanted}",
                    fix="install requirements.txt and the same commit on every worker, then restart it",
                )


def _checked(expected: dict[str, str], function: Callable, *args: object, **kwargs: object) -> object:
    if shaping_versions() != expected:
        check_workers({platform.node(): shaping_versions()}, expected)
    return function(*args, **kwargs)
