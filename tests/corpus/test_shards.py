"""Shards: the same bytes every time, readable by zstd and gzip, closed at their size."""

import gzip
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import zstandard

from utils.corpus.shards import read_blocks, read_lines, write_shards
from utils.pipeline.errors import DataError
from utils.pipeline.hashing import sha256_hex

LINES = [b'{"text": "%04d"}\n' % i * 3 for i in range(1, 2_000)]


class Folder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def files(self, prefix: str) -> list[Path]:
        return sorted((self.path / prefix).glob("*")) if (self.path / prefix).is_dir() else []

    @contextmanager
    def open(self, name: str):
        with open(self.path / name, "rb") as file:
            yield file


def test_same_lines_same_bytes_and_sizes(tmp_path: Path):
    first = write_shards(tmp_path / "a" / "train", LINES, 20_000)
    second = write_shards(tmp_path / "b" / "train", iter(LINES), 20_000)
    assert first == second
    for shard in first:
        data = (tmp_path / "a" / "train" / shard.name).read_bytes()
        assert data == (tmp_path / "b" / "train" / shard.name).read_bytes()
        assert zstandard.get_frame_parameters(data).has_checksum
        assert sha256_hex(zstandard.ZstdDecompressor().decompressobj().decompress(data)) == shard.raw_sha256
    assert all(shard.raw_bytes >= 20_000 for shard in first[:-1])
    assert sum(shard.documents for shard in first) == len(LINES)


@pytest.mark.parametrize(
    ("compression", "suffix", "program"), [("zstd", "zst", "zstd"), ("gzip", "gz", "gzip")]
)
def test_the_usual_programs_accept_every_shard(tmp_path: Path, compression: str, suffix: str, program: str):
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    write_shards(tmp_path, LINES, 20_000, compression)
    shards = sorted(tmp_path.glob(f"*.jsonl.{suffix}"))
    assert len(shards) > 2
    subprocess.run([program, "-t", "-q", *shards], check=True)


def test_gzip_names_neither_file_nor_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = write_shards(tmp_path / "a", LINES, 20_000, "gzip")
    monkeypatch.setattr(time, "time", lambda: 5e9)
    assert write_shards(tmp_path / "b", LINES, 20_000, "gzip") == first
    for shard in first:
        data = (tmp_path / "a" / shard.name).read_bytes()
        assert data == (tmp_path / "b" / shard.name).read_bytes()
        assert data[3:8] == bytes(5)  # no flags, so no name, and no time
        assert sha256_hex(gzip.decompress(data)) == shard.raw_sha256


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
def test_reading_gives_the_lines_back_in_blocks(tmp_path: Path, compression: str):
    write_shards(tmp_path / "train", LINES, 20_000, compression)
    joined = b"".join(LINES).splitlines(keepends=True)
    assert list(read_lines(Folder(tmp_path), "train")) == joined
    blocks = list(read_blocks(Folder(tmp_path), "train"))
    assert [line for block in blocks for line in block.lines] == joined
    assert [len(block.lines) for block in blocks[:2]] == [1_000, 1_000]
    assert str(blocks[1]) == "train rows 1,000-1,999"


def test_no_shards_and_damaged_shards(tmp_path: Path):
    with pytest.raises(DataError, match="has no val shards"):
        list(read_lines(Folder(tmp_path), "val"))
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "00000.jsonl.zst").write_bytes(b"not zstd at all")
    with pytest.raises(DataError, match=r"val/00000.jsonl.zst is not readable"):
        list(read_lines(Folder(tmp_path), "val"))


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
def test_a_shard_that_was_cut_short_is_noticed(tmp_path: Path, compression: str):
    name = write_shards(tmp_path / "val", LINES, 1 << 20, compression)[0].name
    path = tmp_path / "val" / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=f"val/{name} is not readable"):
        list(read_lines(Folder(tmp_path), "val"))
