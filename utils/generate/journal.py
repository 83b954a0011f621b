"""
The journal of a run: every reply that was paid for and every decision made of them, one self-checking line
each.

A line is `<crc32> <bytes> <kind> <name> <fields> <JSON>`; checksum and length cover what follows them. There
are replies, known by the identity of their call and valid under any config, and decisions, numbered for each
dataset and valid for the config of the last `config` line. After kill -9 the torn last line is cut off. A
line damaged later is skipped: a lost reply is asked for again, and a lost decision is made again with those
after it. Only offsets are kept in memory.

    journal = Journal(partial / "log" / "journal.jsonl", JournalSpec(), visit=history.read)
    journal.add_reply("3f1c...", "main", "chosen", reply)
    offset = journal.decide("row", "chat", 0, {"prompt": "What is a cow?"})
"""

import json
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from utils.config.providers import JournalSpec
from utils.generate.reply import Reply
from utils.pipeline.errors import DataError

CARRIED = "log/journal.jsonl"
"""Where the journal lies in the folder of an artifact, and of an unfinished one."""
_decode = json.JSONDecoder().decode
_encode = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), check_circular=False).encode


class Entry(NamedTuple):
    """One good line: `fields` are the words of its header, `data` is its JSON, not parsed yet."""

    kind: str
    fields: list[str]
    data: bytes
    offset: int

    def record(self) -> dict:
        return _decode(self.data.decode("ascii"))


def encode_line(kind: str, fields: tuple[object, ...], record: dict) -> bytes:
    """One line; fields must hold no blanks."""
    body = " ".join([kind, *map(str, fields), _encode(record)]).encode("ascii")
    return b"%08x %d %b\n" % (zlib.crc32(body), len(body), body)


def decode_line(line: bytes, offset: int = 0) -> Entry | None:
    """What is in a line, or None when it is not what was written."""
    start = line.find(b" ", 9) + 1
    body = line[start:-1]
    if line[:start] != b"%08x %d " % (zlib.crc32(body), len(body)) or line[-1:] != b"\n":
        return None
    brace = body.find(b"{")
    kind, *fields = body[:brace].decode("ascii").split()
    return Entry(kind, fields, body[brace:], offset)


@dataclass
class Scan:
    """
    Reads the good lines of a journal, also of one that is being written; `end` is behind the last whole
    one.
    """

    path: Path
    damaged: int = 0
    end: int = 0

    def __iter__(self) -> Iterator[Entry]:
        if not self.path.is_file():
            return
        with open(self.path, "rb", buffering=1 << 20) as file:
            for line in file:
                if not line.endswith(b"\n"):
                    return
                entry = decode_line(line, self.end)
                self.end += len(line)
                if entry is None:
                    self.damaged += 1
                else:
                    yield entry


class JournalReader:
    """
    A journal that is read, perhaps while another process writes it. `visit` sees every good line in order
    when it is opened; after that, any line can be read by its offset and any reply by its identity.
    """

    def __init__(self, path: Path, visit: Callable[[Entry], None]) -> None:
        self._replies: dict[bytes, int] = {}
        scan = Scan(path)
        for entry in scan:
            if entry.kind == "reply":
                self._replies[bytes.fromhex(entry.fields[0])] = entry.offset
            visit(entry)
        self.damaged, self._end = scan.damaged, scan.end
        if not path.exists():
            path.touch()  # never changes when a journal that is only read was written last
        self._file = open(path, "rb")  # noqa: SIM115 - closed by close()

    @property
    def num_replies(self) -> int:
        return len(self._replies)

    def knows(self, identity: str) -> bool:
        """Whether a call was paid for, and its reply is there."""
        return bytes.fromhex(identity) in self._replies

    def reply(self, identity: str) -> Reply | None:
        """The reply to a call, if it was paid for."""
        offset = self._replies.get(bytes.fromhex(identity))
        return None if offset is None else reply_of(self.read(offset))

    def read(self, offset: int) -> Entry:
        """The line at an offset. DataError when it was damaged since the journal was opened."""
        self._file.seek(offset)
        entry = decode_line(self._file.readline(), offset)
        if entry is None:
            raise DataError(f"{self._file.name}: the line at byte {offset:,} was damaged during the run")
        return entry

    def close(self) -> None:
        self._file.close()


class Journal(JournalReader):
    """The journal of a run, which is its only writer."""

    def __init__(self, path: Path, spec: JournalSpec, visit: Callable[[Entry], None]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(path, visit)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        os.ftruncate(self._descriptor, self._end)
        self._disk = _Disk(self._descriptor, spec)

    def add_reply(self, identity: str, model: str, step: str, reply: Reply) -> None:
        """Record a reply: safe from a process's death at once, from a machine's after the next fsync."""
        fields = (identity, model, step, reply.prompt_tokens, reply.completion_tokens)
        said = {"content": reply.content, "finish_reason": reply.finish_reason}
        if reply.reasoning:
            said["reasoning"] = reply.reasoning
        self._replies[bytes.fromhex(identity)] = self._append(encode_line("reply", fields, said))

    def decide(self, kind: str, dataset: str, number: int, record: dict) -> int:
        """Record decision `number` of a dataset; returns the offset of its line."""
        return self._append(encode_line(kind, (dataset, number), record))

    def note_config(self, record: dict) -> None:
        """Record under which config the decisions that follow are made."""
        self._append(encode_line("config", (), record))

    def close(self) -> None:
        """Wait until everything is on the disk."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            try:
                self._disk.close()
            finally:
                os.close(descriptor)
                super().close()

    def _append(self, line: bytes) -> int:
        offset = self._end
        try:
            written = os.write(self._descriptor, line)
            while written < len(line):
                written += os.write(self._descriptor, line[written:])
        except OSError:
            os.ftruncate(self._descriptor, offset)
            raise
        self._end += len(line)
        self._disk.wrote()
        return offset


def reply_of(entry: Entry) -> Reply:
    """The reply in a line of kind `reply`."""
    said = entry.record()
    return Reply(
        content=said["content"],
        reasoning=said.get("reasoning", ""),
        finish_reason=said["finish_reason"],
        prompt_tokens=int(entry.fields[3]),
        completion_tokens=int(entry.fields[4]),
    )


class _Disk:
    """Syncs a file from a thread of its own, so that no call waits for the disk."""

    def __init__(self, descriptor: int, spec: JournalSpec) -> None:
        self._descriptor, self._spec = descriptor, spec
        self._waiting = 0
        self._closing = False
        self._failure: OSError | None = None
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="journal-fsync", daemon=True)
        self._thread.start()

    def wrote(self) -> None:
        """One more record waits. OSError when an earlier one could not be made durable."""
        if self._failure:
            raise self._failure
        self._waiting += 1
        if self._waiting >= self._spec.fsync_lines or not self._spec.fsync_seconds:
            self._wake.set()

    def close(self) -> None:
        """Wait until every record is on the disk."""
        self._closing = True
        self._wake.set()
        self._thread.join()
        if self._failure:
            raise self._failure

    def _run(self) -> None:
        while not self._failure:
            self._wake.wait(self._spec.fsync_seconds or None)
            self._wake.clear()
            closing = self._closing
            if self._waiting:
                self._waiting = 0
                try:
                    os.fsync(self._descriptor)
                except OSError as error:
                    self._failure = error
            if closing:
                return
