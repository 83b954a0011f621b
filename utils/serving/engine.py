"""
One way to make a model write, whether it is a checkpoint or a GGUF file.

An engine turns token ids into the logits of the next token and keeps a key/value cache; everything above
that, sampling, stopping and text, is shared, so both kinds stop at the same ids and stream the same
characters.

    engine = GGUFEngine(Path("checkpoints/demo/gguf/model-q8_0.gguf"))
    answer = Generation(engine, prompt_ids, Sampling(max_tokens=100))
    for text in answer.text():
        print(text, end="", flush=True)
    answer.finish_reason        # "stop" or "length"
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from utils.pipeline.errors import StageError
from utils.serving.sampling import Sampling, choose

if TYPE_CHECKING:
    from transformers import PreTrainedModel


GGUF_NAMES = {"unk": "unknown", "bos": "bos", "eos": "eos", "pad": "padding"}


class PieceTokenizer(Protocol):
    """The part of a frozen tokenizer that an engine needs, and itself offers."""

    def encode_text(self, texts: list[str]) -> list[np.ndarray]:
        """Ids of plain text; spelled control marks stay text."""

    def special(self, name: str) -> int:
        """Id of "unk", "bos", "eos", "pad" or of a spelled control token; -1 if there is none."""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """How the ids are spelled in the vocabulary."""

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes that a token stands for, none for control tokens."""


class Engine(PieceTokenizer, Protocol):
    """A model with one running sequence."""

    context_tokens: int
    """Longest sequence, prompt included."""
    stop_ids: frozenset[int]
    """Ids that end an answer: end of text and end of turn."""
    vocab_size: int
    """Tokens that the model gives logits for."""

    def restart(self) -> None:
        """Forget the running sequence."""

    def extend(self, ids: Sequence[int]) -> np.ndarray:
        """Append ids to the running sequence and return the logits of the next token, [vocabulary]."""

    def close(self) -> None:
        """Free the model."""


class Generation:
    """One answer: iterate its token ids, or `text()`; `finish_reason` is set when it ends."""

    def __init__(self, engine: Engine, prompt: Sequence[int], sampling: Sampling) -> None:
        if len(prompt) >= engine.context_tokens:
            raise ValueError(
                f"the prompt has {len(prompt)} tokens, the model's context {engine.context_tokens}"
            )
        self.engine = engine
        self.prompt = list(map(int, prompt))
        self.sampling = sampling
        self.ids: list[int] = []
        self.finish_reason: Literal["", "stop", "length"] = ""

    def __iter__(self) -> Iterator[int]:
        engine, generator = self.engine, np.random.default_rng(self.sampling.seed)
        limit = min(self.sampling.max_tokens, engine.context_tokens - len(self.prompt))
        engine.restart()
        logits = engine.extend(self.prompt)
        while len(self.ids) < limit:
            token = choose(logits, self.sampling, generator)
            if token in engine.stop_ids:
                self.finish_reason = "stop"
                return
            self.ids.append(token)
            yield token
            if len(self.ids) < limit:
                logits = engine.extend([token])
        self.finish_reason = "length"

    def text(self) -> Iterator[str]:
        """The answer in whole characters as they become complete; bytes that are no UTF-8 become U+FFFD."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token in self:
            if characters := decoder.decode(self.engine.token_bytes(token)):
                yield characters
        if rest := decoder.decode(b"", final=True):
            yield rest


class CheckpointEngine:
    """A transformers model (base, adapter on its base, or merged) with its frozen tokenizer."""

    def __init__(self, model: PreTrainedModel, tokenizer: PieceTokenizer, stop_ids: Sequence[int]) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.context_tokens = model.config.max_position_embeddings
        self.vocab_size = model.config.vocab_size
        self.stop_ids = frozenset(stop_ids)
        self._cache = None

    def encode_text(self, texts: list[str]) -> list[np.ndarray]:
        return self.tokenizer.encode_text(texts)

    def special(self, name: str) -> int:
        return self.tokenizer.special(name)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return self.tokenizer.pieces(ids)

    def token_bytes(self, token_id: int) -> bytes:
        return self.tokenizer.token_bytes(token_id)

    def restart(self) -> None:
        self._cache = None

    def extend(self, ids: Sequence[int]) -> np.ndarray:
        import torch

        with torch.inference_mode():
            tokens = torch.tensor([list(ids)], device=self.model.device)
            output = self.model(
                input_ids=tokens, past_key_values=self._cache, use_cache=True, logits_to_keep=1
            )
        self._cache = output.past_key_values
        return output.logits[0, -1].float().cpu().numpy()

    def close(self) -> None:
        self._cache = None


class GGUFEngine:
    """A GGUF file in llama.cpp; context, vocabulary and end-of-generation ids are the file's own."""

    def __init__(self, path: Path, context_tokens: int = 0, threads: int | None = None) -> None:
        import llama_cpp

        _silence_llama_cpp()
        try:
            self._llama = llama_cpp.Llama(
                model_path=str(path),
                n_ctx=context_tokens,
                n_threads=threads,
                n_threads_batch=threads,
                verbose=False,
            )
        except ValueError as error:
            raise StageError(
                f"llama.cpp cannot load {path}: {error}", fix="convert the model again with stage 120"
            ) from None
        self._library = llama_cpp
        self._vocabulary = llama_cpp.llama_model_get_vocab(self._llama.model)
        self.metadata: dict[str, str] = self._llama.metadata
        trained_tokens = int(self.metadata[f"{self.metadata['general.architecture']}.context_length"])
        self.context_tokens = min(self._llama.n_ctx(), trained_tokens)  # llama.cpp rounds its cache up to 256
        ids = range(self.vocab_size)
        self.stop_ids = frozenset(i for i in ids if llama_cpp.llama_vocab_is_eog(self._vocabulary, i))

    @property
    def model(self) -> object:
        """llama.cpp's handle of the loaded weights, for contexts beside the engine's own."""
        return self._llama.model

    @property
    def vocabulary(self) -> object:
        """llama.cpp's handle of the vocabulary."""
        return self._vocabulary

    @property
    def vocab_size(self) -> int:
        return self._llama.n_vocab()

    def encode_text(self, texts: list[str]) -> list[np.ndarray]:
        encoded = [self._llama.tokenize(text.encode("utf-8"), add_bos=False, special=False) for text in texts]
        return [np.asarray(ids, dtype=np.int64) for ids in encoded]

    def special(self, name: str) -> int:
        if name in GGUF_NAMES:
            return int(self.metadata.get(f"tokenizer.ggml.{GGUF_NAMES[name]}_token_id", -1))
        return self._control_ids.get(name, -1)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        texts = [self._library.llama_vocab_get_text(self._vocabulary, int(i)) for i in ids]
        return [text.decode("utf-8") for text in texts]

    @cached_property
    def _control_ids(self) -> dict[str, int]:
        control = self._library.LLAMA_TOKEN_ATTR_CONTROL
        ids = range(self.vocab_size)
        marked = [i for i in ids if self._library.llama_vocab_get_attr(self._vocabulary, i) & control]
        return dict(zip(self.pieces(marked), marked, strict=True))

    def token_bytes(self, token_id: int) -> bytes:
        size = 256
        buffer = self._library.ctypes.create_string_buffer(size)
        length = self._library.llama_token_to_piece(self._vocabulary, token_id, buffer, size, 0, False)
        return buffer.raw[: max(0, length)]

    def restart(self) -> None:
        self._llama.reset()

    def extend(self, ids: Sequence[int]) -> np.ndarray:
        self._llama.eval(list(map(int, ids)))
        pointer = self._library.llama_get_logits_ith(self._llama.ctx, -1)
        return np.ctypeslib.as_array(pointer, shape=(self.vocab_size,)).copy()

    def close(self) -> None:
        """Free the model; without it llama-cpp-python complains while the interpreter shuts down."""
        self._llama.close()


@cache
def _silence_llama_cpp() -> object:
    """llama.cpp warns on stderr even when asked to be quiet; the callback lives as long as the process."""
    import llama_cpp

    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, llama_cpp.ctypes.c_void_p(0))
    return quiet
