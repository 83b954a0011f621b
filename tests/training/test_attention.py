"""Which form of attention runs, and that documents of a row see each other exactly when they should."""

import importlib.util

import pytest
import torch
from torch.nn import functional as F
from transformers import modeling_flash_attention_utils as flash
from transformers.masking_utils import create_causal_mask

from tests.training.test_routing import tiny
from tests.training.toy_stage import CountingRows, ToyBatch, ToyConfig, toy_model
from utils.config.preferences import PreferencesConfig
from utils.pipeline.errors import ConfigError
from utils.training.attention import any_precision, document_spans, resolve_attention, whole_rows
from utils.training.loss import LossModel, decoder_hidden, next_token_loss, next_token_targets
from utils.training.precision import FP32, Precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")
FAMILIES = {
    "llama": lambda: toy_model(),
    "vesper": lambda: tiny("vesper", num_experts=1, experts_per_token=1),
    "mixtral": lambda: tiny("llama"),
    "vesper experts": lambda: tiny("vesper"),
}


def config(**values):
    return ToyConfig.model_validate({"output": "o"} | values)


def resolved(**values):
    precision = Precision(values.pop("precision", "bf16"), "cuda")
    return resolve_attention(config(**values), values.pop("device", GPU), precision)


@pytest.fixture
def gpu_with_flash(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)


def test_auto_is_flash_attention_where_it_can_run(gpu_with_flash, monkeypatch):
    assert resolved().resolved == "flash_attention_2"
    assert (resolved(precision="fp32").resolved, "16 bits" in resolved(precision="fp32").reason) == (
        "sdpa",
        True,
    )
    assert "not deterministic" in resolved(deterministic=True).reason
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert resolved().record() == {
        "asked": "auto",
        "resolved": "sdpa",
        "reason": "flash-attn is not installed",
    }
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "this GPU has 7.5" in resolved().reason


def test_on_a_cpu_auto_is_tiled_in_bf16_and_flash_is_refused_with_the_install_line():
    found = resolve_attention(config(), CPU, FP32)
    assert (found.resolved, found.reason) == ("sdpa", "flash attention needs CUDA, this is cpu")
    found = resolve_attention(config(), CPU, Precision("bf16", "cpu"))
    assert (found.resolved, found.reason) == ("tiled", "bf16 on a CPU: faster than SDPA")
    assert resolve_attention(config(attention="tiled"), CPU, FP32).resolved == "tiled"
    assert resolve_attention(config(attention="sdpa"), CPU, FP32).resolved == "sdpa"
    assert resolve_attention(config(attention="eager"), CPU, FP32).resolved == "eager"
    with pytest.raises(
        ConfigError, match="flash_attention_2 cannot run: flash attention needs CUDA"
    ) as refused:
        resolve_attention(config(attention="flash_attention_2"), CPU, FP32)
    assert "pip install flash-attn --no-build-isolation" in refused.value.fix and refused.value.exit_code == 2


def test_on_a_gpu_tiled_attention_is_refused():
    with pytest.raises(ConfigError, match='"attention": tiled is for a CPU, this is cuda'):
        resolved(attention="tiled")


def packed_and_alone():
    first, second = [3, 4, 5, 6, 7], [20, 21, 22, 23]

    def batch(ids, document, position):
        return ToyBatch(*(torch.tensor([each]) for each in (ids, document, position)))

    packed = batch([*first, *second], [0] * 5 + [1] * 4, [*range(5), *range(4)])
    return packed, [batch(ids, [0] * len(ids), list(range(len(ids)))) for ids in (first, second)]


@pytest.mark.parametrize("attention", ["sdpa", "eager", "tiled"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_row_is_its_documents_one_by_one_unless_they_see_each_other(family, attention):
    model = FAMILIES[family]().train()
    model.set_attn_implementation(attention)
    packed, alone = packed_and_alone()
    isolated, full = (
        LossModel(model, next_token_loss, FP32, kind)(packed).loss_sum for kind in ("isolated", "full")
    )
    apart = sum(LossModel(model, next_token_loss, FP32)(each).loss_sum for each in alone)
    torch.testing.assert_close(isolated, apart, rtol=0, atol=1e-5)
    assert abs(float((full - apart).detach())) > 1e-3
    weights = [each for each in model.parameters() if each.requires_grad]
    for one, other in zip(*(torch.autograd.grad(each, weights) for each in (isolated, apart)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_rows_of_one_document_need_no_mask_and_others_get_one():
    model = toy_model()
    hidden = torch.zeros(2, 8, 16)
    one, two = torch.arange(8).repeat(2, 1), torch.tensor([[*range(8)], [*range(5), *range(3)]])
    masks = [
        create_causal_mask(
            config=model.config,
            inputs_embeds=hidden,
            attention_mask=None,
            past_key_values=None,
            position_ids=each,
        )
        for each in (one, two)
    ]
    assert masks[0] is None and masks[1] is not None


@pytest.mark.parametrize("tensors", [True, False])
def test_whole_rows_run_through_and_keep_everything_else(tensors):
    batch = CountingRows().rows(range(3))
    batch = batch if tensors else ToyBatch(*(each.numpy() for each in batch))
    joined = whole_rows(batch)
    assert joined.position.tolist() == [list(range(13))] * 3
    assert type(joined.position) is type(batch.position) and joined.position.dtype == batch.position.dtype
    assert joined.tokens is batch.tokens and joined.document is batch.document


def varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal, **_):
    """What flash-attn's variable-length function computes, span by span."""
    assert causal and cu_seqlens_q.dtype == torch.int32 and max_seqlen_q >= cu_seqlens_q.diff().max()
    parts = []
    for start, end in zip(cu_seqlens_q[:-1].tolist(), cu_seqlens_q[1:].tolist(), strict=True):
        span = [each[start:end].transpose(0, 1)[None] for each in (q, k, v)]
        parts.append(
            F.scaled_dot_product_attention(*span, is_causal=True, scale=softmax_scale)[0].transpose(0, 1)
        )
    return torch.cat(parts)


def test_flash_attention_gets_the_documents_of_every_row(monkeypatch):
    """transformers' own path down to the kernel, which is replaced; positions alone would not do."""
    model, batch = toy_model(), CountingRows().rows(range(4))
    inputs, _, position = next_token_targets(batch)
    expected = decoder_hidden(model, inputs, position)
    assert document_spans(model.model, position) == {}
    monkeypatch.setattr(
        flash,
        "lazy_import_flash_attention",
        lambda *_, **__: ((None, varlen, None, None, None), (flash_arguments, None)),
    )
    monkeypatch.setattr(flash, "fa_peft_integration_check", lambda q, k, v, _: (q, k, v))
    model.config._attn_implementation = "flash_attention_2"
    torch.testing.assert_close(decoder_hidden(model, inputs, position), expected, rtol=1e-5, atol=1e-6)
    with any_precision(model):
        assert model.config._attn_implementation == "sdpa"
    assert model.config._attn_implementation == "flash_attention_2"


def flash_arguments(max_seqlen_q, max_seqlen_k, softmax_scale, is_causal, **_):
    return {
        "max_seqlen_q": max_seqlen_q,
        "max_seqlen_k": max_seqlen_k,
        "softmax_scale": softmax_scale,
        "causal": is_causal,
    }


def test_the_two_answers_of_a_pair_may_not_see_each_other():
    given = {
        "output": "o",
        "inputs": {"model": "m", "data": [{"path": "d"}]},
        "epochs": 1.0,
        "adapter": "none",
    }
    with pytest.raises(ValueError, match="both answers of a pair share a row"):
        PreferencesConfig.model_validate(given | {"document_attention": "full"})
