"""Label alignment: what the real reader and the real loss teach is the next id, not the one after it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.packing.conftest import EncodedBlock, make_layout, pack
from utils.config.architecture import Architecture
from utils.models.llama import build_llama, initialise
from utils.packing.dataset import PackedDataset
from utils.packing.mixture import Mixture, MixtureSource, read_draws
from utils.training.loss import next_token_loss

FIRST, COUNT = 4, 24
VOCABULARY = FIRST + COUNT
TINY = Architecture(
    family="llama", reference_vocab_size=1, declared_parameters=1,
    num_layers=1, num_heads=2, num_kv_heads=2, hidden_size=32, head_dim=16, ffn_size=64, rope_theta=10_000.0,
    norm_epsilon=1e-5, tie_embeddings=False, context_length_tokens=32,
)  # fmt: skip


def arithmetic_sequences(number: int) -> list[EncodedBlock]:
    """Documents BOS, i, i + 1, i + 2, ... (counting round), EOS."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(6, 40, number).tolist()
    starts = generator.integers(0, COUNT, number)
    ids = [
        np.array([1, *(FIRST + (start + np.arange(n - 2)) % COUNT), 2], np.uint32)
        for n, start in zip(lengths, starts, strict=True)
    ]
    names = [f"{i:032x}" for i in range(number)]
    return [EncodedBlock(np.concatenate(ids), lengths, lengths, lengths, names, ["books"] * number)]


@pytest.mark.parametrize("mode", ["best_fit", "concat"])
def test_a_tiny_model_learns_i_plus_1(tmp_path: Path, mode: str):
    torch.set_num_threads(1)
    pack(tmp_path, "train", arithmetic_sequences(200), make_layout(16, mode, VOCABULARY))
    data = PackedDataset(tmp_path, "train")
    mixture = Mixture([MixtureSource(data.num_rows, "digest")], seed=0, batch_rows=32)
    model = build_llama(TINY, VOCABULARY, {"bos": 1, "eos": 2, "pad": 3})
    initialise(model, TINY, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        sums = next_token_loss(model, read_draws([data], mixture.next_step()))
        optimizer.zero_grad()
        (sums.loss_sum / sums.count).backward()
        optimizer.step()

    ids = torch.arange(FIRST, VOCABULARY - 1)[None]
    predicted = model.eval()(input_ids=ids).logits[0, 1:].argmax(-1)
    assert predicted.tolist() == (ids[0, 1:] + 1).tolist()
