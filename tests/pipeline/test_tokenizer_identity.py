"""The seven fields of a tokenizer, computed a second time from sentencepiece's own protobuf (P34-P36)."""

import hashlib
from pathlib import Path

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from tests.pipeline.toy_stages import prepared_tokenizer
from utils.pipeline.errors import DataError
from utils.pipeline.guards import GUARDS
from utils.pipeline.hashing import digest
from utils.pipeline.tokenizer_identity import (
    PROBES,
    changed_probe,
    describe_difference,
    first_differing_probe,
    seal_block,
    tokenizer_block,
    with_template,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer.model").write_bytes(prepared_tokenizer(0))
    return tmp_path


def test_the_block_is_what_the_files_say(folder: Path) -> None:
    model = prepared_tokenizer(0)
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    block = tokenizer_block(folder)
    ids = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    six = {
        "model_sha256": hashlib.sha256(model).hexdigest(),
        "pieces_sha256": digest("pieces", [[one.piece, one.score, int(one.type)] for one in proto.pieces]),
        "vocab_size": len(proto.pieces),
        "special_ids": {
            "unk": ids["<unk>"], "bos": ids["<s>"], "eos": ids["</s>"], "pad": ids["<pad>"],
            "<|im_start|>": ids["<|im_start|>"], "<|im_end|>": ids["<|im_end|>"],
        },
        "chat_template_sha256": "",
        "probe_sha256": digest("probe", [processor.encode(probe) for probe in PROBES]),
    }  # fmt: skip
    assert block == six | {"fingerprint": digest("tokenizer", six)}


def test_a_template_is_part_of_it(folder: Path) -> None:
    plain = tokenizer_block(folder)
    (folder / "chat_template.jinja").write_text("{{ x }}")
    block = tokenizer_block(folder)
    assert block["chat_template_sha256"] == hashlib.sha256(b"{{ x }}").hexdigest()
    assert block == with_template(plain, "{{ x }}") == tokenizer_block(folder, "{{ x }}")
    assert block["fingerprint"] != plain["fingerprint"]


def test_there_are_23_probes_in_the_order_of_the_specification() -> None:
    assert len(PROBES) == 23
    assert PROBES[4] == "line one\nline two\n\nline four" and PROBES[20] == "a" * 64
    assert PROBES[9] == "caf\u00e9 na\u00efve" and PROBES[22] == "\u00a0nbsp\u200bzero"


def test_a_file_that_is_no_model_is_named(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="tokenizer.model is not a SentencePiece model"):
        tokenizer_block(folder)


def test_the_difference_is_described(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "tokenizer.model").write_bytes(prepared_tokenizer(1))
    text = describe_difference((folder, other))
    assert text.startswith("model bytes; pieces (first: id ") and '" against "' in text and "; probe " in text
    assert describe_difference((folder, folder)) == ""
    assert first_differing_probe([[1], [2]], [[1], [3]]) == ["probe 1 'Hello world'"]


def test_probe_ids_are_compared_with_the_report(folder: Path) -> None:
    assert changed_probe(folder) == ""  # no report, nothing to say
    (folder / "report.json").write_text('{"probe_ids": ' + str([[1]] * len(PROBES)) + "}")
    assert changed_probe(folder) == "probe 0 ''"


BLOCK = seal_block({
    "model_sha256": "a", "pieces_sha256": "b", "vocab_size": 5, "special_ids": {"bos": 1},
    "probe_sha256": "c", "chat_template_sha256": "",
})  # fmt: skip


@pytest.mark.parametrize(
    ("change", "verdict", "waivable"),
    [
        ({}, "None", False),
        ({"model_sha256": "x"}, "mismatched (tokenizer: base ", True),
        ({"pieces_sha256": "x"}, "mismatched (tokenizer: base ", True),
        ({"special_ids": {"bos": 2}}, "mismatched (tokenizer: base ", True),
        ({"probe_sha256": "x"}, "mismatched (tokenizer: base ", True),
        ({"vocab_size": 6}, "mismatched (tokenizer: base ", False),
        ({"chat_template_sha256": "t"}, "None", False),
    ],
)
def test_every_field_must_agree(change: dict, verdict: str, waivable: bool) -> None:
    found = GUARDS["G13"]({"base": BLOCK, "none": {}, "data": seal_block(BLOCK | change)})
    assert str(found).startswith(verdict)
    assert found is None or found.waivable == waivable


def test_templates_must_agree_among_those_that_have_one() -> None:
    first, second = with_template(BLOCK, "x"), with_template(BLOCK, "y")
    assert GUARDS["G13"]({"base": BLOCK, "data": first, "more": first}) is None
    assert str(GUARDS["G13"]({"base": BLOCK, "data": first, "more": second})).startswith(
        "mismatched (chat_template: data "
    )
