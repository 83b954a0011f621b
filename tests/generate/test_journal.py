"""What a process's death, a torn line and a damaged one do to the journal: nothing that costs money twice."""

import os
import random
import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.config.providers import JournalSpec
from utils.generate.history import History
from utils.generate.journal import Entry, Journal, JournalReader, Scan, decode_line, encode_line, reply_of
from utils.generate.reply import Reply
from utils.pipeline.errors import DataError

texts = st.text(max_size=40)


def reply(text: str = "moo", thought: str = "") -> Reply:
    return Reply(text, thought, "stop", 3, 5)


def identity(number: int) -> str:
    return f"{number:032x}"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log" / "journal.jsonl"


OPEN: list[Journal] = []


@pytest.fixture(autouse=True)
def close_journals():
    """No thread of one test syncs during the next."""
    yield
    for journal in OPEN:
        with suppress(OSError):
            journal.close()
    OPEN.clear()


def opened(path, spec: JournalSpec | None = None) -> tuple[Journal, list[Entry]]:
    seen: list[Entry] = []
    OPEN.append(Journal(path, spec or JournalSpec(), seen.append))
    return OPEN[-1], seen


def filled(path, count: int = 5) -> bytes:
    journal, _ = opened(path)
    for number in range(count):
        journal.add_reply(identity(number), "main", "chosen", reply(f"text {number}"))
    journal.close()
    return path.read_bytes()


@given(content=texts, thought=texts, finish=texts)
def test_any_reply_comes_back_as_it_was(content, thought, finish):
    told = {"content": content, "finish_reason": finish, "reasoning": thought}
    line = encode_line("reply", (identity(7), "main", "chosen", 12, 80), told)
    entry = decode_line(line, 99)
    assert line.count(b"\n") == 1 and entry is not None and entry.offset == 99
    assert reply_of(entry) == Reply(content, thought, finish, 12, 80)


@given(data=st.data())
def test_a_line_with_any_byte_changed_is_known_as_damaged(data):
    line = encode_line("row", ("chat", 3), {"prompt": "What is a cow?"})
    place = data.draw(st.integers(0, len(line) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != line[place]))
    assert decode_line(line[:place] + bytes([other]) + line[place + 1 :]) is None


def test_the_header_is_read_without_the_json():
    entry = decode_line(encode_line("reply", (identity(1), "main", "chosen", 12, 80), {"content": "x"}))
    assert (entry.kind, entry.fields) == ("reply", [identity(1), "main", "chosen", "12", "80"])
    assert decode_line(encode_line("config", (), {"a": 1})).record() == {"a": 1}


def test_replies_survive_a_restart_and_are_found_by_identity(path):
    filled(path)
    journal, seen = opened(path)
    assert journal.num_replies == 5 and [entry.kind for entry in seen] == ["reply"] * 5
    assert journal.reply(identity(3)) == reply("text 3") and journal.reply(identity(9)) is None
    journal.add_reply(identity(9), "main", "chosen", reply("new", "because"))
    assert journal.reply(identity(9)) == reply("new", "because")


def test_a_torn_last_line_is_cut_off_and_the_next_one_stands_on_its_own(path):
    whole = filled(path)
    for cut in (1, 10, 100):
        path.write_bytes(whole[:-cut])
        journal, _ = opened(path)
        assert (journal.num_replies, journal.damaged) == (4, 0)
        journal.add_reply(identity(8), "main", "chosen", reply("after"))
        journal.close()
        again, _ = opened(path)
        assert again.num_replies == 5 and again.reply(identity(8)).content == "after"


def test_a_damaged_line_is_skipped_and_counted(path):
    lines = filled(path).splitlines(keepends=True)
    lines[2] = lines[2].replace(b"text", b"next")
    path.write_bytes(b"".join(lines))
    journal, _ = opened(path)
    assert (journal.num_replies, journal.damaged) == (4, 1)
    assert journal.reply(identity(2)) is None and journal.reply(identity(4)) == reply("text 4")


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_rubbish_never_raises(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("rubbish") / "journal.jsonl"
    path.write_bytes(b"\n".join(lines))
    assert list(Scan(path)) == []


def test_reading_changes_nothing_while_another_writes(path):
    whole = filled(path)
    path.write_bytes(whole[:-5])
    reader = JournalReader(path, lambda entry: None)
    assert reader.num_replies == 4 and path.read_bytes() == whole[:-5]


def test_a_line_that_is_damaged_during_the_run_is_an_error_of_the_data(path):
    journal, _ = opened(path)
    offset = journal.decide("row", "chat", 0, {"prompt": "x"})
    path.write_bytes(path.read_bytes().replace(b"prompt", b"prompd"))
    with pytest.raises(DataError, match="the line at byte 0 was damaged"):
        journal.read(offset)


def test_every_line_is_written_at_once_and_synced_from_another_thread(path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: (time.sleep(0.5), synced.append(descriptor)))
    journal, _ = opened(path, JournalSpec(fsync_lines=1, fsync_seconds=0))
    started = time.monotonic()
    for number in range(50):
        journal.add_reply(identity(number), "main", "chosen", reply())
        assert path.read_bytes().count(b"\n") == number + 1
    assert time.monotonic() - started < 0.5, "writing waited for the disk"
    journal.close()
    assert synced


def is_synced_soon(synced: list[int]) -> bool:
    """Whether anything is synced within five seconds."""
    until = time.monotonic() + 5
    while not synced and time.monotonic() < until:
        time.sleep(0.01)
    return bool(synced)


def test_few_lines_wait_no_longer_than_asked(path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(descriptor))
    journal, _ = opened(path, JournalSpec(fsync_lines=1000, fsync_seconds=0.05))
    time.sleep(0.2)
    assert not synced, "nothing to sync"
    journal.add_reply(identity(1), "main", "chosen", reply())
    assert is_synced_soon(synced)


def test_lines_are_synced_by_the_asked_number(path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(descriptor))
    journal, _ = opened(path, JournalSpec(fsync_lines=2, fsync_seconds=60))
    journal.add_reply(identity(1), "main", "chosen", reply())
    time.sleep(0.2)
    assert not synced, "one line waits for the next"
    journal.add_reply(identity(2), "main", "chosen", reply())
    assert is_synced_soon(synced)


def test_a_full_disk_is_told_and_leaves_whole_lines(path, monkeypatch):
    journal, _ = opened(path)
    journal.add_reply(identity(1), "main", "chosen", reply())
    write, left = os.write, [20]

    def filling(descriptor: int, data: bytes) -> int:
        if not left[0]:
            raise OSError(28, "No space left on device")
        left[0] = 0
        return write(descriptor, data[:20])

    monkeypatch.setattr(os, "write", filling)
    with pytest.raises(OSError, match="No space left"):
        journal.add_reply(identity(2), "main", "chosen", reply())
    monkeypatch.setattr(os, "write", write)
    journal.add_reply(identity(3), "main", "chosen", reply())
    journal.close()
    again, _ = opened(path)
    assert (again.num_replies, again.damaged, again.reply(identity(2))) == (2, 0, None)


def test_a_disk_that_loses_data_is_told(path, monkeypatch):
    def failing(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    journal, _ = opened(path, JournalSpec(fsync_lines=1))
    with pytest.raises(OSError, match="Input/output"):
        for number in range(1000):
            journal.add_reply(identity(number), "main", "chosen", reply())
            time.sleep(0.002)


# history


def history(stands=lambda before, after: False) -> History:
    return History(stands)


def deal(journal: Journal, number: int = 0) -> int:
    return journal.decide("deal", "chat", number, {"rows": 9, "subtopics": 1, "quotas": [9]})


def test_decisions_behind_a_damaged_one_are_made_again(path):
    journal, _ = opened(path)
    deal(journal)
    for number in (1, 2, 3):
        journal.decide("short", "chat", number, {})
    journal.close()
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"short", b"shirt")
    path.write_bytes(b"".join(lines))
    read = history()
    journal = Journal(path, JournalSpec(), read.read)
    assert read.states["chat"].decided == 2
    journal.decide("short", "chat", 2, {})  # made again: it counts, and the stale number 3 does not
    journal.close()
    again = history()
    JournalReader(path, again.read)
    assert again.states["chat"].decided == 3


@pytest.mark.parametrize("stands", [True, False])
def test_decisions_stand_as_long_as_the_config_only_adds(path, stands):
    journal, _ = opened(path)
    journal.note_config({"identity": {"rows": 9}, "config": {}})
    deal(journal)
    journal.add_reply(identity(1), "main", "chosen", reply())
    journal.note_config({"identity": {"rows": 10}, "config": {}})
    journal.close()
    read = history(lambda before, after: stands)
    journal = JournalReader(path, read.read)
    assert bool(read.states) == stands and read.dropped == (not stands) and journal.num_replies == 1
    read.turn_to({"rows": 10})
    assert bool(read.states) == stands, "the same config again changes nothing"


def test_the_cost_of_every_reply_is_told_on_opening(path):
    filled(path, 3)
    read = history()
    JournalReader(path, read.read)
    assert read.paid == {("main", "chosen"): [3, 9, 15]}


def test_opening_keeps_no_texts(path):
    rng = random.Random(0)
    journal, _ = opened(path)
    for number in range(300):
        journal.add_reply(identity(number), "main", "chosen", reply(rng.randbytes(5000).hex()))
    journal.close()
    import tracemalloc

    tracemalloc.start()
    read = JournalReader(path, history().read)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert read.num_replies == 300 and path.stat().st_size > 3_000_000 and held < 300_000
