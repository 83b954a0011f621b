"""
Stage 20 on a dataset of a Hub on loopback: killed, cut off, refused, offline.

Every run is a process of its own, because the address of the Hub is read when its library is imported.
"""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.corpus.fake_hub import FakeHub, fake_hub
from tests.corpus.test_hub import as_gzip
from tests.corpus.tiny import ROOT, Tiny, chapters
from utils.pipeline.manifest import read_manifest

RUN = """
import sys
sys.path[:0] = [{root!r}]
import os, signal
from pathlib import Path
from tests.corpus.tiny import Tiny
from utils.corpus import hub, sources
from utils.pipeline.journal import Journal
sources.BLOCK_ROWS, hub.FIRST_PAUSE_SECONDS = 40, 0.01
commit, left = Journal.commit, [{commits}]
def deadly(self, record):
    commit(self, record)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
Journal.commit = deadly
if __name__ == "__main__":
    sys.exit(Tiny(Path({workspace!r})).execute("20_prepare_corpus", *{arguments!r}))
"""


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub() as running:
        yield running


def run(hub: FakeHub, tiny: Tiny, *arguments: str, commits: int = 0, **environment: str) -> tuple[int, str]:
    """Stage 20 in a process that takes the fake for the Hub; exit code and output."""
    code = RUN.format(root=str(ROOT), workspace=str(tiny.root), commits=commits, arguments=arguments)
    variables = os.environ | hub.environment(tiny.root / "home") | environment
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=variables, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def hub_config(tiny: Tiny, **changes: object) -> dict:
    fields = {"text": "text", "group": "title", "id": "id"}
    source = {"name": "web", "kind": "hub", "id": "me/web", "fields": fields, "preset": "short"}
    return tiny.corpus_config(sources=[source | {"rules": {"top_4gram": "off"}} | changes])


def parts(seed: int = 0, count: int = 3) -> dict[str, bytes]:
    """Files of a dataset: 60 chapters each, with noise that keeps them from being compressed away."""
    noise = random.Random(seed)
    files = {}
    for part in range(count):
        rows = [row for book in range(10) for row in chapters(100 * seed + 10 * part + book, 6)]
        rows = [row | {"noise": f"{noise.getrandbits(8_000):x}"} for row in rows]
        files[f"data/train-{part}.jsonl.gz"] = as_gzip(rows)
    return files


@pytest.mark.slow
def test_a_stage_killed_and_cut_off_reads_every_row_once(hub: FakeHub, tmp_path: Path):
    commit = hub.push("me/web", parts())
    tiny, whole = Tiny(tmp_path / "a"), Tiny(tmp_path / "b")
    for one in (tiny, whole):
        one.write_config("20_prepare_corpus", hub_config(one))
    assert run(hub, whole)[0] == 0
    hub.break_after(40_000)
    assert run(hub, tiny, commits=2)[0] == -9
    hub.push("me/web", parts(seed=9))  # the branch moves while nobody looks
    hub.break_after(60_000)
    code, said = run(hub, tiny)
    assert code == 0 and "resuming" in said, said
    manifests = [read_manifest(one.root / "data/corpus")[0] for one in (tiny, whole)]
    assert manifests[0].output_digest == manifests[1].output_digest
    source = manifests[0].sources[0]
    assert (source.requested_revision, source.resolved_revision) == ("main", commit)
    assert source.rows_read == manifests[0].metrics["sources"]["web"]["read"] == 180
    assert not any(request.endswith(".py") and "GET" in request for request in hub.requests)


@pytest.mark.slow
def test_what_the_hub_refuses_is_said_in_one_line(hub: FakeHub, tmp_path: Path):
    hub.push("me/web", parts(count=1))
    tiny = Tiny(tmp_path)
    cases = {
        'source "web": there is no dataset me/none on the Hub': (hub_config(tiny, id="me/none"), 2),
        'source "web": dataset me/web has no revision "v2"': (hub_config(tiny, revision="v2"), 2),
        'source "web" (me/web): Bad split: test. Available splits': (hub_config(tiny, split="test"), 2),
        'source "web" (me/web): BuilderConfig \'de\' not found': (hub_config(tiny, subset="de"), 2),
        "which occurs in none of the first 60 rows; they have id, noise, text, title": (
            hub_config(tiny, fields={"text": "body"}), 2,
        ),
    }  # fmt: skip
    for message, (config, expected) in cases.items():
        tiny.write_config("20_prepare_corpus", config)
        code, said = run(hub, tiny)
        assert (code, "Traceback" in said) == (expected, False), said
        assert message in said


@pytest.mark.slow
def test_offline_stops_at_once_and_an_artifact_needs_no_network(hub: FakeHub, tmp_path: Path):
    hub.push("me/web", parts(count=1))
    tiny = Tiny(tmp_path)
    tiny.write_config(
        "20_prepare_corpus", hub_config(tiny, max_removed_fraction=0.9) | {"split": {"val_fraction": 0.5}}
    )
    code, said = run(hub, tiny, HF_HUB_OFFLINE="1")
    assert code == 4 and "HF_HUB_OFFLINE is set" in said, said
    assert hub.requests == []
    code, said = run(hub, tiny)
    assert code == 0, said
    code, said = run(hub, tiny, HF_HUB_OFFLINE="1")
    assert code == 0 and "up to date" in said, said
