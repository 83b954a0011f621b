"""The settings inside a tokenizer.model, against sentencepiece's own protobuf."""

from pathlib import Path

import pytest
from sentencepiece import sentencepiece_model_pb2

from tests.tokenizer.conftest import make_llama2_style, make_tokenizer
from utils.pipeline.tokenizer_model import ModelSettings, model_settings

CASES = [
    {},
    {"add_dummy_prefix": True},
    {"remove_extra_whitespaces": True},
    {"normalization_rule_name": "nmt_nfkc"},
    {"recipe": "unigram", "vocab_size": 390},
]


@pytest.mark.parametrize("changes", CASES)
def test_equal_to_the_protobuf(tmp_path: Path, changes: dict) -> None:
    model = (make_tokenizer(tmp_path, **changes) / "tokenizer.model").read_bytes()
    check(model)


def test_a_model_of_somebody_else(tmp_path: Path) -> None:
    check((make_llama2_style(tmp_path) / "tokenizer.model").read_bytes())


def test_no_settings_are_the_defaults_of_the_format() -> None:
    assert model_settings(b"") == ModelSettings("unigram", False, "identity", True, True)


def check(model: bytes) -> None:
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    trainer, normaliser = proto.trainer_spec, proto.normalizer_spec
    kinds = {trainer.UNIGRAM: "unigram", trainer.BPE: "bpe"}
    assert model_settings(model) == ModelSettings(
        kind=kinds[trainer.model_type],
        byte_fallback=trainer.byte_fallback,
        normaliser=normaliser.name,
        add_dummy_prefix=normaliser.add_dummy_prefix,
        remove_extra_whitespaces=normaliser.remove_extra_whitespaces,
    )
