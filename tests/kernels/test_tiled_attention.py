"""Tiled attention: torch's SDPA in values and gradients, edges of tiles and parts, masks, dtypes, models."""

import gc

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

import utils.training.attention as attention_module
from kernels import tiled_attention as module
from kernels.tiled_attention import tiled_attention

SHAPES = [(1, 1, 1, 4), (2, 3, 5, 8), (3, 2, 32, 4), (2, 2, 33, 16), (1, 4, 100, 8), (5, 1, 64, 6)]
MASKS = ["none", "causal", "documents", "window"]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 32 queries and at most 4,096 scores, so that small tensors have many of both."""
    monkeypatch.setattr(module, "TILE_QUERIES", 32)
    monkeypatch.setattr(module, "TILE_SCORES", 1 << 12)


def problem(shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(shape, generator=generator).to(dtype) for _ in range(4)]
    return [each.requires_grad_() for each in drawn[:3]], drawn[3]


def visible(kind, rows, tokens):
    causal = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    if kind == "none":
        return None
    if kind == "window":
        causal &= torch.ones_like(causal).triu(-3)
    mask = causal.expand(rows, 1, tokens, tokens).clone()
    if kind == "documents":
        edges = [(7 * row + 3) % tokens for row in range(rows)]
        document = torch.stack([torch.arange(tokens) >= edge for edge in edges])
        mask &= document[:, None, :, None] == document[:, None, None, :]
    return mask


def value_and_gradients(value, inputs, grad):
    return value.detach(), *torch.autograd.grad(value, inputs, grad)


def exact(inputs, grad, mask, scale):
    """SDPA in fp64 by torch's plain products, from the rounded inputs."""
    wide = [each.detach().double().requires_grad_() for each in inputs]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        found = F.scaled_dot_product_attention(*wide, attn_mask=mask, is_causal=mask is None, scale=scale)
    return value_and_gradients(found, wide, grad.double())


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_those_of_sdpa(shape, kind):
    inputs, grad = problem(shape)
    mask = visible(kind, shape[0], shape[2])
    found = value_and_gradients(tiled_attention(*inputs, mask, 0.3), inputs, grad)
    for one, other in zip(found, exact(inputs, grad, mask, 0.3), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


def test_gradients_in_fp64_agree_with_finite_differences():
    inputs, _ = problem((2, 2, 35, 3), torch.float64)
    mask = visible("documents", 2, 35)
    assert torch.autograd.gradcheck(lambda *qkv: tiled_attention(*qkv, mask, 0.5), inputs)


@pytest.mark.parametrize("kind", ["none", "documents"])
def test_bf16_is_as_near_the_exact_result_as_sdpa_in_bf16(kind):
    inputs, grad = problem((3, 4, 256, 16), torch.bfloat16)
    mask = visible(kind, 3, 256)
    found = value_and_gradients(tiled_attention(*inputs, mask, 0.25), inputs, grad)
    flash = F.scaled_dot_product_attention(*inputs, attn_mask=mask, is_causal=mask is None, scale=0.25)
    peers = value_and_gradients(flash, inputs, grad)
    for one, peer, true in zip(found, peers, exact(inputs, grad, mask, 0.25), strict=True):
        assert one.dtype == torch.bfloat16
        ours, theirs = ((each.double() - true).square().mean().sqrt() for each in (one, peer))
        assert ours < 2 * theirs


def test_a_query_that_sees_nothing_harms_nobody():
    """As the padding on the left of a batch of prompts."""
    inputs, grad = problem((2, 2, 40, 8))
    mask = visible("causal", 2, 40)
    mask[0, :, :5] = False
    mask[0, :, :, :5] = False
    grad[0, :, :5] = 0
    found = value_and_gradients(tiled_attention(*inputs, mask, 1.0), inputs, grad)
    assert all(bool(each.isfinite().all()) for each in found)
    alone = [each.detach()[:1, :, 5:].clone().requires_grad_() for each in inputs]
    peers = value_and_gradients(tiled_attention(*alone, None, 1.0), alone, grad[:1, :, 5:])
    for one, peer in zip(found, peers, strict=True):
        torch.testing.assert_close(one[:1, :, 5:], peer, rtol=1e-5, atol=1e-6)


def test_what_comes_later_and_another_size_of_tile_change_nothing(monkeypatch):
    inputs, grad = problem((2, 3, 90, 8))
    before = value_and_gradients(tiled_attention(*inputs, None, 0.4), inputs, grad)
    changed = [each.detach().clone() for each in inputs]
    for each in changed:
        each[:, :, 70:] += 100
    assert torch.equal(tiled_attention(*changed, None, 0.4)[:, :, :64], before[0][:, :, :64])
    monkeypatch.setattr(module, "TILE_QUERIES", 128)
    after = value_and_gradients(tiled_attention(*inputs, None, 0.4), inputs, grad)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_large_scores_stay_finite():
    inputs, grad = problem((1, 1, 70, 8))
    loud = [(100 * inputs[0]).detach().requires_grad_(), *inputs[1:]]
    found = value_and_gradients(tiled_attention(*loud, None, 10.0), loud, grad)
    for one, other in zip(found, exact(loud, grad, None, 10.0), strict=True):
        assert bool(one.isfinite().all())
        torch.testing.assert_close(one.double(), other, rtol=1e-2, atol=1e-2)


def test_nothing_of_the_size_of_the_scores_is_kept_for_the_backward_pass():
    saved = []
    inputs, _ = problem((2, 2, 96, 8))
    with torch.autograd.graph.saved_tensors_hooks(
        lambda each: saved.append(each.numel()) or each, lambda each: each
    ):
        tiled_attention(*inputs, None, 1.0)
    gc.collect()
    assert saved and max(saved) == inputs[0].numel() < 96 * 96 * 2


def llama(heads=4, kv_heads=2):
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=heads,
        num_key_value_heads=kv_heads, max_position_embeddings=128, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def logits(model, attention, **inputs):
    model.set_attn_implementation(attention)
    return model(**inputs).logits


def test_a_model_with_grouped_heads_and_documents_gives_the_same_logits():
    model, ids = llama(), torch.randint(50, (3, 70), generator=torch.Generator().manual_seed(1))
    position = torch.cat([torch.arange(40), torch.arange(30)]).expand(3, -1)
    inputs = {"input_ids": ids, "position_ids": position, "use_cache": False}
    torch.testing.assert_close(
        logits(model, "tiled", **inputs), logits(model, "sdpa", **inputs), rtol=1e-4, atol=1e-5
    )


def test_generation_with_a_cache_and_prompts_padded_on_the_left_is_the_same():
    model, ids = llama(), torch.randint(3, 50, (2, 20), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[0, :6] = 0
    options = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    produced = []
    for attention in ("tiled", "sdpa"):
        model.set_attn_implementation(attention)
        produced.append(model.generate(ids, **options))
    assert torch.equal(*produced)


def test_under_autocast_products_are_in_bf16(monkeypatch):
    seen = []
    real = attention_module.tiled_attention

    def noted(query, *rest):
        seen.append(query.dtype)
        return real(query, *rest)

    monkeypatch.setattr(attention_module, "tiled_attention", noted)
    model, ids = llama(), torch.arange(40)[None]
    with torch.autocast("cpu", torch.bfloat16):
        found = logits(model, "tiled", input_ids=ids, use_cache=False)
    assert set(seen) == {torch.bfloat16}
    torch.testing.assert_close(found.float(), logits(model, "sdpa", input_ids=ids), rtol=0.05, atol=0.05)
