"""
Tokenizer identity: seven fields that are equal exactly when two tokenizers give the same ids (P34, P35).

Computed from the files every time, never copied from another manifest, because a number that was copied
proves nothing.

    block = tokenizer_block(Path("data/demo/tokenizer"))
    block["fingerprint"]
"""

import json
from functools import lru_cache
from pathlib import Path

from utils.pipeline.hashing import digest, sha256_hex
from utils.pipeline.tokenizer_files import SPECIALS, TEMPLATE_FILE, Processor, model_path, open_processor

PROBES = [
    "", "Hello world", " hello", "  two  spaces", "line one\nline two\n\nline four", "\ttab\tand trailing ",
    "def f(x):\n    return x + 1\n", "3.14159 and 1234567890", "don't, I'll, we've", "caf\xe9 na\xefve",
    "e\u0301", "\u4f60\u597d\u4e16\u754c", "\u041f\u0440\u0438\u0432\u0435\u0442",
    "\U0001f600 \U0001f468\u200d\U0001f469", "\u201ccurly\u201d \u2014 dash",
    "https://example.org/a?b=c&d=1#e", "<|im_start|>user\nhi<|im_end|>\n", "<s>text</s><unk><pad>",
    '{"a": [1, 2.5, null]}', "ALL CAPS AND MiXeD", "a" * 64, "\r\n", "\xa0nbsp\u200bzero",
]  # fmt: skip
TURN_MARKS = ("<|im_start|>", "<|im_end|>")
REPORT_FILE = "report.json"
_UNKNOWN_PIECE, _CONTROL_PIECE = 2, 3


def tokenizer_block(folder: Path, chat_template: str | None = None) -> dict:
    """
    The tokenizer block of a manifest for the files in `folder`.

    `chat_template` is its text; None reads `chat_template.jinja` from the folder, and no such file means "".
    DataError if the files cannot be read.
    """
    if chat_template is None:
        template_file = folder / TEMPLATE_FILE
        chat_template = template_file.read_text(encoding="utf-8") if template_file.is_file() else ""
    template_sha256 = sha256_hex(chat_template.encode()) if chat_template else ""
    model_sha256 = sha256_hex(model_path(folder).read_bytes())
    identity = _identity(model_sha256, open_processor(folder))
    return seal_block(identity | {"chat_template_sha256": template_sha256})


def seal_block(fields: dict) -> dict:
    """The six fields with the fingerprint over them."""
    six = {name: value for name, value in fields.items() if name != "fingerprint"}
    return six | {"fingerprint": digest("tokenizer", six)}


def with_template(block: dict, chat_template: str) -> dict:
    """The same tokenizer with a chat template chosen for it."""
    return seal_block(block | {"chat_template_sha256": sha256_hex(chat_template.encode())})


@lru_cache(maxsize=8)
def _identity(model_sha256: str, processor: Processor) -> dict:
    pieces = pieces_of(processor)
    return {
        "model_sha256": model_sha256,
        "pieces_sha256": digest("pieces", pieces),
        "vocab_size": len(pieces),
        "special_ids": _special_ids(pieces, processor),
        "probe_sha256": digest("probe", encode_probes(processor)),
    }


def encode_probes(processor: Processor) -> list[list[int]]:
    """
    The ids of every probe, as user text without BOS or EOS; a seam, so that a test can stand in for
    another library.
    """
    return [processor.encode(probe) for probe in PROBES]


def pieces_of(processor: Processor) -> list[list]:
    """
    [[piece, score, type], ...] in id order, types numbered as in SentencePiece's own model file. The library
    does not tell user-defined pieces (4) from normal ones (1), so both are 1 here.
    """
    return [
        [processor.id_to_piece(index), processor.get_score(index), _piece_type(processor, index)]
        for index in range(processor.get_piece_size())
    ]


def _piece_type(processor: Processor, index: int) -> int:
    if processor.is_unknown(index):
        return _UNKNOWN_PIECE
    if processor.is_control(index):
        return _CONTROL_PIECE
    if processor.is_unused(index):
        return 5
    return 6 if processor.is_byte(index) else 1


def _special_ids(pieces: list[list], processor: Processor) -> dict[str, int]:
    """
    The ids that the files assign to a role, else those of a special piece with its usual spelling, else -1.
    """
    special = {
        piece: index
        for index, (piece, _, kind) in enumerate(pieces)
        if kind in (_UNKNOWN_PIECE, _CONTROL_PIECE)
    }
    assigned = {"unk": processor.unk_id(), "bos": processor.bos_id()}
    assigned |= {"eos": processor.eos_id(), "pad": processor.pad_id()}
    named = {
        name: found if found >= 0 else special.get(SPECIALS[name], -1) for name, found in assigned.items()
    }
    return named | {mark: special.get(mark, -1) for mark in TURN_MARKS}


def describe_difference(folders: tuple[Path, Path]) -> str:
    """
    What differs between the tokenizers of two folders: bytes, first piece, first probe; for one refusal
    message.
    """
    found = []
    processors = [open_processor(folder) for folder in folders]
    first, second = (model_path(folder).read_bytes() for folder in folders)
    if first != second:
        found.append("model bytes")
    pieces = [[row[0] for row in pieces_of(processor)] for processor in processors]
    for index, (ours, theirs) in enumerate(zip(*pieces, strict=False)):
        if ours != theirs:
            found.append(f'pieces (first: id {index} "{ours}" against "{theirs}")')
            break
    found += first_differing_probe(*[encode_probes(processor) for processor in processors])
    return "; ".join(found)


def changed_probe(folder: Path) -> str:
    """
    The first probe whose ids are not those that stage 30 wrote into the folder's report.json, or "".

    Only the digest of the probes is in a manifest; the ids themselves are kept so that a refusal can name
    one.
    """
    report = folder / REPORT_FILE
    recorded = json.loads(report.read_text(encoding="utf-8")).get("probe_ids", []) if report.is_file() else []
    now = encode_probes(open_processor(folder))
    found = first_differing_probe(recorded, now) if len(recorded) == len(now) else []
    return found[0] if found else ""


def first_differing_probe(first: list[list[int]], second: list[list[int]]) -> list[str]:
    """[`probe 4 "line one..."`], or [] when every probe has the same ids."""
    for index, pair in enumerate(zip(first, second, strict=True)):
        if pair[0] != pair[1]:
            return [f"probe {index} {ascii(PROBES[index])}"]
    return []
