"""
FrozenTokenizer: the only way from text to ids, and the proof of which tokenizer made them.

User text never becomes a control symbol: `<|im_end|>` typed by a user is encoded as ordinary characters, so
nobody can forge the end of a turn. Control symbols are inserted by id. A trained tokenizer is read from
tokenizer.model, an adopted one without it from tokenizer.json; nothing above knows which.

    >>> tokenizer = FrozenTokenizer(Path("data/demo/tokenizer"))
    >>> ids, = tokenizer.encode_text(["Hello world"])              # int32 array, no BOS or EOS
    >>> tokenizer.decode(ids), tokenizer.special("eos"), tokenizer.fingerprint[:12]
    ('Hello world', 2, '90441a8820c5')
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from utils.pipeline.errors import UpstreamError
from utils.pipeline.tokenizer_files import MODEL_FILE, model_path, open_processor
from utils.pipeline.tokenizer_identity import tokenizer_block
from utils.tokenizer.words import WORD_MARK, WordEncoder


class FrozenTokenizer:
    """
    A tokenizer folder, fingerprinted on opening. Pickles as its path; a worker opens it once per process.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.block = tokenizer_block(self.folder)
        self.processor = open_processor(self.folder)
        model = model_path(self.folder)
        self._words = WordEncoder.of(self.processor, model.read_bytes()) if model.name == MODEL_FILE else None

    def __reduce__(self) -> tuple:
        return _open_same, (self.folder, self.fingerprint)

    @property
    def fingerprint(self) -> str:
        return self.block["fingerprint"]

    @property
    def vocab_size(self) -> int:
        return self.block["vocab_size"]

    def encode_text(self, texts: list[str]) -> list[np.ndarray]:
        """Encode texts as user text: int32 ids without BOS and EOS, control symbols never parsed."""
        if self._words:
            return self._words.encode(texts)
        return [np.array(ids, np.int32) for ids in self.processor.encode(texts)]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; control symbols give no text, broken UTF-8 gives U+FFFD."""
        return self.processor.decode([int(i) for i in ids])

    def special(self, name: str) -> int:
        """
        Return the id of `unk`, `bos`, `eos`, `pad` or of a control symbol such as `<|im_start|>`; -1 if there
        is none.
        """
        known = self.block["special_ids"]
        if name in known:
            return known[name]
        index = self.processor.piece_to_id(name)
        return index if index >= 0 and self.processor.is_control(index) else -1

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the spelling of ids in the vocabulary, for reports and previews."""
        return [self.processor.id_to_piece(int(i)) for i in ids]

    def token_bytes(self, index: int) -> bytes:
        """
        Return the UTF-8 bytes of text that an id stands for: none for a control symbol, one for a byte piece.
        """
        processor = self.processor
        if index in self._textless:
            return b""
        if getattr(processor, "is_byte_level", False):
            return processor.piece_bytes(index)
        piece = processor.id_to_piece(index)
        return (
            bytes([int(piece[3:5], 16)])
            if processor.is_byte(index)
            else piece.replace(WORD_MARK, " ").encode()
        )

    @property
    def _textless(self) -> frozenset[int]:
        return _textless(self.processor)


@lru_cache(maxsize=8)
def _textless(processor: object) -> frozenset[int]:
    """Ids that stand for no text."""
    return frozenset(
        i for i in range(processor.get_piece_size()) if processor.is_control(i) or processor.is_unknown(i)
    )


@lru_cache(maxsize=4)
def _open_same(folder: Path, fingerprint: str) -> FrozenTokenizer:
    """Open a tokenizer in another process; UpstreamError if its files have changed since it was pickled."""
    tokenizer = FrozenTokenizer(folder)
    if tokenizer.fingerprint != fingerprint:
        raise UpstreamError(
            f"mismatched (tokenizer: {fingerprint[:12]} -> {tokenizer.fingerprint[:12]} while running)"
        )
    return tokenizer
