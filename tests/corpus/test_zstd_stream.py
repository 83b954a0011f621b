"""The zstd reader: what the library reads, and an error where it would stop quietly."""

import io

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.pipeline.zstd_stream import ZstdStream


def read_all(data: bytes) -> bytes:
    with io.BufferedReader(ZstdStream(io.BytesIO(data))) as stream:
        return stream.read()


@settings(max_examples=100)
@given(st.lists(st.binary(max_size=300).map(lambda part: part * 300), max_size=4))
def test_frames_are_read_one_after_the_other(parts: list[bytes]):
    assert read_all(b"".join(map(zstandard.ZstdCompressor().compress, parts))) == b"".join(parts)


def test_streams_without_a_size_and_with_large_windows():
    parameters = zstandard.ZstdCompressionParameters(window_log=28, compression_level=1)
    writer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    assert read_all(writer.compress(b"abc" * 100_000) + writer.flush()) == b"abc" * 100_000


@pytest.mark.parametrize("cut", [1, 4, 100])
def test_a_frame_that_was_cut_is_an_error(cut: int):
    data = zstandard.ZstdCompressor(write_checksum=True).compress(bytes(range(256)) * 10)
    with pytest.raises(EOFError, match="in the middle of a zstd frame"):
        read_all(data[:-cut])


def test_a_changed_byte_is_an_error():
    data = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(bytes(range(256)) * 10))
    data[100] ^= 1
    with pytest.raises(zstandard.ZstdError):
        read_all(bytes(data))
