"""VesperLM against Llama and Mixtral with the same weights, and against the written formulas."""

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from utils.config.adapter import AdapterConfig
from utils.models.adapt import LoRAShape, add_adapter
from utils.models.flylora import adapters_of
from utils.models.llama import initialise
from utils.models.load import build_model, load_model, save_model
from utils.models.presets import adapter_parameters, count_parameters, gguf_obstacles, load_architecture
from utils.models.vesper import GatedUnit, VesperConfig, VesperExperts, VesperForCausalLM, VesperRouter
from utils.pipeline.errors import ConfigError
from utils.pipeline.workspace import REPOSITORY

SPECIALS = {"bos": 1, "eos": 2, "pad": 3}
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
IDS = torch.randint(4, 64, (2, 12), generator=torch.Generator().manual_seed(0))


def vesper(**values):
    torch.manual_seed(0)
    return VesperForCausalLM(
        VesperConfig(**SIZES | {"bos_token_id": 1, "eos_token_id": None} | values)
    ).eval()


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("experts", [{}, EXPERTS])
def test_with_silu_the_state_dict_is_that_of_llama_or_mixtral(tied, experts):
    ours = vesper(hidden_act="silu", tie_word_embeddings=tied, **experts)
    kinds = (MixtralConfig, MixtralForCausalLM) if experts else (LlamaConfig, LlamaForCausalLM)
    epsilon = ours.config.rms_norm_eps
    theirs = kinds[1](kinds[0](**SIZES, **experts, tie_word_embeddings=tied, rms_norm_eps=epsilon)).eval()
    theirs.config.rope_parameters = ours.config.rope_parameters
    theirs.model.rotary_emb = ours.model.rotary_emb
    assert not torch.allclose(logits(ours), logits(theirs), atol=1e-2)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=1e-5)
    assert (ours.lm_head.weight is ours.model.embed_tokens.weight) is tied


def test_gates_are_their_formulas():
    x, up = torch.linspace(-6, 6, 101, dtype=torch.float64), torch.linspace(2, -1, 101, dtype=torch.float64)
    gelu = x / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    formulas = {
        "era": gelu + 0.25 * torch.log1p(torch.exp(x)),
        "gelu_tanh": gelu,
        "silu": x / (1 + torch.exp(-x)),
    }
    for kind, expected in formulas.items():
        found = GatedUnit(VesperConfig(**SIZES, hidden_act=kind, gamma=0.25))(x, up)
        torch.testing.assert_close(found, expected * up, rtol=0, atol=1e-9)
    gelu_tanh = GatedUnit(VesperConfig(**SIZES, hidden_act="gelu_tanh"))(x, up)
    torch.testing.assert_close(gelu_tanh, F.gelu(x, approximate="tanh") * up, rtol=0, atol=1e-12)
    zero = GatedUnit(VesperConfig(**SIZES, hidden_act="era", gamma=0.0))(x, up)
    assert torch.equal(zero, GatedUnit(VesperConfig(**SIZES, hidden_act="gelu_tanh"))(x, up))
    with pytest.raises(ValueError, match='"relu" is none of'):
        GatedUnit(VesperConfig(**SIZES, hidden_act="relu"))


def test_the_choice_of_kernels_reaches_every_gate():
    model = vesper(**EXPERTS)
    assert [each.kernel for each in model.choose_kernels("torch")] == ["era_glu", "moe"]
    experts = [layer.mlp.experts for layer in model.model.layers]
    assert {kernel for each in experts for kernel in (each.kernel, each.unit.kernel)} == {"torch"}
    assert [each.kernel for each in vesper(hidden_act="gelu_tanh").choose_kernels("torch")] == ["era_glu"]
    assert vesper(hidden_act="silu").choose_kernels("torch") == ()


@pytest.mark.parametrize("kind", ["era", "gelu_tanh", "silu"])
def test_experts_are_a_weighted_sum_of_dense_blocks(kind):
    config = VesperConfig(**SIZES, **EXPERTS, hidden_act=kind)
    experts, router = VesperExperts(config), VesperRouter(config)
    torch.manual_seed(1)
    for parameter in [*experts.parameters(), *router.parameters()]:
        torch.nn.init.normal_(parameter, std=0.3)
    hidden_ND = torch.randn(40, 32, requires_grad=True)
    _, weights, chosen = router(hidden_ND)
    share_NE = torch.zeros(40, 4).scatter(1, chosen, weights)
    dense = []
    for expert in range(4):
        gate, up = (hidden_ND @ experts.gate_up_proj[expert].T).chunk(2, -1)
        dense.append(experts.unit(gate, up) @ experts.down_proj[expert].T)
    expected = (torch.stack(dense, 1) * share_NE[..., None]).sum(1)
    wanted = [hidden_ND, *experts.parameters(), router.weight]
    for found, other in zip(
        (
            out := experts(hidden_ND, chosen, weights),
            *torch.autograd.grad(out.square().sum(), wanted, retain_graph=True),
        ),
        (expected, *torch.autograd.grad(expected.square().sum(), wanted)),
        strict=True,
    ):
        torch.testing.assert_close(found, other, rtol=1e-4, atol=1e-4)


def test_every_token_goes_to_its_best_experts_with_weights_that_sum_to_one():
    model = vesper(**EXPERTS)
    router, hidden = model.model.layers[0].mlp.gate, torch.randn(50, 32)
    with torch.autocast("cpu", torch.bfloat16):
        scores, weights, chosen = router(hidden)
    assert scores.dtype == torch.float32
    probabilities = F.softmax(hidden.double() @ router.weight.double().T, -1)
    best = probabilities.argsort(-1, descending=True)[:, :2]
    assert torch.equal(chosen, best)
    expected = probabilities.gather(1, best) / probabilities.gather(1, best).sum(1, keepdim=True)
    torch.testing.assert_close(weights.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("experts", [{}, EXPERTS])
def test_generation_with_the_cache_is_generation_without(experts):
    model = vesper(**experts)
    cached, plain = (
        model.generate(IDS[:1], max_new_tokens=12, do_sample=False, use_cache=each) for each in (True, False)
    )
    assert cached.shape[1] == 24 and torch.equal(cached, plain)


@pytest.mark.parametrize("experts", [{}, EXPERTS])
def test_eager_attention_and_sdpa_agree(experts):
    model = vesper(**experts)
    before = logits(model)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("experts", [{}, EXPERTS])
def test_checkpointing_changes_no_gradient(experts):
    def gradients(checkpointed):
        model = vesper(**experts).train()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        out = model.model(input_ids=IDS, use_cache=False, output_router_logits=bool(experts))
        routed = sum(each.square().sum() for each in out.router_logits) if experts else 0.0
        (model.lm_head(out.last_hidden_state).logsumexp(-1).sum() + routed).backward()
        return {name: each.grad for name, each in model.named_parameters()}

    plain, again = gradients(False), gradients(True)
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, msg=name)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("experts", [{}, EXPERTS])
def test_saved_and_loaded_it_is_the_same_model(tmp_path, tied, experts):
    model = vesper(tie_word_embeddings=tied, gamma=0.3, **experts)
    save_model(model, tmp_path)
    for loaded in (load_model(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert type(loaded) is VesperForCausalLM and loaded.config.gamma == 0.3
        assert torch.equal(logits(loaded.eval()), logits(model))
        assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) is tied


def test_every_architecture_field_changes_config_and_output():
    shape = load_architecture("vesper_tiny_moe", REPOSITORY)
    shape = shape.model_copy(
        update={"hidden_size": 32, "num_heads": 4, "num_kv_heads": 4, "head_dim": 8, "num_layers": 1}
    )
    shape = shape.model_copy(update={"ffn_size": 64})

    def built(changed):
        model = build_model(changed, 64, SPECIALS)
        initialise(model, changed, seed=0)
        return model.eval()

    base = built(shape)
    for name, value in {
        "activation": "gelu_tanh",
        "gamma": 0.4,
        "rope_theta": 20.0,
        "norm_epsilon": 0.5,
        "moe": shape.moe.model_copy(update={"experts_per_token": 1}),
    }.items():
        other = built(shape.model_copy(update={name: value}))
        assert other.config.to_dict() != base.config.to_dict(), name
        assert not torch.allclose(logits(other), logits(base), atol=1e-6), name
    moe = shape.moe.model_copy(update={"balance_coefficient": 0.5, "z_coefficient": 0.25})
    config = built(shape.model_copy(update={"moe": moe})).config
    assert (config.router_aux_loss_coef, config.router_z_loss_coef) == (0.5, 0.25)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 3)


def test_initial_weights_of_experts_have_the_stated_deviations():
    shape = load_architecture("vesper_tiny_moe", REPOSITORY).model_copy(update={"num_layers": 2})
    model = build_model(shape, 512, SPECIALS)
    initialise(model, shape, seed=0)
    block = model.model.layers[1].mlp
    for tensor, deviation in (
        (block.experts.gate_up_proj, 0.02),
        (block.experts.down_proj, 0.01),
        (block.gate.weight, 0.02),
    ):
        assert float(tensor.detach().std()) == pytest.approx(deviation, rel=0.05)


def test_the_padding_row_trains():
    shape = load_architecture("vesper_tiny", REPOSITORY).model_copy(update={"num_layers": 1})
    model = build_model(shape, 64, SPECIALS)
    model.get_input_embeddings()(torch.tensor([3])).sum().backward()
    assert model.get_input_embeddings().weight.grad[3].abs().sum() > 0


ADAPTERS = [
    AdapterConfig(kind="dense", rank=4, targets=("q_proj", "down_proj")),
    AdapterConfig(kind="fly", rank=8, active_ranks=2, train_base=True),
]


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda each: each.kind)
def test_an_adapted_model_starts_as_its_base_and_survives_the_disk(tmp_path, adapter):
    model = vesper()
    before = logits(model)
    model.adapt(adapter, seed=3)
    assert torch.equal(logits(model), before)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith(("lora_B", "offsets")):
                tensor.normal_()
    assert not torch.allclose(logits(model), before, atol=1e-3)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path).eval()
    assert torch.equal(logits(loaded), logits(model))
    with pytest.raises(ConfigError, match="adapters of its own"):
        add_adapter(loaded, LoRAShape(2, 2))


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda each: each.kind)
def test_adapters_are_counted_exactly(adapter):
    shape = load_architecture("vesper_tiny", REPOSITORY).model_copy(update={"adapter": adapter})
    model = build_model(shape, 512, SPECIALS)
    model.adapt(adapter, seed=0)
    assert sum(each.numel() for each in model.parameters()) == count_parameters(shape, 512).total
    (obstacle,) = gguf_obstacles(model.config.to_dict() | {"hidden_act": "silu"})
    expected = {"dense": "dense, rank 4: not merged", "fly": "fly, 2 of 8 ranks: depends on the token"}
    assert expected[adapter.kind] in obstacle


@pytest.mark.parametrize(
    ("name", "trainable", "frozen"),
    [
        ("tiny", 344_064, 61_440),
        ("small", 917_504, 163_840),
        ("medium", 1_867_776, 344_064),
        ("large", 5_111_808, 933_888),
        ("xlarge", 10_223_616, 1_867_776),
        ("tiny_moe", 4 * 344_064, 4 * 61_440),
        ("medium_moe", 8 * 1_867_776, 8 * 344_064),
    ],
)
def test_fly_adds_the_stated_parameters_and_frozen_entries(name, trainable, frozen):
    shape, fly = load_architecture(f"vesper_{name}", REPOSITORY), AdapterConfig(kind="fly")
    assert adapter_parameters(shape.model_copy(update={"adapter": fly}), experts_of(shape)) == trainable
    with torch.device("meta"):
        model = build_model(shape, 512, SPECIALS)
        model.adapt(fly, seed=0)
    added = list(adapters_of(model))
    assert sum(each.lora_B.numel() for each in added) == trainable
    for tensors in ([each.values for each in added], [each.columns for each in added]):
        assert sum(each.numel() for each in tensors) == frozen


def experts_of(shape):
    return shape.moe.num_experts if shape.moe else 1
