"""
Sending a proven folder to the Hugging Face Hub: one commit, nothing deleted, nothing forced.

    target = Target("me/stories", "dataset", private=True, branch="main")
    outcome = Hub(target, HfApi(token=token), say=print).send(parcel, card_text)

Files of the same name are replaced by the commit and stay in the history; all others are left alone. A README
that people have written or edited is kept, and the card goes beside it.
"""

import hashlib
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, get_session, hf_hub_url
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, parse_ratelimit_headers

from utils.generate.hub_card import is_untouched
from utils.generate.hub_parcel import Kind, Parcel, SentFile
from utils.generate.retry import RETRIED, asked_pause_seconds, pause_seconds
from utils.pipeline.errors import ConfigError, StageError
from utils.pipeline.hashing import sha256_hex

T = TypeVar("T")
README = "README.md"
OUR_CARD = "LOCKSTEP_CARD.md"
"""Where the card goes when the README is somebody else's."""
MOST_RETRIES = 5
LONGEST_PAUSE_SECONDS = 60.0
EXCERPT_CHARACTERS = 300


@dataclass(frozen=True)
class Target:
    """Where to: `user/name`, kind of repository, branch; `private` is for one that is created."""

    repo: str
    kind: Kind
    private: bool = False
    branch: str = "main"

    def __str__(self) -> str:
        prefix = "datasets/" if self.kind == "dataset" else ""
        return f"{prefix}{self.repo}, branch {self.branch}"


@dataclass(frozen=True)
class Outcome:
    """What became of an upload; `commit` is "" when the branch already held exactly this."""

    commit: str
    url: str
    created: bool
    replaced: list[str]
    card: str


@dataclass
class Hub:
    """One upload; `say` gets lines for people, `sleep` stands in for time in tests."""

    target: Target
    api: HfApi
    say: Callable[[str], None]
    sleep: Callable[[float], None] = time.sleep
    rng: random.Random = field(default_factory=random.Random)

    def send(self, parcel: Parcel, card: str) -> Outcome:
        """Create what is missing, commit once, prove what arrived. StageError when the Hub refuses."""
        created = self._have_repository()
        head = self._have_branch()
        there = self._listing(head)
        card_name = self._name_for_card(parcel, there)
        data = card.encode()
        expected = [*parcel.files, SentFile(card_name, len(data), sha256_hex(data))]
        commit = self._patiently("commit", lambda: self._commit(parcel, card_name, data, head))
        now = self._prove(parcel, expected, data, commit.oid)
        replaced = [path for path, file in there.items() if now[path].blob_id != file.blob_id]
        changed = commit.oid != head
        return Outcome(commit.oid if changed else "", commit.commit_url, created, replaced, card_name)

    def _have_repository(self) -> bool:
        """Whether the repository had to be created. ConfigError if it is public and should not be."""
        where = {"repo_id": self.target.repo, "repo_type": self.target.kind}
        info = self._patiently("look at the repository", lambda: self._or_none(self.api.repo_info, **where))
        if info is None:
            private = self.target.private
            create = {"private": private, "exist_ok": True, **where}
            self._patiently("create the repository", lambda: self.api.create_repo(**create))
            self.say(f"created   {self.target.repo} ({'private' if private else 'public'})")
            return True
        if self.target.private and not info.private:
            raise ConfigError(
                f"{self.target.repo} exists and is public; --private only applies to one that is created",
                fix="make it private in its settings, or name another repository",
            )
        return False

    def _have_branch(self) -> str:
        """The commit at the head of the branch, which is made from main if it is not there."""
        where = {"repo_id": self.target.repo, "repo_type": self.target.kind}
        head = {**where, "revision": self.target.branch}
        info = self._patiently("look at the branch", lambda: self._or_none(self.api.repo_info, **head))
        if info is None:
            branch = {**where, "branch": self.target.branch, "exist_ok": True}
            self._patiently("create the branch", lambda: self.api.create_branch(**branch))
            self.say(f"created   branch {self.target.branch}")
            info = self._patiently("look at the branch", lambda: self.api.repo_info(**head))
        return info.sha

    @staticmethod
    def _or_none(ask: Callable[..., T], **what: object) -> T | None:
        try:
            return ask(**what)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            return None

    def _listing(self, revision: str) -> dict[str, RepoFile]:
        where = {"repo_id": self.target.repo, "repo_type": self.target.kind, "revision": revision}
        entries = self._patiently(
            "list the repository", lambda: list(self.api.list_repo_tree(recursive=True, **where))
        )
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def _name_for_card(self, parcel: Parcel, there: dict[str, RepoFile]) -> str:
        if any(file.path == README for file in parcel.files):
            return OUR_CARD
        if README not in there or is_untouched(self._patiently("read the README", self._readme)):
            return README
        self.say(f"kept      {README}, which was written or edited by people; the card goes to {OUR_CARD}")
        return OUR_CARD

    def _readme(self) -> str:
        where = {"repo_type": self.target.kind, "revision": self.target.branch}
        url = hf_hub_url(self.target.repo, README, endpoint=self.api.endpoint, **where)
        answer = get_session().get(url, headers=build_hf_headers(token=self.api.token))
        hf_raise_for_status(answer)
        return answer.text

    def _commit(self, parcel: Parcel, card_name: str, card: bytes, head: str) -> CommitInfo:
        """
        One commit on top of `head`. Tried again after its answer was lost, it finds its files there and makes
        none; if somebody else was faster, the Hub refuses it.
        """
        operations = [CommitOperationAdd(file.path, parcel.folder / file.path) for file in parcel.files]
        return self.api.create_commit(
            self.target.repo,
            [*operations, CommitOperationAdd(card_name, card)],
            commit_message=f"{parcel.manifest.stage} {parcel.manifest.output_digest[:12]}",
            commit_description=f"output digest {parcel.manifest.output_digest}",
            repo_type=self.target.kind,
            revision=self.target.branch,
            parent_commit=head,
        )

    def _prove(
        self, parcel: Parcel, expected: list[SentFile], card: bytes, commit: str
    ) -> dict[str, RepoFile]:
        """What the commit holds. StageError unless that is every file, with the bytes that were meant."""
        arrived = self._listing(commit)
        for file in expected:
            found = arrived.get(file.path)
            if found is None:
                raise StageError(
                    f"{file.path} is not in {self.target.repo} after the commit",
                    fix=f"look into the repository's .gitignore: it may ignore {file.path}",
                )
            same = (
                found.lfs.sha256 == file.sha256 if found.lfs else self._same_blob(parcel, file, card, found)
            )
            if found.size != file.bytes or not same:
                raise StageError(f"{self.target.repo} holds other bytes in {file.path} than were sent")
        return arrived

    def _same_blob(self, parcel: Parcel, file: SentFile, card: bytes, found: RepoFile) -> bool:
        """Whether a file that git itself holds is the listed one, and still is on this side."""
        own_card = file not in parcel.files
        data = card if own_card else (parcel.folder / file.path).read_bytes()
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        return sha256_hex(data) == file.sha256 and blob == found.blob_id

    def _patiently(self, what: str, call: Callable[[], T]) -> T:
        """The result of a call that is tried again while the failure may pass."""
        for attempt in range(MOST_RETRIES + 1):
            try:
                return call()
            except (HTTPError, OSError, RuntimeError, json.JSONDecodeError) as error:
                cause = _behind(error)
                if attempt == MOST_RETRIES or not may_pass(cause):
                    raise self._given_up(what, cause, attempt + 1) from None
            except HFValidationError as error:
                raise ConfigError(f"{self.target}: {error}") from None
            except ValueError as error:
                raise self._given_up(what, error, attempt + 1) from None
            seconds = pause_seconds(attempt, _asked_seconds(cause), LONGEST_PAUSE_SECONDS, self.rng)
            self.say(f"waiting   {seconds:.0f} s to {what} again: {self._readable(cause)}")
            self.sleep(seconds)
        raise AssertionError("every attempt returns or raises")

    def _given_up(self, what: str, error: BaseException, attempts: int) -> StageError:
        status = status_of(error)
        fix = "rerun to continue: what has arrived is not sent again"
        if status in (401, 403):
            fix = "check that the token is valid and may write there: hf auth whoami; hf auth login"
        elif status == 412:
            fix = "somebody else committed to the branch meanwhile; rerun to commit on top of that"
        elif isinstance(error, OfflineModeIsEnabled):
            fix = "unset HF_HUB_OFFLINE"
        tried = f" after {attempts} attempts" if attempts > 1 else ""
        return StageError(f"{self.target.repo}: could not {what}{tried}: {self._readable(error)}", fix=fix)

    def _readable(self, error: BaseException) -> str:
        """One line without the token, whatever the server says."""
        said = getattr(error, "server_message", None) or str(error) or type(error).__name__
        status = status_of(error)
        line = " ".join((f"HTTP {status} {said}" if status else said).split())
        token = self.api.token if isinstance(self.api.token, str) else ""
        return (line.replace(token, "<token>") if token else line)[:EXCERPT_CHARACTERS]


def _behind(error: Exception) -> BaseException:
    """What the library wrapped: the failure of one of several large files."""
    return error.__cause__ if type(error) is RuntimeError and error.__cause__ else error


def status_of(error: BaseException) -> int:
    """The HTTP status behind an error, 0 if there was no answer."""
    return error.response.status_code if isinstance(error, HfHubHTTPError) else 0


def may_pass(error: BaseException) -> bool:
    """Whether the same call may succeed a little later."""
    if isinstance(error, OfflineModeIsEnabled):
        return False
    if status := status_of(error):
        return status in RETRIED
    return isinstance(error, (HTTPError, ConnectionError, TimeoutError, ValueError))


def _asked_seconds(error: BaseException) -> float | None:
    """How long the Hub asks us to wait: `Retry-After`, or its own `ratelimit` header."""
    if not (status := status_of(error)):
        return None
    limit = parse_ratelimit_headers(error.response.headers)
    used_up = float(limit.reset_in_seconds) if limit and limit.remaining == 0 else None
    return asked_pause_seconds(status, error.response.headers) or used_up
