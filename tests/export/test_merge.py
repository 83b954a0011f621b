"""Merging: parity with base plus adapter, trained token rows, and every refusal."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.export.tiny_model import stories
from utils.export.merge import (
    Parity,
    merge_adapter,
    parity,
    require_parity,
    sequence_logits,
    within_memory,
    write_merged,
)
from utils.models.load import load_model
from utils.pipeline.errors import StageError, UpstreamError
from utils.serving.adapters import refuse_other_base
from utils.tokenizer.frozen import FrozenTokenizer


@pytest.fixture
def adapted(tiny: Path) -> torch.nn.Module:
    """The tiny model with an adapter on all linear layers and two trained token rows, none of them zero."""
    torch.manual_seed(0)
    shape = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", trainable_token_indices=[4, 5])
    model = get_peft_model(load_model(tiny), shape)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
        if "token_adapter" in name and weight.requires_grad:
            weight.data += 0.1
    return model.eval()


@pytest.fixture(scope="module")
def sequences(tiny: Path) -> list[list[int]]:
    tokenizer = FrozenTokenizer(tiny)
    return [[1, 4, *map(int, ids), 5] for ids in tokenizer.encode_text(stories(4, seed=90))]


def test_written_model_is_base_plus_adapter(tiny: Path, tmp_path: Path, adapted, sequences) -> None:
    before = sequence_logits(adapted, sequences)
    assert np.abs(before - sequence_logits(load_model(tiny), sequences)).max() > 0.1, (
        "the adapter does something"
    )
    write_merged(merge_adapter(adapted), tmp_path, "float32", [2, 5])
    measured = parity(before, sequence_logits(load_model(tmp_path), sequences))
    assert measured.max_logit_difference <= 1e-4
    assert measured.mean_kl <= 1e-9
    assert measured.top1_agreement == 1.0
    require_parity(measured, "float32", 1e-4)


def test_rows_that_were_not_trained_stay_bit_equal(tiny: Path, adapted) -> None:
    base = load_model(tiny).get_input_embeddings().weight
    merged = merge_adapter(adapted)
    rows = merged.get_input_embeddings().weight
    changed = (rows != base).any(dim=1).nonzero().flatten().tolist()
    assert changed == [4, 5]
    assert merged.get_output_embeddings().weight is rows, "tied heads stay tied"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounded_weights_are_measured_and_stop_ids_written(
    tmp_path: Path, adapted, sequences, dtype: str
) -> None:
    before = sequence_logits(adapted, sequences)
    write_merged(merge_adapter(adapted), tmp_path, dtype, [2, 5])
    loaded = load_model(tmp_path)
    measured = parity(before, sequence_logits(loaded, sequences))
    assert 1e-12 < measured.mean_kl < 1e-3
    assert loaded.generation_config.eos_token_id == [2, 5]
    assert loaded.config.eos_token_id == [2, 5]


def test_nan_in_the_adapter_is_refused(adapted) -> None:
    next(weight for name, weight in adapted.named_parameters() if "lora_B" in name).data[0, 0] = float("nan")
    with pytest.raises(StageError, match="does not merge"):
        merge_adapter(adapted)


def test_infinity_outside_the_merged_layers_is_refused(adapted) -> None:
    next(weight for name, weight in adapted.named_parameters() if "layernorm" in name).data[0] = float("inf")
    with pytest.raises(StageError, match="1 merged tensors hold NaN or infinity, first model.layers.0"):
        merge_adapter(adapted)


def test_long_comparisons_stop_at_what_memory_holds() -> None:
    sequences = [[0] * 100] * 5
    assert within_memory(sequences, vocab_size=512) == sequences
    assert len(within_memory(sequences, vocab_size=(1 << 26) // 250)) == 2
    assert len(within_memory(sequences, vocab_size=1 << 26)) == 1


def test_parity_is_measured_in_nats() -> None:
    p, q = np.log([[0.5, 0.25, 0.25]]), np.log([[0.25, 0.5, 0.25]])
    found = parity(p, q)
    assert found == Parity(pytest.approx(np.log(2)), pytest.approx(0.25 * np.log(2)), 0.0, 1)


@pytest.mark.parametrize(
    ("measured", "dtype", "message"),
    [
        (Parity(0.5, 2e-4, 0.99, 10), "bfloat16", "mean KL 2.00e-04 nats"),
        (Parity(2e-4, 1e-9, 1.0, 10), "float32", "differ by up to 2.00e-04"),
    ],
)
def test_too_far_from_the_adapted_model_fails(measured: Parity, dtype: str, message: str) -> None:
    with pytest.raises(StageError, match=message):
        require_parity(measured, dtype, 1e-4)


def test_another_base_is_refused() -> None:
    refuse_other_base("110_merge_lora", "ab" * 32, "ab" * 32)
    with pytest.raises(UpstreamError, match="adapter trained on abababababab, found cdcdcdcdcdcd") as refusal:
        refuse_other_base("110_merge_lora", "ab" * 32, "cd" * 32)
    assert refusal.value.exit_code == 3
