"""
Answers that must be JSON: at each token, llama.cpp's grammar leaves only what can still become it.

    text = gbnf_of({"type": "object", ...})          # ValueError for a schema that it cannot express
    grammar = Grammar(vocabulary, text)
    token = choose(grammar.mask(logits), sampling, generator)
    grammar.accept(token)

The ends of an answer are left only when the JSON is complete.
"""

from __future__ import annotations

import json

import numpy as np

from utils.pipeline.errors import StageError

CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""llama.cpp's `llama_token_data`."""


def gbnf_of(schema: dict) -> str:
    """The grammar of a JSON schema, {} for any JSON object. ValueError for one that cannot be expressed."""
    from llama_cpp.llama_grammar import JSON_GBNF, json_schema_to_gbnf

    if not schema:
        return JSON_GBNF
    try:
        return json_schema_to_gbnf(json.dumps(schema))
    except (AssertionError, AttributeError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"the schema cannot be followed: {error}") from None


class Grammar:
    """How far one answer has come in a grammar; `vocabulary` is llama.cpp's."""

    def __init__(self, vocabulary: object, text: str) -> None:
        import llama_cpp

        self._library = llama_cpp
        self._sampler = llama_cpp.llama_sampler_init_grammar(vocabulary, text.encode(), b"root")
        if not self._sampler:
            raise StageError("llama.cpp cannot read the grammar of an answer")

    def mask(self, logits: np.ndarray) -> np.ndarray:
        """The logits [vocabulary], -inf for every token that cannot come next."""
        candidates = np.zeros(len(logits), CANDIDATE)
        candidates["id"], candidates["logit"] = np.arange(len(logits)), logits
        library = self._library
        array = library.llama_token_data_array(
            data=library.ctypes.cast(
                candidates.ctypes.data, library.ctypes.POINTER(library.llama_token_data)
            ),
            size=len(candidates),
            selected=-1,
            sorted=False,
        )
        library.llama_sampler_apply(self._sampler, library.ctypes.byref(array))
        left = candidates[: array.size]
        masked = np.full(len(logits), -np.inf)
        masked[left["id"]] = left["logit"]
        return masked

    def accept(self, token: int) -> None:
        """The token was written."""
        self._library.llama_sampler_accept(self._sampler, token)

    def close(self) -> None:
        self._library.llama_sampler_free(self._sampler)
