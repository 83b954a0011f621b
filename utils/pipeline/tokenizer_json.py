"""
A tokenizer.json, read by the `tokenizers` library, behind the methods of a SentencePieceProcessor.

Adopted tokenizers often have no tokenizer.model (GPT-2, Qwen). Nothing else in the project needs to know:
text is encoded as user text (special tokens are never parsed), never truncated or padded whatever the file
asks for.

    processor = JsonProcessor(Path("tokenizer.json").read_bytes(), config="", specials="")
    processor.encode("Hello world"), processor.piece_bytes(15339)
"""

import json

from utils.pipeline.errors import DataError

_ROLES = ("unk", "bos", "eos", "pad")


class JsonProcessor:
    """
    One tokenizer.json; `config` and `specials` are the texts of tokenizer_config.json and
    special_tokens_map.json.
    """

    def __init__(self, data: bytes, config: str, specials: str) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_str(data.decode("utf-8"))
        except Exception as error:  # the library raises bare Exceptions
            raise DataError(f"tokenizer.json cannot be read: {error}") from None
        self._description = json.loads(data)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self._pieces = _pieces_in_order(self._tokenizer.get_vocab(with_added_tokens=True))
        self._added = {token["id"]: token for token in self._description.get("added_tokens") or []}
        self._scores = _unigram_scores(self._description["model"])
        self._roles = {role: self._role(role, config, specials) for role in _ROLES}
        self._alphabet = _byte_alphabet() if self.is_byte_level else {}

    @property
    def is_byte_level(self) -> bool:
        """Whether pieces are spelled in GPT-2's alphabet, one letter a byte."""
        return '"ByteLevel"' in json.dumps(self._description.get("decoder"))

    @property
    def dropout(self) -> float:
        """Share of merges skipped at random; 0 unless the file asks for it."""
        return self._description["model"].get("dropout") or 0.0

    def _role(self, role: str, config: str, specials: str) -> int:
        """The id of a special token: as the config files name it, else the model's own unk_token, else -1."""
        for text in (config, specials):
            named = (json.loads(text) if text else {}).get(f"{role}_token")
            content = named.get("content") if isinstance(named, dict) else named
            if content is not None:
                return self.piece_to_id(content)
        own = self._description["model"].get("unk_token") if role == "unk" else None
        return self.piece_to_id(own) if own is not None else -1

    def unk_id(self) -> int:
        return self._roles["unk"]

    def bos_id(self) -> int:
        return self._roles["bos"]

    def eos_id(self) -> int:
        return self._roles["eos"]

    def pad_id(self) -> int:
        return self._roles["pad"]

    def get_piece_size(self) -> int:
        return len(self._pieces)

    def id_to_piece(self, index: int) -> str:
        return self._pieces[index]

    def piece_to_id(self, piece: str) -> int:
        """The id of a piece, -1 if there is none."""
        found = self._tokenizer.token_to_id(piece)
        return -1 if found is None else found

    def get_score(self, index: int) -> float:
        return self._scores[index] if index < len(self._scores) else 0.0

    def is_unknown(self, index: int) -> bool:
        model = self._description["model"]
        if model["type"] == "Unigram":
            return index == model.get("unk_id")
        return self._pieces[index] == model.get("unk_token")

    def is_control(self, index: int) -> bool:
        return index in self._added and self._added[index]["special"] and not self.is_unknown(index)

    def is_unused(self, index: int) -> bool:
        """Whether an id below the highest one has no piece."""
        return not self._pieces[index]

    def is_byte(self, index: int) -> bool:
        piece = self._pieces[index]
        byte_fallback = self._description["model"].get("byte_fallback", False)
        return bool(byte_fallback) and len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")

    def encode(self, texts: str | list[str]) -> list:
        """Ids of one text or of many."""
        if isinstance(texts, str):
            return self._tokenizer.encode(texts, add_special_tokens=False).ids
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: list) -> str | list[str]:
        """The text of one list of ids or of many; special tokens give none."""
        if ids and isinstance(ids[0], list):
            return self._tokenizer.decode_batch(ids, skip_special_tokens=True)
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def piece_bytes(self, index: int) -> bytes:
        """The bytes of text that a piece stands for, in a byte-level vocabulary."""
        piece = self._pieces[index]
        if index in self._added:
            return piece.encode()
        return bytes(self._alphabet[letter] for letter in piece)


def _pieces_in_order(vocabulary: dict[str, int]) -> list[str]:
    pieces = [""] * (max(vocabulary.values(), default=-1) + 1)
    for piece, index in vocabulary.items():
        pieces[index] = piece
    return pieces


def _unigram_scores(model: dict) -> list[float]:
    return [score for _, score in model["vocab"]] if model["type"] == "Unigram" else []


def _byte_alphabet() -> dict[str, int]:
    """Letter -> byte, as in GPT-2: printable bytes are themselves, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
