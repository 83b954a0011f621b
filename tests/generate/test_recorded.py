"""What can be told of a generation from its folder alone, also while it goes on."""

import time

import pytest

from tests.generate.helpers import Session, config, small_document
from utils.generate import run
from utils.generate.given import Given
from utils.generate.recorded import Recorded, identity_of, stands
from utils.pipeline.errors import UpstreamError
from utils.pipeline.workspace import REPOSITORY


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped on the way."""
    session = Session(tmp_path_factory.mktemp("stopped"))
    document = small_document(chat=60, pairs=200)
    document["providers"]["teacher"]["max_in_flight"] = 8
    assert session.run(document, stopping=lambda: session.journal.stat().st_size > 60_000) is None
    return session


def test_rows_and_failures_so_far_are_told_in_their_shape(stopped):
    before = stopped.journal.read_bytes()
    with Recorded.open(stopped.folder) as recorded:
        rows = list(recorded.rows("pairs"))
        assert len(rows) == recorded.states["pairs"].rows < 200
        assert all(set(row) == {"prompt", "chosen", "rejected", "id"} for row in rows)
        assert list(recorded.failures("chat")) == []
        assert recorded.config.datasets["pairs"].rows == 200
        calls = sum(counts[0] for counts in recorded.paid.values())
        assert calls == recorded.journal.num_replies > len(rows)
        assert recorded.usage["main.chosen"]["calls"] == recorded.paid["main", "chosen"][0]
    assert stopped.journal.read_bytes() == before


def test_a_folder_without_a_generation_is_refused(tmp_path):
    with pytest.raises(UpstreamError, match="holds no generation"):
        Recorded.open(tmp_path)


def test_a_changed_file_is_another_config(tmp_path):
    path = tmp_path / "topics.txt"
    identities = []
    for text in ("cows\n", "cows\ndogs\n"):
        path.write_text(text)
        configured = config(rows=2, num_subtopics=0, topics_file=str(path))
        identities.append(identity_of(configured, Given.read(configured, REPOSITORY), REPOSITORY))
    assert stands(identities[0], identities[0]) and not stands(*identities)


def test_the_time_that_is_told_is_that_until_the_run_goes_on(tmp_path, monkeypatch):
    """What was accepted is loaded after the journal was read, and belongs to it."""
    session, document = Session(tmp_path), small_document(chat=8)
    session.run(document)
    opened, told = run.open_desks, []

    def slowly(*parts: object) -> object:
        time.sleep(0.3)
        return opened(*parts)

    def log(event: str, text: str = "", **fields: object) -> None:
        if event == "journal":
            told.append(fields["seconds"])

    monkeypatch.setattr(run, "open_desks", slowly)
    monkeypatch.setattr(session, "_log", log)
    session.run(document)
    assert len(told) == 1 and told[0] >= 0.3
