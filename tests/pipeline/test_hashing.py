"""Canonical JSON, digests, hashing, the verified reader and the digest cache (P1, P2, P7, P38, P39)."""

import hashlib
import math
import os
import re
import time
from enum import Enum, IntEnum
from pathlib import Path
from random import Random
from struct import unpack

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from utils.pipeline.errors import UpstreamError
from utils.pipeline.hashing import (
    REPOSITORY_ROOT,
    DigestCache,
    canonical_json,
    digest,
    hash_files,
    open_verified,
    sha256_hex,
    unit_hash,
)

LONG_AGO = time.time() - 1000


class Colour(Enum):
    """An enum with text values."""

    RED = "red"


class Level(IntEnum):
    """An enum that is also an int."""

    HIGH = 3


# canonical JSON


def test_vectors_of_the_specification() -> None:
    text = canonical_json({"b": 1, "a": [1.0, 0.1, 1e-05, 1e22, True, "\u00e9\n"], "B": {}})
    assert text == b'{"B":{},"a":[1.0,0.1,1e-05,1e+22,true,"\\u00e9\\n"],"b":1}'
    assert sha256_hex(text) == "d252fdf9fa3e1741eb9651a07ad4a8de8068d63622b33b6ff4faa81d687654c4"
    output = digest("output", [["a.txt", 3, hashlib.sha256(b"abc").hexdigest()]])
    assert output == "0dac9dc85797e32f88232771b7a58842a1a276862e5f1ac4399850e4c1f17fd8"
    key = digest(
        "key", {"stage": "20_prepare_corpus", "stage_version": 1, "config": {"seed": 0}, "inputs": []}
    )
    assert key == "86a159302dd88a9a838c552c251f05d8fb078cf327819cef02c10113fb1a2d5e"


def encode(value: object) -> str:
    """A second encoder, written from the specification and not from ours."""
    if value is None:
        return "null"
    if value is True or value is False:
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return "0.0" if value == 0 else repr(value)
    if isinstance(value, str):
        return '"' + "".join(_escape(char) for char in value) + '"'
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(encode(item) for item in value) + "]"
    pairs = sorted(value.items())
    return "{" + ",".join(f"{encode(name)}:{encode(item)}" for name, item in pairs) + "}"


SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f", '"': '\\"', "\\": "\\\\"}


def _escape(char: str) -> str:
    if char in SHORT:
        return SHORT[char]
    if " " <= char <= "~":
        return char
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=6,
)


@settings(max_examples=200, suppress_health_check=list(HealthCheck), database=None)
@given(values)
def test_agrees_with_an_independent_encoder(value: object) -> None:
    assert canonical_json(value) == encode(value).encode("ascii")


def draw(random: Random, depth: int = 3) -> object:
    """One value; a hundred times faster than a recursive strategy, which is what 10,000 of them take."""
    kind = random.randrange(9 if depth else 7)
    if kind == 0:
        return random.choice([None, True, False])
    if kind < 3:
        return random.choice([0, -1, 2**63, random.getrandbits(70) - 2**69])
    if kind < 5:
        number = unpack("<d", random.randbytes(8))[0]
        return number if math.isfinite(number) else random.choice([-0.0, 1e22, 5e-324, 0.1])
    if kind < 7:
        return "".join(
            chr(random.choice([random.randrange(0x110000), random.randrange(128)])) for _ in range(3)
        )
    if kind == 7:
        return [draw(random, depth - 1) for _ in range(random.randrange(4))]
    return {str(draw(random, 0)): draw(random, depth - 1) for _ in range(random.randrange(4))}


@settings(max_examples=100, database=None)
@given(st.integers())
def test_agrees_with_an_independent_encoder_on_ten_thousand_values(seed: int) -> None:
    random = Random(seed)
    for value in [draw(random) for _ in range(100)]:
        assert canonical_json(value) == encode(value).encode("ascii")


def test_what_has_a_canonical_form() -> None:
    assert canonical_json((1, -0.0, Colour.RED, Level.HIGH, Path("a/b"))) == b'[1,0.0,"red",3,"a/b"]'
    assert canonical_json(REPOSITORY_ROOT / "data" / "x") == b'"data/x"'
    assert canonical_json(Path("/elsewhere/x")) == b'"/elsewhere/x"'


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, [1, {"a": math.nan}]])
def test_numbers_that_are_none_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="no canonical form"):
        canonical_json(value)


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", object(), {1: "a"}, {None: 1}, 1j])
def test_what_json_cannot_say_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="no canonical form"):
        canonical_json(value)


def test_tags_separate_domains() -> None:
    assert digest("key", []) != digest("output", [])
    assert digest("key", []) == hashlib.sha256(b"lockstep:key\n[]").hexdigest()


def test_unit_hash_is_the_first_eight_bytes() -> None:
    expected = int.from_bytes(hashlib.sha256("lockstep:split\n7\n\u00e9".encode()).digest()[:8], "big")
    assert unit_hash("split", 7, "\u00e9") == expected


# files


def write_old(path: Path, data: bytes) -> Path:
    """A file that has been quiet for a while. (Its ctime has not, so quiet-time tests stand in a clock.)"""
    path.write_bytes(data)
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


def test_hash_files_equals_hashlib(tmp_path: Path) -> None:
    sizes = [0, 1, 1000, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20]
    contents = {tmp_path / str(size): os.urandom(size) for size in sizes}
    for path, data in contents.items():
        path.write_bytes(data)
    found = hash_files(contents)
    assert {path: (row.bytes, row.sha256) for path, row in found.items()} == {
        path: (len(data), hashlib.sha256(data).hexdigest()) for path, data in contents.items()
    }
    assert hash_files([]) == {}


def test_a_verified_reader_proves_what_it_handed_out(tmp_path: Path) -> None:
    data = b"one\ntwo\nthree\n" * 1000
    path = write_old(tmp_path / "rows", data)
    with open_verified(path, sha256_hex(data)) as file:
        assert file.readline() == b"one\n"  # the rest is read on leaving
    with open_verified(path, sha256_hex(data)) as file:
        assert b"".join(file) == data
    buffer = bytearray(100)
    with open_verified(path, sha256_hex(data)) as file:
        assert file.readinto(buffer) == 100
        assert bytes(buffer) + file.read() == data
    with (
        pytest.raises(
            UpstreamError, match=r"tampered \(rows: bytes read do not match, expected 000000000000"
        ),
        open_verified(path, "0" * 64) as file,
    ):
        file.read(10)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is ahead of every file, so that all of them have been quiet."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 10)


def test_the_cache_trusts_only_an_unchanged_stat(tmp_path: Path, later: None) -> None:
    cache = DigestCache(tmp_path / "digests.sqlite")
    path = write_old(tmp_path / "file", b"aaaa")
    first = hash_files([path], cache)
    assert cache.known([path]) == first
    path.write_bytes(b"bbbb")
    os.utime(path, (LONG_AGO, LONG_AGO))  # same size, same mtime: the ctime gives it away
    assert cache.known([path]) == {}
    assert hash_files([path], cache)[path].sha256 == sha256_hex(b"bbbb")


def test_the_cache_forgets_files_that_were_not_quiet(tmp_path: Path) -> None:
    cache = DigestCache(tmp_path / "digests.sqlite")
    path = write_old(tmp_path / "file", b"aaaa")  # the mtime is old, the ctime is now
    hash_files([path], cache)
    assert cache.known([path]) == {}


@pytest.mark.parametrize("damage", ["garbage", "cut", "another schema"])
def test_a_damaged_cache_is_rebuilt(
    tmp_path: Path, later: None, capsys: pytest.CaptureFixture, damage: str
) -> None:
    cache = DigestCache(tmp_path / "digests.sqlite")
    paths = [write_old(tmp_path / f"file{number}", bytes([number])) for number in range(40)]
    expected = hash_files(paths, cache)
    if damage == "garbage":
        cache.path.write_bytes(b"not a database" * 400)
    elif damage == "cut":
        data = cache.path.read_bytes()
        cache.path.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))  # the header is whole
    else:
        import sqlite3

        cache.path.unlink()
        with sqlite3.connect(cache.path) as connection:
            connection.execute("CREATE TABLE digests (something TEXT)")
    assert hash_files(paths, cache) == expected
    assert capsys.readouterr().out == "the digest cache digests.sqlite was damaged and is rebuilt\n"
    assert cache.known(paths) == expected


def test_digests_are_lower_case_hex_of_full_length() -> None:
    assert re.fullmatch("[0-9a-f]{64}", digest("code", {}))
