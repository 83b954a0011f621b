import pytest
import torch
from transformers import AutoModelForCausalLM

from utils.models.llama import build_llama, initialise
from utils.models.load import copy_tokenizer, load_model, save_model
from utils.models.presets import load_architecture
from utils.pipeline.errors import UpstreamError
from utils.pipeline.workspace import REPOSITORY

LLAMA_PRESETS = sorted(
    path.stem
    for path in REPOSITORY.path("config/architectures").glob("*.json")
    if load_architecture(path.stem, REPOSITORY).family == "llama"
)
SPECIALS = {"unk": 0, "bos": 1, "eos": 2, "pad": 3}


@pytest.fixture(scope="module")
def smoke():
    shape = load_architecture("smoke", REPOSITORY)
    model = build_llama(shape, 512, SPECIALS)
    initialise(model, shape, seed=0)
    return shape, model


def test_every_architecture_field_reaches_the_config(smoke):
    shape, _ = smoke
    changed = shape.model_copy(update={"rope_theta": 5e4, "norm_epsilon": 1e-3, "context_length_tokens": 77})
    config = build_llama(changed, 512, SPECIALS).config
    assert config.rope_parameters["rope_theta"] == 5e4 and config.rms_norm_eps == 1e-3
    assert config.max_position_embeddings == 77 and config.head_dim == 64
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 3)


@pytest.mark.parametrize("changes", [{"rope_theta": 50.0}, {"norm_epsilon": 0.5}])
def test_fields_without_weights_change_the_output(smoke, changes):
    shape, model = smoke
    other = build_llama(shape.model_copy(update=changes), 512, SPECIALS)
    other.load_state_dict(model.state_dict())
    ids = torch.arange(12)[None]
    assert not torch.allclose(model(input_ids=ids).logits, other(input_ids=ids).logits, atol=1e-4)


def test_initial_weights_have_the_stated_deviations(smoke):
    shape, model = smoke
    weights = dict(model.named_parameters())
    layer = "model.layers.1."
    assert float(weights[layer + "self_attn.q_proj.weight"].detach().std()) == pytest.approx(0.02, rel=0.02)
    assert float(weights[layer + "mlp.down_proj.weight"].detach().std()) == pytest.approx(0.01, rel=0.02)
    assert (weights[layer + "input_layernorm.weight"] == 1).all()


def test_a_seed_means_one_model_whatever_was_drawn_before(smoke):
    shape, model = smoke
    torch.manual_seed(99)
    torch.rand(7)
    again, other = build_llama(shape, 512, SPECIALS), build_llama(shape, 512, SPECIALS)
    initialise(again, shape, seed=0)
    initialise(other, shape, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not torch.equal(model.lm_head.weight, other.lm_head.weight)


def test_the_padding_row_trains(smoke, tmp_path):
    """
    transformers would freeze the embedding row of pad_token_id, which under a tied head is a row of the
    softmax.
    """
    _, model = smoke
    save_model(model, tmp_path)
    for each in (model, load_model(tmp_path)):
        each.zero_grad()
        each.get_input_embeddings()(torch.tensor([3])).sum().backward()
        assert each.get_input_embeddings().weight.grad[3].abs().sum() > 0


@pytest.mark.parametrize("name", LLAMA_PRESETS)
def test_a_saved_preset_loads_in_plain_transformers_with_the_same_logits(name, tmp_path):
    """One layer of each, with a small vocabulary."""
    shape = load_architecture(name, REPOSITORY).model_copy(update={"num_layers": 1})
    model = build_llama(shape, 512, SPECIALS).eval()
    initialise(model, shape, seed=0)
    save_model(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded).__module__.startswith("transformers.") and loaded.dtype == torch.float32
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(input_ids=ids).logits, model(input_ids=ids).logits, rtol=0, atol=1e-6
        )


def test_tokenizer_files_are_copied_byte_for_byte(tmp_path):
    source, target = tmp_path / "a", tmp_path / "b"
    source.mkdir(), target.mkdir()
    (source / "tokenizer.model").write_bytes(b"\x00\xffpieces")
    (source / "tokenizer.json").write_bytes(b"{}")
    assert copy_tokenizer(source, target) == ["tokenizer.model", "tokenizer.json"]
    assert (target / "tokenizer.model").read_bytes() == b"\x00\xffpieces"


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(UpstreamError, match=r"holds no tokenizer.model and no tokenizer.json"):
        copy_tokenizer(tmp_path, tmp_path)


def small_mixtral():
    return load_architecture("tiny_moe", REPOSITORY).model_copy(
        update={"num_layers": 1, "hidden_size": 64, "num_heads": 1, "num_kv_heads": 1, "ffn_size": 32}
    )


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_the_router_of_mixtral_computes_in_fp32_under_autocast(tmp_path, stored):
    shape = small_mixtral()
    built = build_llama(shape, 64, SPECIALS)
    initialise(built, shape, seed=0)
    save_model(built, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(built(input_ids=ids).logits, theirs(input_ids=ids).logits)

        def routed(model):
            with torch.autocast("cpu", torch.bfloat16):
                return model.to(stored).model(input_ids=ids, output_router_logits=True).router_logits[0]

        assert routed(theirs).dtype == torch.bfloat16
        for model in (built, load_model(tmp_path)):
            gate, seen = model.model.layers[0].mlp.gate, []
            hook = gate.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
            found = routed(model)
            hook.remove()
            assert found.dtype == torch.float32
            exact = seen[0].double() @ gate.weight.double().T
            torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-6)


def test_every_field_of_the_experts_reaches_mixtral():
    shape = small_mixtral()

    def built(**changes):
        return build_llama(
            shape.model_copy(update={"moe": shape.moe.model_copy(update=changes)}), 64, SPECIALS
        )

    model = built()
    assert type(model).__name__ == "MixtralForCausalLM" and model.config.head_dim == 64
    assert model.get_input_embeddings().padding_idx is None
    initialise(model, shape, seed=0)
    assert float(model.model.layers[0].mlp.experts.down_proj.detach().std()) == pytest.approx(
        0.02 / 2**0.5, rel=0.05
    )
    assert built(num_experts=4).model.layers[0].mlp.gate.weight.shape == (4, 64)
    other, ids = built(experts_per_token=3), torch.arange(12)[None]
    other.load_state_dict(model.state_dict())
    assert not torch.allclose(model(input_ids=ids).logits, other(input_ids=ids).logits, atol=1e-6)
    config = built(balance_coefficient=0.5, z_coefficient=0.25).config
    assert (config.router_aux_loss_coef, config.router_z_loss_coef) == (0.5, 0.25)
