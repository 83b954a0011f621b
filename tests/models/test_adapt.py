"""Adapters: what is trained, what is written, what two of them add up to, what is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from utils.config.sft import TuningConfig
from utils.models.adapt import (
    LoRAShape,
    adapter_parts,
    add_adapter,
    attach_adapter,
    count_trainable,
    is_adapter,
    merge_adapter,
    prepare_for_tuning,
    read_adapter,
    save_tuned,
    stack_adapters,
    without_dropout,
    write_adapter,
)
from utils.pipeline.errors import ConfigError, UpstreamError

IDS = torch.tensor([[1, 4, 9, 5, 7, 30]])
SHAPE = LoRAShape(rank=4, alpha=8)


def tiny_llama(seed: int = 0, tied: bool = True, width: int = 32) -> LlamaForCausalLM:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=40, hidden_size=width, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, pad_token_id=3, tie_word_embeddings=tied, attention_bias=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def stir(model: nn.Module, seed: int = 1) -> nn.Module:
    """Move every trainable weight, so that the adapter does something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model(input_ids=IDS).logits


def test_a_fresh_adapter_changes_nothing_and_trains_only_itself() -> None:
    plain, model = logits(tiny_llama()), add_adapter(tiny_llama(), SHAPE, token_rows=[4, 5])
    assert torch.equal(logits(model), plain)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all("lora_" in name or "trainable_tokens" in name for name in trained)
    assert not any(name.endswith("bias") for name in trained)
    per_layer = 32 * 4 * 7 + 4 * (32 + 16 + 16 + 32 + 48 + 48 + 32) + (48 - 32) * 4
    assert count_trainable(model)[0] == 2 * per_layer + 2 * 32


@pytest.mark.parametrize("tied", [True, False])
def test_saved_attached_and_merged_are_the_same_model(tmp_path: Path, tied: bool) -> None:
    model = stir(add_adapter(tiny_llama(tied=tied), SHAPE, token_rows=[4, 5]))
    before = logits(model)
    save_tuned(model, tmp_path, "checkpoints/demo/base", stop_ids=[2, 5])
    attached = attach_adapter(tiny_llama(tied=tied), tmp_path)
    assert torch.equal(logits(attached), before)
    merged = merge_adapter(attached)
    torch.testing.assert_close(logits(merged), before, atol=1e-5, rtol=0)
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) is tied


def test_an_adapter_folder_holds_no_base_weights_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_tuned(stir(add_adapter(tiny_llama(), SHAPE)), tmp_path / name, "base", stop_ids=[2])
    assert is_adapter(tmp_path / "a")
    assert all("lora_" in name for name in load_file(tmp_path / "a" / "adapter_model.safetensors"))
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "generation_config.json"}


def test_full_tuning_writes_weights_that_stop_at_the_end_of_a_turn(tmp_path: Path) -> None:
    model = prepare_for_tuning(tiny_llama(), TuningConfig(mode="full"), [4, 5])
    trained, total = count_trainable(model)
    assert trained == total
    save_tuned(model, tmp_path, "base", stop_ids=[2, 5])
    assert not is_adapter(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path)
    assert loaded.generation_config.eos_token_id == [2, 5]
    assert torch.equal(logits(loaded.eval()), logits(tiny_llama()))


@pytest.mark.parametrize("rows", [(), (4, 5)])
def test_two_stacked_adapters_are_one(tmp_path: Path, rows: tuple[int, ...]) -> None:
    """Trained over merged weights, published over the original base."""
    first = stir(add_adapter(tiny_llama(), LoRAShape(4, 8), rows))
    (tmp_path / "first").mkdir()
    save_tuned(first, tmp_path / "first", "base", stop_ids=[2])
    second = stir(add_adapter(merge_adapter(first), LoRAShape(2, 16)), seed=2)
    expected = logits(second)
    (tmp_path / "both").mkdir()
    save_tuned(second, tmp_path / "both", "base", stop_ids=[2], below=tmp_path / "first")
    assert read_adapter(tmp_path / "both")[0]["r"] == 6
    both = attach_adapter(tiny_llama(), tmp_path / "both")
    torch.testing.assert_close(logits(both), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(merge_adapter(both)), expected, atol=1e-5, rtol=0)


def test_stacking_needs_the_same_targets() -> None:
    parts = [
        adapter_parts(add_adapter(tiny_llama(), LoRAShape(2, 2, target_modules=names)), "base")
        for names in (["q_proj"], ["q_proj", "v_proj"])
    ]
    with pytest.raises(ConfigError, match="same target_modules"):
        stack_adapters(*parts)


def test_an_unknown_target_lists_the_available_ones() -> None:
    with pytest.raises(ConfigError, match='no linear layer is called "query"') as refused:
        add_adapter(tiny_llama(), LoRAShape(2, 2, target_modules=["q_proj", "query"]))
    assert refused.value.fix == "available: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"


def test_an_adapter_of_another_shape_is_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path, *adapter_parts(add_adapter(tiny_llama(), SHAPE), "base"))
    with pytest.raises(UpstreamError, match="does not fit this base"):
        attach_adapter(tiny_llama(width=64), tmp_path)


def test_dropout_can_be_switched_off_for_good() -> None:
    model = stir(add_adapter(tiny_llama(), LoRAShape(4, 8, dropout=0.5))).train()
    assert not torch.equal(logits(model), logits(model))
    without_dropout(model)
    assert torch.equal(logits(model), logits(model))
