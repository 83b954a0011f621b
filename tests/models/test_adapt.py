"""Adapters: what is trained, what is written, what two of them add up to, what is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

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
from utils.models.load import load_model, save_model
from utils.models.vesper import VesperConfig, VesperForCausalLM
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


def tiny_experts(kind: str) -> nn.Module:
    """Mixtral or VesperLM with three experts of two kinds of matrices, fused."""
    torch.manual_seed(0)
    config_class, model_class = {
        "mixtral": (MixtralConfig, MixtralForCausalLM),
        "vesper": (VesperConfig, VesperForCausalLM),
    }[kind]
    config = config_class(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, pad_token_id=3, tie_word_embeddings=True, num_local_experts=3,
        num_experts_per_tok=2, initializer_range=0.2,
    )  # fmt: skip
    return model_class(config).eval()


@pytest.mark.parametrize("kind", ["mixtral", "vesper"])
def test_experts_get_an_adapter_each(tmp_path: Path, kind: str) -> None:
    """All linear layers means the fused experts too: trained, saved, attached, stacked and merged."""
    plain = logits(tiny_experts(kind))
    model = add_adapter(tiny_experts(kind), SHAPE, token_rows=[4, 5])
    assert torch.equal(logits(model), plain)
    attention, one_expert = 4 * (32 + 32 + 32 + 16 + 32 + 16 + 32 + 32), 4 * (32 + 96 + 48 + 32)
    assert count_trainable(model)[0] == 2 * (attention + 3 * one_expert) + 2 * 32
    before = logits(stir(model))
    (tmp_path / "first").mkdir()
    save_tuned(model, tmp_path / "first", "base", stop_ids=[2])
    attached = attach_adapter(tiny_experts(kind), tmp_path / "first", trainable=True)
    assert torch.equal(logits(attached), before)
    attached(input_ids=IDS).logits.square().sum().backward()
    experts = [p for name, p in attached.named_parameters() if ".experts." in name and "lora_" in name]
    assert len(experts) == 8 and all(p.grad.any() for p in experts)

    merged = merge_adapter(attached)
    torch.testing.assert_close(logits(merged), before, atol=1e-5, rtol=0)
    save_model(merged, tmp_path / "merged")
    torch.testing.assert_close(logits(load_model(tmp_path / "merged").eval()), before, atol=1e-5, rtol=0)
    second = stir(add_adapter(merged, LoRAShape(2, 16)), seed=2)
    (tmp_path / "both").mkdir()
    save_tuned(second, tmp_path / "both", "base", stop_ids=[2], below=tmp_path / "first")
    both = attach_adapter(tiny_experts(kind), tmp_path / "both")
    torch.testing.assert_close(logits(both), logits(second), atol=1e-5, rtol=0)


def test_the_adapter_of_an_expert_is_its_own_product() -> None:
    """What PEFT adds to expert e is (alpha / r) B_e A_e, and nothing to the others."""
    model = add_adapter(tiny_experts("vesper"), LoRAShape(4, 8, target_modules=["down_proj"]))
    wrapper = model.base_model.model.model.layers[0].mlp.experts
    a, b = (each["default"].weight.data for each in (wrapper.lora_A, wrapper.lora_B))
    b.unflatten(1, (4, 3))[:, :, 1] = torch.randn(32, 4)  # columns by rank and expert
    update = wrapper.get_delta_weight("default")
    expected = 2.0 * b.unflatten(1, (4, 3))[:, :, 1] @ a.unflatten(0, (3, 4))[1]
    torch.testing.assert_close(update[1], expected)
    assert not update[0].any() and not update[2].any()


def test_experts_can_be_left_out_and_take_no_dropout() -> None:
    attention = LoRAShape(2, 2, dropout=0.1, target_modules=["q_proj", "v_proj"])
    model = add_adapter(tiny_experts("vesper"), attention)
    assert not any(".experts." in name for name, p in model.named_parameters() if p.requires_grad)
    with pytest.raises(ConfigError, match="not possible on the experts .down_proj, gate_up_proj."):
        add_adapter(tiny_experts("vesper"), LoRAShape(2, 2, dropout=0.1))
    with pytest.raises(ConfigError, match='no linear layer is called "w1"') as refused:
        add_adapter(tiny_experts("mixtral"), LoRAShape(2, 2, target_modules=["w1"]))
    assert refused.value.fix == "available: down_proj, gate_up_proj, k_proj, o_proj, q_proj, v_proj"


def test_only_the_named_rows_of_an_embedding_move() -> None:
    """Whatever the optimizer does with a gradient of zero, and with a tied head that sees every row."""
    tuning = TuningConfig(mode="adapter", adapter={"kind": "dense", "rank": 2, "targets": ["q_proj"]})
    model = prepare_for_tuning(tiny_experts("vesper"), tuning, [4, 5])
    before = model.get_input_embeddings().weight.detach().clone()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], weight_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=IDS).logits.logsumexp(-1).sum().backward()
        optimizer.step()
    moved = (model.get_input_embeddings().weight != before).any(1).nonzero().flatten()
    assert moved.tolist() == [4, 5]
    without = prepare_for_tuning(
        tiny_experts("vesper"), tuning.model_copy(update={"train_markers": False}), [4]
    )
    trained = {name.rpartition(".")[2] for name, p in without.named_parameters() if p.requires_grad}
    assert trained == {"lora_A", "lora_B"}
