"""VesperLM with SiLU and experts of both layouts: llama.cpp computes what the checkpoint computes."""

import shutil
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from transformers import LlamaConfig, MixtralConfig, MixtralForCausalLM

from tests.chat.toy_chain import script
from tests.export.conftest import evidence_of
from utils.export.gguf_convert import check_meaning
from utils.export.gguf_reader import reader_gate
from utils.export.gguf_verify import LlamaCpp
from utils.export.gguf_write import Description, write_gguf
from utils.models.load import load_model, save_model
from utils.models.vesper import VesperConfig, VesperForCausalLM
from utils.pipeline.errors import ConfigError

EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}


def save(model: torch.nn.Module, source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("config.json", "*.safetensors"))
    save_model(model, folder)
    return folder


def config_of(tiny: Path) -> dict:
    values = LlamaConfig.from_pretrained(tiny).to_dict()
    return {name: value for name, value in values.items() if name not in ("model_type", "architectures")}


@pytest.fixture(scope="module")
def folders(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny model as VesperLM; its FFN, disturbed, as four experts in both layouts."""
    root = tmp_path_factory.mktemp("vesper")
    weights = {name: each.detach() for name, each in load_model(tiny).state_dict().items()}
    dense = VesperForCausalLM(VesperConfig(**config_of(tiny)))
    dense.load_state_dict(weights)
    generator = torch.Generator().manual_seed(0)

    def disturbed(tensor: torch.Tensor) -> torch.Tensor:
        return tensor + 0.3 * tensor.std() * torch.randn(tensor.shape, generator=generator)

    for layer in range(2):
        mlp = f"model.layers.{layer}.mlp"
        gate, up, down = (weights.pop(f"{mlp}.{name}_proj.weight") for name in ("gate", "up", "down"))
        weights[f"{mlp}.gate.weight"] = 0.3 * torch.randn(4, 256, generator=generator)
        joined = [torch.cat([disturbed(gate), disturbed(up)]) for _ in range(4)]
        weights[f"{mlp}.experts.gate_up_proj"] = torch.stack(joined)
        weights[f"{mlp}.experts.down_proj"] = torch.stack([disturbed(down) for _ in range(4)])
    built = {"dense": dense}
    for name, model in (
        ("fused", VesperForCausalLM(VesperConfig(**config_of(tiny), **EXPERTS))),
        ("mixtral", MixtralForCausalLM(MixtralConfig(**config_of(tiny), **EXPERTS))),
    ):
        model.load_state_dict(weights)
        built[name] = model
    return {name: save(model.eval(), tiny, root / name) for name, model in built.items()}


def write(folder: Path, target: Path, file_type: str = "f32") -> bytes:
    write_gguf(folder, target, file_type, Description("tiny"))
    return target.read_bytes()


def test_dense_silu_is_written_as_the_llama_that_it_is(tiny: Path, folders: dict, tmp_path: Path) -> None:
    assert write(folders["dense"], tmp_path / "vesper.gguf") == write(tiny, tmp_path / "llama.gguf")


def test_both_layouts_of_experts_give_the_same_file(folders: dict, tmp_path: Path) -> None:
    fused = write(folders["fused"], tmp_path / "fused.gguf", "q8_0")
    assert fused == write(folders["mixtral"], tmp_path / "mixtral.gguf", "q8_0")
    types = {each.name: each.tensor_type.name for each in GGUFReader(tmp_path / "fused.gguf").tensors}
    assert types["blk.1.ffn_gate_inp.weight"] == "F32"
    assert types["blk.1.ffn_gate_exps.weight"] == types["blk.1.ffn_down_exps.weight"] == "Q8_0"
    assert reader_gate(tmp_path / "fused.gguf", folders["fused"])["tensors"] == len(types)


def test_llama_cpp_routes_tokens_as_the_checkpoint_does(
    folders: dict, llama: LlamaCpp, tmp_path: Path
) -> None:
    write(folders["fused"], tmp_path / "fused.gguf")
    gates = check_meaning(tmp_path / "fused.gguf", folders["fused"], evidence_of(folders["fused"]), llama)
    assert gates["logits"]["max_logit_difference"] < 1e-3


def test_a_swapped_gate_is_found(folders: dict, tmp_path: Path) -> None:
    model = load_model(folders["fused"])
    with torch.no_grad():
        fused = model.model.layers[0].mlp.experts.gate_up_proj
        fused.copy_(fused.roll(512, dims=1))
    write(folders["fused"], tmp_path / "fused.gguf")
    other = save(model, folders["fused"], tmp_path / "other")
    with pytest.raises(Exception, match="ffn_(gate|up)_exps.weight holds"):
        reader_gate(tmp_path / "fused.gguf", other)


def test_era_is_refused_by_the_writer_too(folders: dict, tmp_path: Path) -> None:
    folder = shutil.copytree(folders["dense"], tmp_path / "era")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"hidden_act": "silu"', '"hidden_act": "era"'))
    with pytest.raises(ConfigError, match='hidden_act is "era"'):
        write(folder, tmp_path / "era.gguf")


def test_stage_120_names_every_cause(folders: dict, tmp_path: Path) -> None:
    refuse = script("120_convert_gguf").refuse_obstacles
    refuse(folders["fused"])
    folder = shutil.copytree(folders["dense"], tmp_path / "era")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"hidden_act": "silu"', '"hidden_act": "era"'))
    with pytest.raises(ConfigError, match="cannot express era\n  activation era .gamma 0.1.: ") as refused:
        refuse(folder)
    assert refused.value.exit_code == 2 and '"activation": "silu"' in refused.value.fix
