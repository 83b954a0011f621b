"""
Journal: what a stage has committed, so that kill -9 costs no more than the unit in hand (P27).

Data first, then the record: the data files are synced, then one line with their end offsets. On opening, a
torn last line is dropped and the data files are cut back to the recorded ends.

    journal = Journal(partial, "blocks")
    journal.commit({"block": 7, "ends": {"train.bin": 1048640}})
"""

import json
import os
from pathlib import Path

from utils.pipeline.errors import DataError

JOURNAL_FOLDER = ".journal"


class Journal:
    """Append-only JSON lines below a build folder; `records` holds what was committed before this process."""

    def __init__(self, partial: Path, name: str) -> None:
        self.path = partial / JOURNAL_FOLDER / f"{name}.jsonl"
        self._partial = partial
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.records = self._recover()
        self._file = open(self.path, "ab")  # noqa: SIM115  held open for the life of the build

    def commit(self, record: dict) -> None:
        """
        Make `record` durable; `record["ends"]` maps data files (relative to the build folder) to
        their end offsets.
        """
        for relative in record.get("ends", {}):
            sync_file(self._partial / relative)
        self._file.write(json.dumps(record, ensure_ascii=True).encode("ascii") + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _recover(self) -> list[dict]:
        if not self.path.is_file():
            return []
        records, good_bytes = [], 0
        for line in self.path.read_bytes().splitlines(keepends=True):
            try:
                records.append(json.loads(line) if line.endswith(b"\n") else None)
            except ValueError:
                break
            if records[-1] is None:
                records.pop()
                break
            good_bytes += len(line)
        os.truncate(self.path, good_bytes)
        self._cut_back(records)
        return records

    def _cut_back(self, records: list[dict]) -> None:
        ends: dict[str, int] = {}
        for record in records:
            ends.update(record.get("ends", {}))
        for relative, end in ends.items():
            path = self._partial / relative
            if not path.is_file() or path.stat().st_size < end:
                raise DataError(
                    f"{path.name} of the unfinished build is shorter than its journal says ({end:,} bytes)",
                    fix="rerun with --resume never to start this build again",
                )
            os.truncate(path, end)


def sync_file(path: Path) -> None:
    """fsync one file by path."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
