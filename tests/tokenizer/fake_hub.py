"""
A Hub on loopback that serves the files of one commit and keeps a list of what it was asked for.

    with fake_hub("me/model", "a" * 40, {"tokenizer.json": b"{}"}) as hub:
        hub.url, hub.asked
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from tests.loopback import served


@dataclass
class FakeHub:
    """Where it listens, and the paths of all requests."""

    url: str
    asked: list[str] = field(default_factory=list)


@contextmanager
def fake_hub(id: str, commit: str, files: dict[str, bytes]) -> Iterator[FakeHub]:
    """Serve `files` under /<id>/resolve/<commit>/."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, with_body: bool) -> None:
            hub.asked.append(self.path)
            repository, _, rest = self.path.partition("/resolve/")
            revision, _, name = rest.partition("/")
            missing = ""
            if repository != f"/{id}":
                missing = "RepoNotFound"
            elif revision != commit:
                missing = "RevisionNotFound"
            elif name not in files:
                missing = "EntryNotFound"
            self.send_response(404 if missing else 200)
            data = b"" if missing else files[name]
            if missing:
                self.send_header("X-Error-Code", missing)
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if with_body:
                self.wfile.write(data)

        def log_message(self, *arguments: object) -> None:
            pass

    with served(Handler) as url:
        hub = FakeHub(url)
        yield hub
