"""Fixtures of the export tests: the trained checkpoint, and what it says about texts that it has not seen."""

from pathlib import Path

import pytest
import torch

from tests.export.tiny_model import chat_ids, conversations, stories, tiny_model
from utils.export.gguf_convert import Evidence
from utils.export.gguf_verify import LlamaCpp
from utils.export.merge import sequence_logits
from utils.serving.batch import greedy_answers
from utils.tokenizer.frozen import FrozenTokenizer


@pytest.fixture(scope="session")
def tiny() -> Path:
    """Folder of the trained two-layer model; read only."""
    return tiny_model()


@pytest.fixture(scope="session")
def llama() -> LlamaCpp:
    return LlamaCpp(timeout_seconds=60)


@pytest.fixture(scope="session")
def evidence(tiny: Path) -> Evidence:
    return evidence_of(tiny)


def evidence_of(folder: Path) -> Evidence:
    """What checkpoint and tokenizer say, gathered without the export code under test."""
    from sentencepiece import SentencePieceProcessor
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    tokenizer = FrozenTokenizer(folder)
    pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    sequences = [[1, *map(int, ids)] for ids in tokenizer.encode_text(stories(6, seed=50))]
    questions = [messages[:1] for messages in conversations(6, seed=60)]
    first, second = conversations(2, seed=61)
    system = [{"role": "system", "content": "Be brief."}]
    prompts = [chat_ids(pieces, messages, prompt=True) for messages in questions]
    answers = greedy_answers(model, prompts, 24, {2, 5})
    return Evidence(
        texts=stories(200, seed=70),
        encode=tokenizer.encode_text,
        conversations=[
            *questions,
            [*first, *second[:1]],
            [*first, *second, *first[:1]],
            [*system, *first[:1]],
        ],
        prompt_ids=lambda messages: chat_ids(pieces, messages, prompt=True),
        sequences=sequences,
        logits=sequence_logits(model, sequences),
        prompts=prompts,
        answers=[answer.ids for answer in answers],
        gaps=[answer.gaps for answer in answers],
        bos=1,
        stop_ids={2, 5},
    )
