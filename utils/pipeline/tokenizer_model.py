"""
The settings inside a tokenizer.model, read from its wire format, so that no protobuf package is needed: one
is here only by way of other packages.

    settings = model_settings(Path("data/demo/tokenizer/tokenizer.model").read_bytes())
    settings.kind, settings.normaliser, settings.add_dummy_prefix        # "bpe", "identity", False
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
TRAINER_SPEC, NORMALIZER_SPEC = 2, 3  # field numbers of sentencepiece_model.proto
MODEL_TYPE, BYTE_FALLBACK = 3, 35
RULE_NAME, ADD_DUMMY_PREFIX, REMOVE_EXTRA_WHITESPACES = 1, 3, 4


@dataclass(frozen=True)
class ModelSettings:
    """How a SentencePiece model reads text."""

    kind: str
    """unigram, bpe, word or char; "unknown" for anything else."""
    byte_fallback: bool
    normaliser: str
    """Name of the rule; "identity" when the model names none."""
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool


@lru_cache(maxsize=8)
def model_settings(serialized: bytes) -> ModelSettings:
    """Read trainer and normaliser spec, absent fields at the defaults of the format."""
    found = _specs(serialized)
    rule = bytes(found.get((NORMALIZER_SPEC, RULE_NAME), b"")).decode("utf-8", "replace")
    return ModelSettings(
        kind=MODEL_TYPES.get(int(found.get((TRAINER_SPEC, MODEL_TYPE), 1)), "unknown"),
        byte_fallback=bool(found.get((TRAINER_SPEC, BYTE_FALLBACK), 0)),
        normaliser=rule or "identity",
        add_dummy_prefix=bool(found.get((NORMALIZER_SPEC, ADD_DUMMY_PREFIX), 1)),
        remove_extra_whitespaces=bool(found.get((NORMALIZER_SPEC, REMOVE_EXTRA_WHITESPACES), 1)),
    )


def _specs(serialized: bytes) -> dict[tuple[int, int], int | bytes]:
    """Scalar fields of trainer and normaliser spec by (spec, field) number."""
    found: dict[tuple[int, int], int | bytes] = {}
    for spec, body in _wire_fields(serialized):
        if spec in (TRAINER_SPEC, NORMALIZER_SPEC) and isinstance(body, bytes):
            found.update({(spec, number): value for number, value in _wire_fields(body)})
    return found


def _wire_fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire_type == 2:
            length, position = _varint(data, position)
        else:
            length = 4 if wire_type == 5 else 8
        yield number, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
