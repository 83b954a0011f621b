"""
Quantisation in a child process: what comes through, what is read back, and what happens when llama.cpp gives
up.
"""

import json
import sys
from pathlib import Path

import pytest
from gguf import GGUFReader, GGUFWriter

from tests.export.tiny_model import stories, train_tokenizer
from utils.export import gguf_quantize, llama_child
from utils.export.gguf_quantize import patch_key, quantize_gguf, read_keys, written_types
from utils.export.gguf_vocab import read_vocabulary
from utils.export.gguf_write import Description, write_gguf
from utils.export.llama_child import run_child
from utils.pipeline.errors import StageError


@pytest.fixture(scope="module")
def source(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "model-f16.gguf"
    write_gguf(tiny, path, "f16", Description("tiny", keys={"lockstep.tensors_sha256": "0" * 64}))
    return path


@pytest.mark.parametrize(
    ("file_type", "types"),
    [
        ("q4_k_m", {"F32": 5, "Q4_K": 12, "Q6_K": 3}),
        ("q5_k_m", {"F32": 5, "Q5_K": 12, "Q6_K": 3}),
        ("q6_k", {"F32": 5, "Q6_K": 15}),
    ],
)
def test_types_really_written_are_read_back(
    source: Path, tmp_path: Path, file_type: str, types: dict
) -> None:
    quantize_gguf(source, tmp_path / "model.gguf", file_type, timeout_seconds=60)
    assert written_types(tmp_path / "model.gguf") == types


def test_every_key_but_the_file_type_survives(source: Path, tmp_path: Path) -> None:
    quantize_gguf(source, tmp_path / "model.gguf", "q4_k_m", timeout_seconds=60)
    before, after = read_keys(source), read_keys(tmp_path / "model.gguf")
    assert {key for key in before if before[key] != after[key]} == {"general.file_type"}


def test_a_lost_key_is_an_error(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = gguf_quantize.read_keys

    def forgetful(path: Path) -> dict:
        return {
            key: value for key, value in right(path).items() if path == source or key != "llama.block_count"
        }

    monkeypatch.setattr(gguf_quantize, "read_keys", forgetful)
    with pytest.raises(StageError, match="changed 1 metadata keys, first llama.block_count"):
        quantize_gguf(source, tmp_path / "model.gguf", "q4_k_m", timeout_seconds=60)


def test_patching_changes_one_value_and_no_tensor(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(source.read_bytes())
    patch_key(path, "lockstep.tensors_sha256", "ab" * 32)
    assert read_keys(path) == read_keys(source) | {"lockstep.tensors_sha256": "ab" * 32}
    pairs = zip(GGUFReader(path).tensors, GGUFReader(source).tensors, strict=True)
    assert all((a.data == b.data).all() for a, b in pairs)


def test_a_value_of_another_length_does_not_fit(source: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(source.read_bytes())
    with pytest.raises(ValueError, match="holds 64 bytes, 3 do not fit"):
        patch_key(tmp_path / "model.gguf", "lockstep.tensors_sha256", "abc")


def test_a_file_that_is_no_gguf_becomes_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"not a model")
    with pytest.raises(StageError, match="llama.cpp failed in quantize: .+") as failure:
        quantize_gguf(tmp_path / "bad.gguf", tmp_path / "out.gguf", "q4_k_m", timeout_seconds=60)
    assert "\n" not in str(failure.value)
    assert failure.value.exit_code == 4


def test_endless_work_is_stopped(source: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="did not finish quantize within 0.05 s and was stopped"):
        quantize_gguf(source, tmp_path / "model.gguf", "q4_k_m", timeout_seconds=0.05)


def test_an_abort_inside_llama_cpp_becomes_one_sentence(tiny: Path, tmp_path: Path) -> None:
    """A vocabulary without byte pieces makes llama.cpp throw past its own handlers."""
    (tmp_path / "tokenizer.model").write_bytes((tiny / "tokenizer.model").read_bytes())
    vocabulary = read_vocabulary(tmp_path, "<|im_end|>")
    write_gguf(tiny, tmp_path / "right.gguf", "f16", Description("tiny"))
    wrong = tmp_path / "no-bytes.gguf"
    _copy_without_byte_pieces(tmp_path / "right.gguf", wrong, vocabulary.pieces)
    with pytest.raises(
        StageError, match="llama.cpp failed in tokenize: the process was ended by SIGABRT"
    ) as failure:
        run_child("tokenize", {"model": str(wrong), "texts": ["\u4f60"], "special": False, "bos": False}, 60)
    assert "\n" not in str(failure.value)


def _copy_without_byte_pieces(source: Path, target: Path, pieces: list[str]) -> None:
    reader, writer = GGUFReader(source), GGUFWriter(target, "llama")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value, kind = field.contents(), field.types[0]
        if name == "tokenizer.ggml.tokens":
            value = [f"b{i}" if piece.startswith("<0x") else piece for i, piece in enumerate(pieces)]
        if name == "tokenizer.ggml.token_type":
            value = [1 if number == 6 else number for number in value]
        writer.add_key_value(name, value, kind, field.types[-1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_child_runs_the_task_it_is_told(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry point of the child, in this process: request on stdin, reply in the file."""
    path = tmp_path / "model.gguf"
    write_gguf(tiny, path, "f16", Description("tiny"))
    request = {"model": str(path), "texts": ["The fox"], "special": False, "bos": True}
    (tmp_path / "request.json").write_text(json.dumps(request))
    monkeypatch.setattr(sys, "argv", ["llama_child", "tokenize", str(tmp_path / "reply.json")])
    with open(tmp_path / "request.json") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        llama_child.main()
    ids = json.loads((tmp_path / "reply.json").read_text())["ids"][0]
    assert ids[0] == 1 and len(ids) > 1


def test_training_texts_are_no_part_of_the_recipe(tmp_path: Path) -> None:
    """
    The fixture's tokenizer is deterministic, or the byte-identity tests of the writer would mean nothing.
    """
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        train_tokenizer(tmp_path / name, stories(100), vocab_size=400)
    assert (tmp_path / "a/tokenizer.model").read_bytes() == (tmp_path / "b/tokenizer.model").read_bytes()
