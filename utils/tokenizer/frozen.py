"""
FrozenTokenizer: the only way from text to ids, and the proof of which tokenizer made them.

User text never becomes a control symbol: `<|im_end|>` typed by a user is encoded as ordinary characters, so
nobody can forge the end of a turn. Control symbols are inserted by id.

    >>> tokenizer = FrozenTokenizer(Path("data/demo/tokenizer"))
    >>> ids, = tokenizer.encode_text(["Hello world"])              # int32 array, no BOS or EOS
    >>> tokenizer.decode(ids), tokenizer.special("eos"), tokenizer.fingerprint[:12]
    ('Hello world', 2, '90441a8820c5')
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import sentencepiece

from utils.pipeline.errors import DataError, UpstreamError
from utils.pipeline.tokenizer_identity import MODEL_FILE, tokenizer_block


class FrozenTokenizer:
    """
    A tokenizer folder, fingerprinted on opening. Pickles as its path; a worker opens it once per process.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / MODEL_FILE).is_file():
            raise DataError(f"{self.folder} holds no {MODEL_FILE}", fix="run 30_train_tokenizer first")
        self.block = tokenizer_block(self.folder)
        self._processor = sentencepiece.SentencePieceProcessor(model_file=str(self.folder / MODEL_FILE))

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
        return [np.array(ids, np.int32) for ids in self._processor.encode(texts)]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; control symbols give no text, broken UTF-8 gives U+FFFD."""
        return self._processor.decode([int(i) for i in ids])

    def special(self, name: str) -> int:
        """
        Return the id of `unk`, `bos`, `eos`, `pad` or of a control symbol such as `<|im_start|>`; -1 if there
        is none.
        """
        known = self.block["special_ids"]
        if name in known:
            return known[name]
        index = self._processor.piece_to_id(name)
        return index if self._processor.is_control(index) else -1

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the pieces of ids, for reports and previews."""
        return [self._processor.id_to_piece(int(i)) for i in ids]


@lru_cache(maxsize=4)
def _open_same(folder: Path, fingerprint: str) -> FrozenTokenizer:
    """Open a tokenizer in another process; UpstreamError if its files have changed since it was pickled."""
    tokenizer = FrozenTokenizer(folder)
    if tokenizer.fingerprint != fingerprint:
        raise UpstreamError(
            f"mismatched (tokenizer: {fingerprint[:12]} -> {tokenizer.fingerprint[:12]} while running)"
        )
    return tokenizer
