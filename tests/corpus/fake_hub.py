"""
A Hub on loopback that serves datasets to `datasets` streaming: files at commits, in ranges, with planned
faults.

    with fake_hub() as hub:
        commit = hub.push("me/web", {"data/train-0.jsonl.gz": data})
        hub.break_after(300_000)                # the connection drops once that many bytes were sent
        environment = hub.environment(tmp_path) # for a process that must take it for the Hub
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from tests.loopback import served


@dataclass
class FakeHub:
    """Repositories as branch -> commit and commit -> files; what was asked for; faults that are still due."""

    url: str = ""
    branches: dict[str, dict[str, str]] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    sent: int = 0
    breaks: list[int] = field(default_factory=list)
    refuse: int = 0

    def push(self, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Make a commit of exactly these files, the new head of the branch."""
        content = [(path, hashlib.sha256(data).hexdigest()) for path, data in sorted(files.items())]
        commit = hashlib.sha1(json.dumps([repo, content]).encode()).hexdigest()
        self.branches.setdefault(repo, {})[branch] = commit
        self.commits[commit] = dict(files)
        return commit

    def break_after(self, *counts: int) -> None:
        """Drop the connection whenever so many more bytes of files were sent, once for each count."""
        self.breaks += counts

    def environment(self, home: Path) -> dict[str, str]:
        """What makes a process take this for the Hub, with a cache of its own."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}

    def files(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commit = self.branches.get(repo, {}).get(revision, revision)
        return (commit, self.commits[commit]) if commit in self.commits else None


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Run one until the block ends."""
    hub = FakeHub()
    with served(_Handler, hub=hub) as hub.url:
        yield hub


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"
    API = re.compile(r"/api/datasets/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
    FILE = re.compile(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")

    def _dispatch(self) -> None:
        split = urlsplit(self.path)
        path, body = unquote(split.path), self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.refuse and self.command == "GET":
            self.hub.refuse -= 1
            self._answer(503, {"error": "planned"})
        elif match := self.API.fullmatch(path):
            repo, what, revision, below = match.groups()
            self._api(repo, what or "revision", revision or "main", below or "", body, parse_qs(split.query))
        elif match := self.FILE.fullmatch(path):
            self._file(*match.groups())
        else:
            self._answer(404, {"error": "no such place"})

    do_GET = do_POST = do_HEAD = _dispatch

    def _api(self, repo: str, what: str, revision: str, below: str, body: bytes, query: dict) -> None:
        found = self.hub.files(repo, revision)
        if found is None:
            code = "RevisionNotFound" if repo in self.hub.branches else "RepoNotFound"
            self._answer(404, {"error": code}, {"X-Error-Code": code})
            return
        commit, files = found
        if what == "revision":
            siblings = [{"rfilename": path} for path in files]
            self._answer(200, {"id": repo, "sha": commit, "private": False, "tags": [], "siblings": siblings})
        elif what == "tree":
            entries = _entries(files, below, "recursive" in query)
            if not entries and below:
                self._answer(404, {"error": "EntryNotFound"}, {"X-Error-Code": "EntryNotFound"})
            else:
                self._answer(200, entries)
        else:
            asked = parse_qs(body.decode()).get("paths", []) if b"=" in body else json.loads(body)["paths"]
            everything = {entry["path"]: entry for entry in _entries(files, "", recursive=True)}
            self._answer(200, [everything[path] for path in asked if path in everything])

    def _file(self, repo: str, revision: str, path: str) -> None:
        found = self.hub.files(repo, revision)
        if found is None or path not in found[1]:
            self._answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            return
        data, status = found[1][path], 200
        headers = {
            "ETag": f'"{hashlib.sha1(data).hexdigest()}"',
            "X-Repo-Commit": found[0],
            "Accept-Ranges": "bytes",
        }
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, status = data[first : last + 1], 206
        self._answer(status, data, headers)

    def _answer(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if isinstance(value, bytes):
            data = self._broken(data)
        self.wfile.write(data)

    def _broken(self, data: bytes) -> bytes:
        """What is still sent before a planned break; the connection is closed behind it."""
        if self.hub.breaks and len(data) >= self.hub.breaks[0]:
            data = data[: self.hub.breaks.pop(0)]
            self.close_connection = True
        elif self.hub.breaks:
            self.hub.breaks[0] -= len(data)
        self.hub.sent += len(data)
        return data

    def log_message(self, *_: object) -> None:
        """Quiet."""


def _entries(files: dict[str, bytes], below: str, recursive: bool) -> list[dict]:
    """Files and folders below a path, as the tree and paths-info of the Hub list them."""
    entries: dict[str, dict] = {}
    for path, data in files.items():
        if below and not path.startswith(below + "/") and path != below:
            continue
        folders = [path[: match.start()] for match in re.finditer("/", path)]
        for folder in folders:
            if folder.startswith(below) and folder != below:
                entries[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
        entries[path] = {
            "type": "file",
            "path": path,
            "size": len(data),
            "oid": hashlib.sha1(data).hexdigest(),
        }
    if recursive:
        return list(entries.values())
    depth = below.count("/") + 1 if below else 0
    return [entry for path, entry in entries.items() if path.count("/") == depth]
