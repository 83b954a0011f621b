"""
Slots of a GGUF file: one llama.cpp context with a sequence for each answer, all decoded in one batch.

    engine = GGUFEngine(path)
    slots = GGUFSlots(engine, num_slots=4, threads=2)
    logits = slots.begin(0, prompt_ids)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from utils.pipeline.errors import StageError
from utils.serving.engine import GGUFEngine
from utils.serving.grammar import Grammar

BATCH_TOKENS = 512
CACHE_UNIT = 256
"""llama.cpp rounds the cache of a sequence up to this many tokens."""


class GGUFSlots:
    """Each of `num_slots` sequences may fill the engine's context. `threads` 0 = llama.cpp's choice."""

    def __init__(self, engine: GGUFEngine, num_slots: int, threads: int = 0) -> None:
        import llama_cpp

        self.num_slots = num_slots
        self._library, self._engine = llama_cpp, engine
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = num_slots * -(-engine.context_tokens // CACHE_UNIT) * CACHE_UNIT
        params.n_seq_max = num_slots
        params.n_batch = params.n_ubatch = BATCH_TOKENS
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED  # as the engine itself computes
        if threads:
            params.n_threads = params.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(engine.model, params)
        if not self._context:
            raise StageError(
                f"llama.cpp cannot hold {num_slots} sequences of {engine.context_tokens} tokens",
                fix="serve with fewer --slots",
            )
        self._batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)
        self._lengths = [0] * num_slots

    def begin(self, slot: int, ids: Sequence[int], every: bool = False) -> np.ndarray:
        self.end(slot)
        ids, found = list(map(int, ids)), []
        for start in range(0, len(ids), BATCH_TOKENS):
            chunk = ids[start : start + BATCH_TOKENS]
            last = start + len(chunk) == len(ids)
            wanted = [every or (last and place == len(chunk) - 1) for place in range(len(chunk))]
            found += self._decode([(slot, token) for token in chunk], wanted)
        return np.stack(found) if every else found[-1]

    def step(self, tokens: Mapping[int, int]) -> dict[int, np.ndarray]:
        return dict(zip(tokens, self._decode(list(tokens.items()), [True] * len(tokens)), strict=True))

    def end(self, slot: int) -> None:
        memory = self._library.llama_get_memory(self._context)
        self._library.llama_memory_seq_rm(memory, slot, -1, -1)
        self._lengths[slot] = 0

    def constraint(self, grammar: str) -> Grammar:
        """A grammar over this model's vocabulary, at its beginning."""
        return Grammar(self._engine.vocabulary, grammar)

    def close(self) -> None:
        self._library.llama_batch_free(self._batch)
        self._library.llama_free(self._context)

    def _decode(self, tokens: list[tuple[int, int]], wanted: list[bool]) -> list[np.ndarray]:
        """One batch of (slot, token); the logits, [vocabulary] each, of the wanted ones."""
        for place, (slot, token) in enumerate(tokens):
            self._batch.token[place] = token
            self._batch.pos[place] = self._lengths[slot]
            self._batch.n_seq_id[place] = 1
            self._batch.seq_id[place][0] = slot
            self._batch.logits[place] = wanted[place]
            self._lengths[slot] += 1
        self._batch.n_tokens = len(tokens)
        if code := self._library.llama_decode(self._context, self._batch):
            raise StageError(f"llama.cpp cannot decode {len(tokens)} tokens (code {code})")
        return [self._logits(place) for place, want in enumerate(wanted) if want]

    def _logits(self, place: int) -> np.ndarray:
        pointer = self._library.llama_get_logits_ith(self._context, place)
        return np.ctypeslib.as_array(pointer, shape=(self._engine.vocab_size,)).copy()
