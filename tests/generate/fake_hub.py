"""
A Hub on loopback: repositories, branches, commits and LFS objects, as far as `huggingface_hub` asks for them.

    with fake_hub(token="...") as hub:
        hub.fail("commit", 500, times=1)        # the first commit is answered with 500
        ... upload to hub.url ...
        hub.files("dataset", "me/stories")      # path -> bytes at the head of main

It keeps every request and every commit operation, so that a test can say that nothing was deleted.
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote, urlsplit

from tests.loopback import served

LFS_BYTES = 10_000
LFS_SUFFIXES = (".zst", ".gz", ".parquet", ".gguf", ".safetensors", ".bin")


@dataclass(frozen=True)
class Blob:
    """One file of a commit."""

    data: bytes
    lfs: bool

    @property
    def git_oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class Commit:
    """A snapshot and its parent's oid ("" for the first)."""

    oid: str
    parent: str
    files: dict[str, Blob]
    message: str = ""


@dataclass
class Repository:
    """Commits by oid, branches by name."""

    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    ignored: str = ""  # a path that .gitignore leaves out

    def commit(self, branch: str, files: dict[str, Blob], message: str) -> Commit:
        parent = self.branches.get(branch, "")
        oid = hashlib.sha1(f"{parent}{message}{len(self.commits)}".encode()).hexdigest()
        before = self.commits[parent].files if parent else {}
        self.commits[oid] = Commit(oid, parent, before | files, message)
        self.branches[branch] = oid
        return self.commits[oid]

    def at(self, revision: str) -> Commit | None:
        return self.commits.get(self.branches.get(revision, revision))


@dataclass
class Fault:
    """Answer `status` so many more times (-1: always); `after`: the work is done, only the answer is lost."""

    status: int
    times: int
    after: bool = False
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class FakeHub:
    """The state; `url` is where it listens."""

    token: str
    url: str = ""
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    verified: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    operations: list[str] = field(default_factory=list)
    faults: dict[str, Fault] = field(default_factory=dict)

    def fail(self, step: str, status: int, times: int = -1, after: bool = False, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.faults[step] = Fault(status, times, after, named)

    def add(self, kind: str, repo: str, private: bool = False, **files: bytes) -> Repository:
        """A repository that is there already; `a__b="..."` is the file a.b."""
        made = self.repositories[kind, repo] = Repository(private)
        named = {name.replace("__", "."): Blob(data, False) for name, data in files.items()}
        made.commit("main", {".gitattributes": Blob(b"*.zst filter=lfs\n", False)}, "initial commit")
        if named:
            made.commit("main", named, "files")
        return made

    def files(self, kind: str, repo: str, revision: str = "main") -> dict[str, bytes]:
        commit = self.repositories[kind, repo].at(revision)
        return {path: blob.data for path, blob in commit.files.items()}

    def steps(self) -> list[str]:
        """The steps that were asked for, in order."""
        return [request.split(" ")[0] for request in self.requests]


@contextmanager
def fake_hub(token: str) -> Iterator[FakeHub]:
    """Run one until the block ends."""
    hub = FakeHub(token)
    with served(_Handler, hub=hub) as hub.url:
        yield hub


class _Handler(BaseHTTPRequestHandler):
    """Routes: what is asked for decides the step; a step is a method of the same name."""

    hub: FakeHub
    protocol_version = "HTTP/1.1"

    ROUTES = (
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("POST", r"/api/(\w+)s/([^/]+/[^/]+)/preupload/(.+)", "preupload"),
        ("POST", r"/api/(\w+)s/([^/]+/[^/]+)/commit/(.+)", "commit"),
        ("POST", r"/api/(\w+)s/([^/]+/[^/]+)/branch/(.+)", "branch"),
        ("GET", r"/api/(\w+)s/([^/]+/[^/]+)/tree/(.+)", "tree"),
        ("GET", r"/api/(\w+)s/([^/]+/[^/]+)/revision/(.+)", "info"),
        ("GET", r"/api/(\w+)s/([^/]+/[^/]+)", "info"),
        ("POST", r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/lfs/(\w+)", "put"),
        ("POST", r"/lfs/verify", "verify"),
        ("GET", r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "resolve"),
        ("HEAD", r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "resolve"),
    )

    def _dispatch(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunked()
        path = unquote(urlsplit(self.path).path)
        for method, pattern, step in self.ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method == self.command:
                self.hub.requests.append(f"{step} {method} {path}")
                self._step(step, getattr(self, f"step_{step}"), match.groups(), body)
                return
        self.hub.requests.append(f"unknown {self.command} {path}")
        self._answer(501, {"error": f"the fake Hub does not know {self.command} {path}"})

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = do_PATCH = _dispatch

    def _step(self, step: str, act: Callable, groups: tuple, body: bytes) -> None:
        fault = self.hub.faults.get(step)
        if fault and fault.times and not fault.after:
            fault.times -= 1
            self._answer(fault.status, {"error": f"planned {step} failure"}, fault.headers)
        elif step != "put" and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            echoed = self.headers.get("Authorization", "")
            self._answer(401, {"error": f"Invalid username or password for {echoed}"})
        elif fault and fault.times:
            fault.times -= 1
            act(*groups, body, answer=lambda *_, **__: None)
            self._answer(fault.status, {"error": f"planned loss of the answer to {step}"}, fault.headers)
        else:
            act(*groups, body, answer=self._answer)

    def _chunked(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def step_create(self, body: bytes, answer: Callable) -> None:
        asked = json.loads(body)
        kind, name = asked.get("type", "model"), f"{asked['organization']}/{asked['name']}"
        url = f"{self.hub.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if (kind, name) in self.hub.repositories:
            answer(409, {"error": "You already created this repo", "url": url})
            return
        self.hub.add(kind, name, private=asked.get("visibility") == "private")
        answer(200, {"url": url, "name": name})

    def step_validate(self, body: bytes, answer: Callable) -> None:
        text = json.loads(body)["content"]
        good = text.startswith("---\n") and "\n---\n" in text
        errors = [] if good else [{"message": "no front matter"}]
        answer(200 if good else 400, {"errors": errors, "warnings": []})

    def _find(self, kind: str, repo: str, revision: str, answer: Callable) -> Commit | None:
        found = self.hub.repositories.get((kind, repo))
        if found is None:
            answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif found.at(revision) is None:
            answer(404, {"error": f"Invalid rev id: {revision}"}, {"X-Error-Code": "RevisionNotFound"})
        else:
            return found.at(revision)
        return None

    def step_info(self, kind: str, repo: str, *rest: object, answer: Callable) -> None:
        if commit := self._find(kind, repo, rest[0] if len(rest) == 2 else "main", answer):
            private = self.hub.repositories[kind, repo].private
            answer(200, {"id": repo, "sha": commit.oid, "private": private, "tags": [], "siblings": []})

    def step_tree(self, kind: str, repo: str, revision: str, body: bytes, answer: Callable) -> None:
        if commit := self._find(kind, repo, revision, answer):
            rows = []
            for path, blob in commit.files.items():
                row = {"type": "file", "path": path, "size": len(blob.data), "oid": blob.git_oid}
                lfs = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": 130}
                rows.append(row | ({"lfs": lfs} if blob.lfs else {}))
            answer(200, rows)

    def step_branch(self, kind: str, repo: str, branch: str, body: bytes, answer: Callable) -> None:
        found = self.hub.repositories[kind, repo]
        if branch in found.branches:
            answer(409, {"error": "Reference already exists"})
        else:
            found.branches[branch] = found.branches["main"]
            answer(200, {})

    def step_preupload(self, kind: str, repo: str, revision: str, body: bytes, answer: Callable) -> None:
        if not (commit := self._find(kind, repo, revision, answer)):
            return
        files = []
        for file in json.loads(body)["files"]:
            path = file["path"]
            lfs = file["size"] > LFS_BYTES or path.endswith(LFS_SUFFIXES)
            there = commit.files.get(path)
            oid = (there.sha256 if there.lfs else there.git_oid) if there else None
            ignore = path == self.hub.repositories[kind, repo].ignored
            mode = "lfs" if lfs else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": ignore, "oid": oid})
        answer(200, {"files": files})

    def step_batch(self, kind: str | None, repo: str, body: bytes, answer: Callable) -> None:
        rows = []
        for entry in json.loads(body)["objects"]:
            actions = {"upload": {"href": f"{self.hub.url}/lfs/{entry['oid']}", "header": {}}}
            actions["verify"] = {"href": f"{self.hub.url}/lfs/verify", "header": {}}
            rows.append(entry | ({} if entry["oid"] in self.hub.objects else {"actions": actions}))
        answer(200, {"transfer": "basic", "objects": rows})

    def step_put(self, oid: str, body: bytes, answer: Callable) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            answer(400, {"error": "the bytes do not hash to the oid"})
            return
        self.hub.objects[oid] = body
        answer(200, b"")

    def step_verify(self, body: bytes, answer: Callable) -> None:
        asked = json.loads(body)
        good = len(self.hub.objects.get(asked["oid"], b"")) == asked["size"]
        self.hub.verified.append(asked["oid"])
        answer(200 if good else 404, {})

    def step_commit(self, kind: str, repo: str, branch: str, body: bytes, answer: Callable) -> None:
        header, *entries = [json.loads(line) for line in body.splitlines()]
        found = self.hub.repositories[kind, repo]
        self.hub.operations += [entry["key"] for entry in entries]
        parent = header["value"].get("parentCommit")
        if parent and parent != found.branches.get(branch):
            answer(412, {"error": "A commit has happened since. Please refresh and try again."})
            return
        files = {}
        for entry in entries:
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif entry["key"] == "lfsFile":
                files[value["path"]] = Blob(self.hub.objects[value["oid"]], True)
        commit = found.commit(branch, files, header["value"]["summary"])
        answer(200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{commit.oid}", "commitOid": commit.oid})

    def step_resolve(
        self, kind: str | None, repo: str, revision: str, path: str, body: bytes, answer: Callable
    ) -> None:
        commit = self._find("dataset" if kind else "model", repo, revision, answer)
        if commit and path in commit.files:
            blob = commit.files[path]
            answer(200, blob.data, {"ETag": f'"{blob.git_oid}"', "X-Repo-Commit": commit.oid})
        elif commit:
            answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
