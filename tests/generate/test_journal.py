"""The journal keeps every whole record, whatever happened to the process that wrote it."""

from pathlib import Path

from utils.config.generate import JournalSpec
from utils.generate.journal import CallJournal, decode_line, encode_line

RECORDS = {"aa": {"content": "moo"}, "bb": {"content": "caf\u00e9\n\u2028"}, "cc": {"content": ""}}


def written(path: Path) -> Path:
    journal = CallJournal(path, JournalSpec())
    for identity, record in RECORDS.items():
        journal.append(identity, record)
    journal.close()
    return path


def read(path: Path) -> dict[str, dict]:
    journal = CallJournal(path, JournalSpec())
    journal.close()
    return {identity: journal.get(identity) for identity in RECORDS if journal.get(identity) is not None}


def test_records_come_back(tmp_path):
    assert read(written(tmp_path / "j")) == RECORDS


def test_a_record_is_on_disk_before_close(tmp_path):
    journal = CallJournal(tmp_path / "j", JournalSpec(fsync_lines=1000, fsync_seconds=1000))
    journal.append("aa", RECORDS["aa"])
    assert (tmp_path / "j").read_bytes() == encode_line({"call": "aa"} | RECORDS["aa"])
    journal.close()


def test_a_torn_last_line_is_cut_off_at_every_byte(tmp_path):
    whole = written(tmp_path / "whole").read_bytes()
    starts = [0, *(position + 1 for position, byte in enumerate(whole) if byte == 10)]
    for cut in range(len(whole)):
        path = tmp_path / "torn"
        path.write_bytes(whole[:cut])
        complete = sum(start <= cut for start in starts[1:])
        assert list(read(path)) == list(RECORDS)[:complete]
        assert path.read_bytes() == whole[: starts[complete]]


def test_writing_continues_after_a_torn_line(tmp_path):
    path = written(tmp_path / "j")
    path.write_bytes(path.read_bytes()[:-3])
    journal = CallJournal(path, JournalSpec())
    journal.append("cc", RECORDS["cc"])
    journal.close()
    assert read(path) == RECORDS


def test_a_damaged_line_is_skipped_and_counted_and_the_rest_kept(tmp_path):
    path = written(tmp_path / "j")
    data = bytearray(path.read_bytes())
    data[data.index(b"moo")] ^= 1
    path.write_bytes(bytes(data))
    journal = CallJournal(path, JournalSpec())
    assert journal.damaged == 1 and len(journal) == 2 and journal.get("aa") is None
    journal.close()


def test_a_line_is_checked_by_length_and_checksum():
    line = encode_line({"a": 1})
    assert decode_line(line) == {"a": 1}
    assert decode_line(b"9" + line) is None
    assert decode_line(line.replace(b"1}", b"2}")) is None
    assert decode_line(b"nonsense\n") is None
