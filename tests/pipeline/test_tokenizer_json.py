"""A tokenizer.json behind the methods of a SentencePieceProcessor, against the library's own answers."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tests.tokenizer.conftest import TEXTS, make_gpt2_style, make_tokenizer
from utils.pipeline.errors import DataError
from utils.pipeline.hashing import digest, sha256_hex
from utils.pipeline.tokenizer_files import open_processor
from utils.pipeline.tokenizer_identity import PROBES, describe_difference, pieces_of, tokenizer_block
from utils.pipeline.tokenizer_json import JsonProcessor


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gpt2_style(
        tmp_path_factory.mktemp("gpt2"), specials=("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    )


def test_the_block_is_what_the_files_say(gpt2_folder: Path) -> None:
    data = (gpt2_folder / "tokenizer.json").read_bytes()
    library, description = Tokenizer.from_file(str(gpt2_folder / "tokenizer.json")), json.loads(data)
    library.encode_special_tokens = True
    special = {token["id"] for token in description["added_tokens"]}
    pieces = [
        [library.id_to_token(i), 0.0, 3 if i in special else 1] for i in range(library.get_vocab_size())
    ]
    six = {
        "model_sha256": sha256_hex(data),
        "pieces_sha256": digest("pieces", pieces),
        "vocab_size": 400,
        "special_ids": {"unk": 0, "bos": 0, "eos": 0, "pad": -1, "<|im_start|>": 1, "<|im_end|>": 2},
        "probe_sha256": digest(
            "probe", [library.encode(probe, add_special_tokens=False).ids for probe in PROBES]
        ),
        "chat_template_sha256": "",
    }
    assert tokenizer_block(gpt2_folder) == six | {"fingerprint": digest("tokenizer", six)}


def test_the_config_decides_about_roles(gpt2_folder: Path, tmp_path: Path) -> None:
    data = (gpt2_folder / "tokenizer.json").read_bytes()
    config = json.dumps({"bos_token": None, "eos_token": {"content": "<|im_end|>"}})
    specials = json.dumps({"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"})
    processor = JsonProcessor(data, config, specials)
    assert (processor.bos_id(), processor.eos_id(), processor.pad_id(), processor.unk_id()) == (-1, 2, 0, -1)


def test_a_file_that_truncates_and_pads_is_read_whole(gpt2_folder: Path) -> None:
    library = Tokenizer.from_file(str(gpt2_folder / "tokenizer.json"))
    library.enable_truncation(8)
    library.enable_padding(length=900)
    processor = JsonProcessor(library.to_str().encode(), "", "")
    assert processor.encode(TEXTS[:2]) == open_processor(gpt2_folder).encode(TEXTS[:2])


def test_pieces_of_ours_are_typed_as_in_the_model_file(tmp_path: Path) -> None:
    folder = make_tokenizer(tmp_path)
    ours = pieces_of(open_processor(folder))
    (folder / "tokenizer.model").unlink()
    theirs = pieces_of(open_processor(folder))
    assert [(piece, kind) for piece, _, kind in ours] == [(piece, kind) for piece, _, kind in theirs]


def test_differences_are_named(gpt2_folder: Path, tmp_path: Path) -> None:
    other = make_gpt2_style(tmp_path, specials=("<|end|>",))
    assert describe_difference((gpt2_folder, other)).startswith(
        'model bytes; pieces (first: id 0 "<|endoftext|>" against "<|end|>"); probe '
    )


def test_damage_is_one_message() -> None:
    for data in (b"nonsense", b"{}", b"\xff"):
        with pytest.raises(DataError, match="tokenizer.json cannot be read"):
            JsonProcessor(data, "", "")
