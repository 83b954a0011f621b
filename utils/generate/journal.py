"""
The journal of calls: every reply that was paid for, one self-checking line each, append-only.

A line is `<bytes of the JSON> <crc32 in hex> <JSON>`. After kill -9 the torn last line is cut off; a line
damaged later is skipped, and its call is simply made again. The run is a pure function of the replies, so the
same command reads the replies back, asks only for what is missing, and ends with the same rows as a run that
was never stopped.

    journal = CallJournal(partial / ".journal" / "calls.jsonl", JournalSpec())
    journal.append("3f1c...", {"content": "moo"})
    journal.get("3f1c...")
"""

import json
import os
import time
import zlib
from pathlib import Path

from utils.config.generate import JournalSpec


class CallJournal:
    """Replies by call identity; `damaged` counts lines that were skipped on opening."""

    def __init__(self, path: Path, spec: JournalSpec) -> None:
        self._spec = spec
        self._records: dict[str, dict] = {}
        self.damaged = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab+")  # noqa: SIM115 - closed by close()
        self._recover()
        self._unsynced = 0
        self._synced_at = time.monotonic()

    def __len__(self) -> int:
        return len(self._records)

    def get(self, identity: str) -> dict | None:
        """What was recorded for a call."""
        return self._records.get(identity)

    def append(self, identity: str, record: dict) -> None:
        """Record a reply: safe from a process's death at once, from a machine's after the next fsync."""
        self._file.write(encode_line({"call": identity} | record))
        self._file.flush()
        self._records[identity] = record
        self._unsynced += 1
        waited = time.monotonic() - self._synced_at
        if self._unsynced >= self._spec.fsync_lines or waited >= self._spec.fsync_seconds:
            self.sync()

    def sync(self) -> None:
        """Wait until everything recorded is on the disk."""
        os.fsync(self._file.fileno())
        self._unsynced = 0
        self._synced_at = time.monotonic()

    def close(self) -> None:
        self.sync()
        self._file.close()

    def _recover(self) -> None:
        self._file.seek(0)
        end_of_whole_lines = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            end_of_whole_lines += len(line)
            record = decode_line(line)
            if record is None:
                self.damaged += 1
            else:
                self._records[record.pop("call")] = record
        self._file.truncate(end_of_whole_lines)
        self._file.seek(0, os.SEEK_END)


def encode_line(record: dict) -> bytes:
    """One record as a line."""
    data = json.dumps(record, ensure_ascii=True, separators=(",", ":")).encode("ascii")
    return b"%d %08x %b\n" % (len(data), zlib.crc32(data), data)


def decode_line(line: bytes) -> dict | None:
    """The record in a line, or None when the line is not what was written."""
    parts = line.rstrip(b"\n").split(b" ", 2)
    if len(parts) != 3:
        return None
    length, checksum, data = parts
    if length != b"%d" % len(data) or checksum != b"%08x" % zlib.crc32(data):
        return None
    return json.loads(data)
