"""Both engines write the same text, stop where the model was taught to stop, and stream whole characters."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.export.tiny_model import CONTEXT, chat_ids, conversations, stories, tiny_model
from utils.export.gguf_write import Description, write_gguf
from utils.models.load import load_model
from utils.pipeline.errors import StageError
from utils.serving.engine import CheckpointEngine, Generation, GGUFEngine
from utils.serving.sampling import Sampling
from utils.tokenizer.frozen import FrozenTokenizer


@pytest.fixture(scope="module")
def checkpoint() -> CheckpointEngine:
    folder = tiny_model()
    torch.set_num_threads(1)
    return CheckpointEngine(load_model(folder), FrozenTokenizer(folder), [2, 5])


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GGUFEngine]:
    path = tmp_path_factory.mktemp("gguf") / "model-f16.gguf"
    write_gguf(tiny_model(), path, "f16", Description("tiny"))
    engine = GGUFEngine(path, threads=1)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def prompts(checkpoint: CheckpointEngine) -> list[list[int]]:
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(tiny_model() / "tokenizer.model"))
    return [chat_ids(pieces, messages[:1], prompt=True) for messages in conversations(8, seed=33)]


def test_both_engines_give_the_same_greedy_text(checkpoint, gguf, prompts) -> None:
    for prompt in prompts:
        answers = [Generation(engine, prompt, Sampling(max_tokens=24)) for engine in (checkpoint, gguf)]
        texts = ["".join(answer.text()) for answer in answers]
        assert texts[0] == texts[1]
        assert texts[0].startswith("It is ") and texts[0].endswith(".")
        assert [answer.finish_reason for answer in answers] == ["stop", "stop"]


def test_both_engines_read_the_same_vocabulary(checkpoint, gguf) -> None:
    assert gguf.stop_ids == checkpoint.stop_ids == {2, 5}
    assert gguf.context_tokens == checkpoint.context_tokens == CONTEXT
    for name in ("unk", "bos", "eos", "pad", "<|im_start|>", "<|im_end|>", "<|reserved_3|>", "<|none|>"):
        assert gguf.special(name) == checkpoint.special(name)
    assert gguf.pieces(range(512)) == checkpoint.pieces(range(512))
    assert [gguf.token_bytes(i) for i in range(512)] == [checkpoint.token_bytes(i) for i in range(512)]
    texts = ["The fox <|im_end|>", "caf\u00e9 \U0001f600"]
    for first, second in zip(gguf.encode_text(texts), checkpoint.encode_text(texts), strict=True):
        assert first.tolist() == second.tolist()
        assert not {2, 5} & set(first.tolist())


def test_cached_logits_equal_uncached_ones(checkpoint, prompts) -> None:
    ids = prompts[0]
    checkpoint.restart()
    for token in ids[:-1]:
        checkpoint.extend([token])
    stepwise = checkpoint.extend(ids[-1:])
    checkpoint.restart()
    np.testing.assert_allclose(stepwise, checkpoint.extend(ids), atol=1e-5)


def test_same_seed_same_text_and_another_seed_another(checkpoint, prompts) -> None:
    def written(seed: int) -> str:
        sampling = Sampling(max_tokens=40, temperature=2.0, seed=seed)
        return "".join(Generation(checkpoint, prompts[0], sampling).text())

    assert written(1) == written(1) != written(2)


def test_length_is_the_reason_when_tokens_run_out(checkpoint, prompts) -> None:
    answer = Generation(checkpoint, prompts[0], Sampling(max_tokens=2))
    assert len(list(answer)) == 2 and answer.finish_reason == "length"


def test_the_context_end_is_length_too(checkpoint) -> None:
    long = [1, *np.concatenate(checkpoint.encode_text(stories(4))).tolist()][: CONTEXT - 3]
    answer = Generation(checkpoint, long, Sampling(max_tokens=50))
    assert len(list(answer)) <= 3


def test_a_prompt_that_fills_the_context_is_refused(checkpoint) -> None:
    with pytest.raises(ValueError, match=f"the prompt has {CONTEXT} tokens"):
        Generation(checkpoint, [1] * CONTEXT, Sampling())


class Script:
    """An engine that writes given tokens: each is some bytes; -1 ends the answer."""

    context_tokens = 100
    stop_ids = frozenset({99})

    def __init__(self, tokens: list[bytes]) -> None:
        self.tokens = tokens

    def restart(self) -> None:
        self.position = -1

    def extend(self, ids: Sequence[int]) -> np.ndarray:
        self.position += 1
        token = self.position if self.position < len(self.tokens) else 99
        return np.eye(100)[token]

    def token_bytes(self, token_id: int) -> bytes:
        return self.tokens[token_id]


def test_characters_split_over_tokens_arrive_whole() -> None:
    emoji = "\U0001f600".encode()
    script = Script(
        [b"a", emoji[:1], emoji[1:3], emoji[3:], "\u4f60".encode()[:2], "\u4f60".encode()[2:] + b"!"]
    )
    answer = Generation(script, [1], Sampling())
    assert list(answer.text()) == ["a", "\U0001f600", "\u4f60!"]
    assert answer.finish_reason == "stop"


def test_a_character_cut_off_at_the_end_is_shown_as_replaced() -> None:
    script = Script([b"a", "\u4f60".encode()[:2]])
    assert "".join(Generation(script, [1], Sampling()).text()) == "a\ufffd"


def test_stop_ids_are_never_written(checkpoint, prompts) -> None:
    answer = Generation(checkpoint, prompts[0], Sampling(max_tokens=40))
    assert not checkpoint.stop_ids & set(answer)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(StageError, match="llama.cpp cannot load"):
        GGUFEngine(tmp_path / "bad.gguf")
