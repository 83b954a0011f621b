"""A real Dask scheduler with two workers: the same bytes, and refusals that name the worker."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.corpus.everything import REMOVED, write_everything
from tests.corpus.tiny import INLINE, ROOT, Tiny
from utils.config.shared import ExecutorConfig
from utils.corpus import cluster, shards, sources
from utils.corpus.cluster import check_workers, shaping_versions
from utils.corpus.executor import open_executor, ordered_map
from utils.pipeline.errors import StageError

Start = Callable[..., None]


@contextmanager
def dask(folder: Path, scheduler_path: str = str(ROOT)) -> Iterator[tuple[str, Start]]:
    """Yield the address of a scheduler on loopback, and a function that starts workers for it."""
    processes: list[subprocess.Popen] = []

    def start(program: str, *arguments: str, path: str = str(ROOT)) -> None:
        command = [sys.executable, "-m", f"distributed.cli.{program}", *arguments, "--no-dashboard"]
        log = open(folder / f"{program}{len(processes)}.log", "wb")  # noqa: SIM115
        quiet = {"stdout": log, "stderr": log, "cwd": folder}
        processes.append(subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, **quiet))

    scheduler = folder / "scheduler.json"
    arguments = ("--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(scheduler))
    start("dask_scheduler", *arguments, path=scheduler_path)
    deadline = time.monotonic() + 120
    while not scheduler.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    address = json.loads(scheduler.read_text())["address"]

    def workers(count: int, path: str = str(ROOT)) -> None:
        for _ in range(count):
            start("dask_worker", address, "--nthreads", "1", "--no-nanny", path=path)
        _wait_for(address, len(processes) - 1)

    try:
        yield address, workers
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()


def _wait_for(address: str, count: int) -> None:
    from distributed import Client

    with Client(address, set_as_default=False) as client:
        client.wait_for_workers(count, timeout=120)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with dask(tmp_path_factory.mktemp("dask")) as (address, start_workers):
        start_workers(2)
        yield address


def test_a_cluster_gives_the_same_bytes(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "BLOCK_ROWS", 20)
    monkeypatch.setattr(shards, "BLOCK_ROWS", 20)
    tiny, on_dask = Tiny(tmp_path), {"kind": "dask", "address": address}
    config = write_everything(tiny)
    prepared = [
        tiny.run("20_prepare_corpus", config | {"output": f"data/{name}", "executor": executor})
        for name, executor in {"corpus": INLINE, "local": {"workers": 2}, "dask": on_dask}.items()
    ]
    assert all(manifest.metrics["sources"]["web"]["removed"] == REMOVED for manifest in prepared)
    assert len({manifest.output_digest for manifest in prepared}) == 1
    tiny.run("30_train_tokenizer", tiny.tokenizer_config())
    packed = [
        tiny.run("40_pack_dataset", tiny.pack_config(output=f"data/packed{i}", executor=executor))
        for i, executor in enumerate((INLINE, {"workers": 2}, on_dask))
    ]
    assert len({manifest.output_digest for manifest in packed}) == 1


def test_order_look_ahead_and_exceptions(address: str):
    with open_executor(ExecutorConfig(kind="dask", address=address)) as executor:
        assert executor.look_ahead == 4
        assert list(ordered_map(executor, abs, range(-9, 0))) == list(range(9, 0, -1))
        with pytest.raises(TypeError):
            list(ordered_map(executor, abs, [1, "text"]))


def die(item: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_poison_document_ends_the_stage_and_names_the_block(tmp_path: Path):
    with dask(tmp_path) as (address, start_workers):
        start_workers(2)
        with open_executor(ExecutorConfig(kind="dask", address=address)) as executor:
            results = ordered_map(executor, die, [21], name=lambda i: f"web rows {2_000 * i:,}-43,999")
            with pytest.raises(StageError, match="died at web rows 42,000-43,999, and again"):
                list(results)


def test_a_worker_with_another_ftfy_is_named_before_the_first_block(tmp_path: Path):
    other = tmp_path / "other" / "ftfy-6.2.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: ftfy\nVersion: 6.2.0\n")
    tiny = Tiny(tmp_path / "workspace")
    tiny.write_books()
    with dask(tmp_path) as (address, start_workers):
        start_workers(1)
        start_workers(1, path=os.pathsep.join((str(other.parent), str(ROOT))))
        config = tiny.corpus_config(executor={"kind": "dask", "address": address})
        tiny.write_config("20_prepare_corpus", config)
        with pytest.raises(StageError) as error:
            cluster.DaskWorkers(address)
        assert tiny.execute("20_prepare_corpus") == 4
    assert "Dask worker tcp://127.0.0.1:" in str(error.value)
    assert str(error.value).endswith(" has ftfy 6.2.0, this process 6.3.1")
    assert not (tiny.root / "data" / "corpus").exists()


def test_a_scheduler_outside_of_the_repository_is_told_so(tmp_path: Path):
    with dask(tmp_path, scheduler_path="") as (address, start_workers):
        start_workers(1)
        with pytest.raises(StageError, match="scheduler at .* cannot run this code: No module named 'utils'"):
            cluster.DaskWorkers(address)


def test_a_worker_that_comes_later_checks_itself():
    cluster._checked(shaping_versions(), abs, -1)
    with pytest.raises(StageError, match=r"has numpy .*, this process 0\.1"):
        cluster._checked(shaping_versions() | {"numpy": "0.1"}, abs, -1)


def test_workers_that_cannot_import_or_run_other_code():
    same = shaping_versions()
    check_workers({"tcp://a": same, "tcp://b": dict(same)}, same)
    with pytest.raises(StageError, match="Dask worker tcp://b has code 0123, this process"):
        check_workers({"tcp://a": same, "tcp://b": same | {"code": "0123"}}, same)
    with pytest.raises(StageError, match="Dask worker tcp://b cannot run this code: No module named 'utils'"):
        check_workers({"tcp://a": same, "tcp://b": ImportError("No module named 'utils'")}, same)


class EmptyCluster:
    """A client whose scheduler has no workers."""

    def nthreads(self) -> dict[str, int]:
        return {}


def test_a_cluster_that_lost_its_workers_or_its_scheduler():
    workers = object.__new__(cluster.DaskWorkers)
    workers._address, workers._client = "tcp://10.0.0.1:8786", EmptyCluster()
    workers._looked = workers._seen_workers = time.monotonic() - 29
    workers.check()
    workers._looked = workers._seen_workers = time.monotonic() - 31
    with pytest.raises(StageError, match="tcp://10.0.0.1:8786 has had no worker for 30 s"):
        workers.check()
    assert not workers.died(ValueError())
    with pytest.raises(
        StageError, match="the Dask scheduler at tcp://10.0.0.1:8786 dropped a task or is gone"
    ):
        workers.died(CancelledError())


def test_nobody_at_the_address(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    with pytest.raises(StageError, match="no Dask cluster with workers answers at tcp://127.0.0.1:9"):
        cluster.DaskWorkers("tcp://127.0.0.1:9")


def test_the_config_wants_an_address_for_dask_only():
    for wrong in ({"kind": "dask"}, {"kind": "local", "address": "tcp://x:1"}):
        with pytest.raises(ValueError, match="needs the address of its scheduler"):
            ExecutorConfig.model_validate(wrong)
