"""The binary formats, against an independent struct reader, and every kind of damage with its message."""

import hashlib
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from tests.packing.conftest import make_blocks, make_layout, pack
from utils.packing import dataset
from utils.packing.dataset import PackedDataset, verify_packed
from utils.packing.format import TOKENS, TRAINED, TokenWriter, read_tokens, token_dtype, write_tokens
from utils.packing.index import (
    Documents,
    PackedIndex,
    RowsIndex,
    SpecialIds,
    read_rows_index,
    write_packed_index,
    write_rows_index,
)
from utils.pipeline.errors import DataError, UpstreamError
from utils.pipeline.hashing import sha256_hex

FINGERPRINT = "ab" * 32


def patch(path: Path, offset: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)


def test_bin_golden_bytes(tmp_path: Path):
    write_tokens(
        tmp_path / "a.bin", [np.array([1, 300]), np.array([2])], vocab_size=4096, fingerprint=FINGERPRINT
    )
    expected = (
        b"LOCKSTEP" + struct.pack("<IIIIQ", 1, 1, 2, 4096, 3) + b"\xab" * 32 + struct.pack("<3H", 1, 300, 2)
    )
    assert (tmp_path / "a.bin").read_bytes() == expected


def test_idx_by_an_independent_reader(packed: Path):
    data = (packed / "train.idx").read_bytes()
    magic, kind, version, mode, length = struct.unpack_from("<8sIIII", data)
    documents, tokens, rows, segments = struct.unpack_from("<QQQQ", data, 24)
    bos, eos, pad, zero = struct.unpack_from("<IIII", data, 56)
    assert (magic, kind, version, mode, length) == (b"LOCKSTEP", 2, 1, 1, 8)
    assert (documents, tokens, bos, eos, pad, zero) == (4, 38, 1, 2, 3, 0)
    assert data[72:104] == b"\xab" * 32
    assert data[104:136].hex() == sha256_hex((packed / "train.bin").read_bytes())
    at = 136
    assert struct.unpack_from("<5Q", data, at) == (0, 5, 25, 34, 38)
    at += 40
    assert data[at : at + 64] == b"".join(i.to_bytes(16, "big") for i in range(4))
    at += 64
    assert struct.unpack_from("<4H", data, at) == (0, 0, 0, 0)
    at += 8
    row_offsets = struct.unpack_from(f"<{rows + 1}Q", data, at)
    at += 8 * (rows + 1)
    starts = struct.unpack_from(f"<{segments}Q", data, at)
    at += 8 * segments
    lengths = struct.unpack_from(f"<{segments}I", data, at)
    at += 4 * segments + (-4 * segments % 8)
    assert at == len(data)
    # 20 ids at T = 8 are pieces of 9, 9 and 4 ids; full pieces 5.., 13.. and document 2 come first
    assert (starts, lengths) == ((5, 13, 25, 0, 21, 34), (9, 9, 9, 5, 4, 4))
    assert row_offsets == (0, 1, 2, 3, 5, 6)


def test_u16_up_to_65536_pieces_then_u32(tmp_path: Path):
    assert token_dtype(65_536) == np.dtype("<u2")
    write_tokens(tmp_path / "a.bin", [np.array([65_536, 7])], vocab_size=65_537, fingerprint=FINGERPRINT)
    opened = read_tokens(tmp_path / "a.bin")
    assert opened.ids.tolist() == [65_536, 7]
    assert opened.ids.dtype == np.dtype("<u4")


def test_trained_stream_is_kind_4_with_one_byte_per_token(tmp_path: Path):
    write_tokens(tmp_path / "a.trained", [np.array([0, 1, 1])], 4096, FINGERPRINT, kind=TRAINED)
    data = (tmp_path / "a.trained").read_bytes()
    assert struct.unpack_from("<III", data, 8) == (4, 1, 1)
    assert data[64:] == b"\0\1\1"
    assert read_tokens(tmp_path / "a.trained", TRAINED).ids.tolist() == [0, 1, 1]
    with pytest.raises(DataError, match="values run from 0 to 2, allowed are 0 to 1"):
        write_tokens(tmp_path / "b.trained", [np.array([0, 2])], 4096, FINGERPRINT, kind=TRAINED)


def test_rows_index_round_trip(tmp_path: Path):
    documents = Documents.of([3, 4], ["0f" * 16, "1a" * 16], [0, 1])
    index = RowsIndex(
        SpecialIds(1, 2, -1), FINGERPRINT, "cd" * 32, documents, np.array([1.0, 0.5]), np.array([2, 3])
    )
    write_rows_index(tmp_path / "a.idx", index)
    back = read_rows_index(tmp_path / "a.idx")
    assert back.documents.offsets.tolist() == [0, 3, 7]
    assert back.documents.ids[1].tobytes().hex() == "1a" * 16
    assert (back.weights.tolist(), back.trained_counts.tolist()) == ([1.0, 0.5], [2, 3])
    assert back.special == SpecialIds(1, 2, -1)
    assert back.bin_sha256 == "cd" * 32


def test_resumed_writer_gives_the_same_bytes(tmp_path: Path):
    write_tokens(tmp_path / "whole.bin", [np.arange(5), np.arange(7)], 16, FINGERPRINT)
    first = TokenWriter(tmp_path / "cut.bin", 16, FINGERPRINT)
    first.append(np.arange(5))
    first.flush()
    second = TokenWriter(tmp_path / "cut.bin", 16, FINGERPRINT, TOKENS, resume=True)
    second.append(np.arange(7))
    assert second.close() == 12
    assert (tmp_path / "cut.bin").read_bytes() == (tmp_path / "whole.bin").read_bytes()


def test_unfinished_stream_is_refused(tmp_path: Path):
    writer = TokenWriter(tmp_path / "a.bin", 16, FINGERPRINT)
    writer.append(np.arange(5))
    writer.flush()
    with pytest.raises(DataError, match="a.bin has 74 bytes, its header needs 64: too long"):
        read_tokens(tmp_path / "a.bin")


DAMAGE = {
    "other magic": ("train.bin", 0, b"PK\3\4", "train.bin is not a packed dataset (starts with 50 4b 03 04)"),
    "other kind": ("train.bin", 8, b"\2", "train.bin is not a packed dataset but an index of packed rows"),
    "newer version": ("train.bin", 12, b"\2", "train.bin has version 2, this program reads 1"),
    "count against size": (
        "train.bin",
        24,
        b"\x27",
        "train.bin has 140 bytes, its header needs 142: truncated",
    ),
    "idx magic": (
        "train.idx",
        0,
        b"PK\3\4",
        "train.idx is not an index of packed rows (starts with 50 4b 03 04)",
    ),
    "idx mode": (
        "train.idx",
        16,
        b"\7",
        "train.idx has packing mode 7, this program knows concat and best_fit",
    ),
    "idx size": ("train.idx", 24, b"\5", "train.idx has 368 bytes, its header needs 376: truncated"),
    "offsets drop": ("train.idx", 136 + 16, b"\4", "train.idx: document_offsets[2] = 4 is below 5"),
    "last offset": (
        "train.idx",
        136 + 32,
        b"\x27",
        "train.idx: document_offsets run from 0 to 39, expected 0 to 38",
    ),
    "segment outside": (
        "train.idx",
        368 - 24 + 12,
        b"\6",
        "train.idx: segment 3 (ids 0 to 6) is outside its document",
    ),
    "other fingerprint": (
        "train.idx",
        72,
        b"\0",
        "train.idx was written with tokenizer 00ababababab, train.bin with",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_opening_names_the_damage(packed: Path, case: str):
    name, offset, data, message = DAMAGE[case]
    patch(packed / name, offset, data)
    with pytest.raises(DataError, match=re.escape(message)):
        PackedDataset(packed, "train")


def test_truncated_index_and_empty_file(packed: Path):
    data = (packed / "train.idx").read_bytes()
    (packed / "train.idx").write_bytes(data[:-8])
    with pytest.raises(DataError, match="train.idx has 360 bytes, its header needs 368: truncated"):
        PackedDataset(packed, "train")
    (packed / "train.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"train.bin is not a packed dataset \(starts with \)"):
        PackedDataset(packed, "train")


VERIFY = {
    "id too high": (64 + 2 * 6, b"\xff\x7f", "train.bin: id 32767 at 6 but vocab_size is 300"),
    "no BOS": (64 + 2 * 5, b"\5\0", "train.bin: id 5 at 5, expected BOS 1 of document 1"),
    "no EOS": (64 + 2 * 4, b"\5\0", "train.bin: id 5 at 4, expected EOS 2 of document 0"),
    "extra EOS": (64 + 2 * 7, b"\2\0", "train.bin: 5 EOS in 4 documents"),
    "other ids": (64 + 2 * 7, b"\x63\0", "train.idx was written for another train.bin (sha256 "),
}


@pytest.mark.parametrize("case", VERIFY)
def test_verify_names_the_damage(packed: Path, case: str):
    offset, data, message = VERIFY[case]
    verify_packed(packed, "train")
    patch(packed / "train.bin", offset, data)
    with pytest.raises(DataError, match=re.escape(message)):
        verify_packed(packed, "train")


def test_another_tokenizer_in_use_is_exit_3(packed: Path):
    message = re.escape("mismatched (tokenizer: data abababababab, in use cdcdcdcdcdcd)")
    with pytest.raises(UpstreamError, match=message) as error:
        PackedDataset(packed, "train", fingerprint="cd" * 32)
    assert error.value.exit_code == 3


GOLDEN = Path(__file__).parents[1] / "golden" / "packed"


def golden_documents() -> list[np.ndarray]:
    """Two documents, 68 ids in all: .bin is 64 + 136 bytes, .idx 136 + 24 + 32 + 8."""
    first, second = (4 + np.arange(28) * 3, 90 + np.arange(36) * 5)
    return [np.array([1, *first, 2]), np.array([1, *second, 2])]


def test_the_writer_gives_the_golden_200_bytes(tmp_path: Path):
    documents = golden_documents()
    write_tokens(tmp_path / "train.bin", documents, vocab_size=300, fingerprint=FINGERPRINT)
    index = PackedIndex(
        mode="concat",
        sequence_length=16,
        num_rows=4,
        special=SpecialIds(1, 2, -1),
        fingerprint=FINGERPRINT,
        bin_sha256=sha256_hex((tmp_path / "train.bin").read_bytes()),
        documents=Documents.of([30, 38], ["0f" * 16, "1a" * 16], [0, 1]),
        rows=None,
    )
    write_packed_index(tmp_path / "train.idx", index)
    for name in ("train.bin", "train.idx"):
        written = (tmp_path / name).read_bytes()
        assert len(written) == 200
        assert written == (GOLDEN / name).read_bytes()


def test_the_golden_bytes_by_an_independent_reader():
    data = (GOLDEN / "train.bin").read_bytes()
    assert struct.unpack("<8sIIIIQ32s", data[:64]) == (b"LOCKSTEP", 1, 1, 2, 300, 68, b"\xab" * 32)
    ids = struct.unpack("<68H", data[64:])
    assert ids == tuple(int(i) for document in golden_documents() for i in document)
    index = (GOLDEN / "train.idx").read_bytes()
    assert struct.unpack("<8sIIIIQQQQIIII", index[:72]) == (
        b"LOCKSTEP", 2, 1, 0, 16, 2, 68, 4, 0, 1, 2, 0xFFFFFFFF, 0,
    )  # fmt: skip
    assert index[72:104] == b"\xab" * 32
    assert index[104:136] == hashlib.sha256(data).digest()
    assert struct.unpack("<3Q", index[136:160]) == (0, 30, 68)
    assert (index[160:176], index[176:192]) == (b"\x0f" * 16, b"\x1a" * 16)
    assert struct.unpack("<2H4x", index[192:]) == (0, 1)


def test_the_golden_files_are_read():
    data = verify_packed(GOLDEN, "train")
    assert (data.num_rows, data.num_documents, data.sequence_length, data.mode) == (4, 2, 16, "concat")
    assert data.documents(1).tolist() == golden_documents()[1].tolist()
    assert data.rows([1]).tokens[0].tolist() == np.concatenate(golden_documents())[16:33].tolist()


def test_u32_from_writer_to_rows(tmp_path: Path):
    blocks = make_blocks([20, 30], vocab_size=65_537)
    blocks[0].ids[5] = 65_536
    pack(tmp_path, "train", blocks, make_layout(8, vocab_size=65_537))
    data = verify_packed(tmp_path, "train")
    assert data.documents(0)[5] == 65_536
    assert 65_536 in data.rows(range(data.num_rows)).tokens
    assert (tmp_path / "train.bin").stat().st_size == 64 + 4 * 50


def test_another_bin_of_the_same_shape_is_noticed(packed: Path, tmp_path: Path):
    other = make_blocks([5, 20, 9, 4])
    for block in other:
        block.ids[block.ids > 3] += 1
    pack(tmp_path / "other", "train", other, make_layout())
    (packed / "train.bin").write_bytes((tmp_path / "other/train.bin").read_bytes())
    PackedDataset(packed, "train")  # opening reads no ids
    message = r"train.idx was written for another train.bin \(sha256 [0-9a-f]{12}, found [0-9a-f]{12}\)"
    with pytest.raises(DataError, match=message):
        verify_packed(packed, "train")


def test_a_row_count_that_the_ids_do_not_make_is_refused(tmp_path: Path):
    pack(tmp_path, "train", make_blocks([5, 20, 9, 4]), make_layout(mode="concat"))
    patch(tmp_path / "train.idx", 40, b"\x05")
    with pytest.raises(DataError, match="train.idx has 5 rows, 38 ids make 4 of 8"):
        PackedDataset(tmp_path, "train")
    patch(tmp_path / "train.idx", 20, b"\0")
    with pytest.raises(DataError, match="train.idx has rows of 0 tokens"):
        PackedDataset(tmp_path, "train")


def test_a_row_that_holds_too_much_is_refused(packed: Path):
    """The last two rows' borders moved: one row of nothing, one of three segments."""
    patch(packed / "train.idx", 368 - 24 - 48 - 16, b"\x06")
    with pytest.raises(DataError, match="train.idx: row 3 holds 13 ids, it has room for 9"):
        PackedDataset(packed, "train")


def test_many_documents_are_checked_in_parts(packed: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dataset, "CHECKED_IDS", 7)
    verify_packed(packed, "train")
    patch(packed / "train.bin", 64 + 2 * 31, b"\xff\x7f")
    with pytest.raises(DataError, match="train.bin: id 32767 at 31 but vocab_size is 300"):
        verify_packed(packed, "train")
