"""
Zstandard files as a stream that notices when one was cut short, which the library's own reader does not.

    >>> with io.BufferedReader(ZstdStream(open("a.jsonl.zst", "rb"))) as stream:
    ...     stream.readline()
"""

import io
from typing import BinaryIO

import zstandard

_CHUNK = 1 << 16
_LARGEST_WINDOW = 1 << 31  # what `zstd --long=31` writes


class ZstdStream(io.RawIOBase):
    """
    The frames of a file, one after the other. ZstdError for damage, EOFError for a frame without its end.
    """

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while not self._ready:
            data = self._raw.read(_CHUNK)
            if not data:
                if self._frame:
                    raise EOFError("the file ends in the middle of a zstd frame")
                return 0
            self._ready = self._unpack(data)
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _unpack(self, data: bytes) -> bytes:
        parts = []
        while data:
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompressobj()
            parts.append(self._frame.decompress(data))
            data = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        return b"".join(parts)
