"""VesperLM with SiLU and experts of both layouts: llama.cpp computes what the checkpoint computes."""

import shutil
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from transformers import LlamaConfig, MixtralConfig, MixtralForCausalLM

from tests.chat.toy_chain import script
from tests.export.conftest import evidence_of
from tests.export.test_gguf_convert import lineage_keys
from tests.export.toy_run import GGUF, MERGE, ToyRun, copy_tokenizer_set
from utils.config.adapter import AdapterConfig
from utils.export.gguf_convert import check_meaning, convert
from utils.export.gguf_quantize import quantize_gguf
from utils.export.gguf_reader import reader_gate
from utils.export.gguf_verify import LlamaCpp
from utils.export.gguf_write import Description, write_gguf
from utils.models.load import load_model, save_model
from utils.models.vesper import VesperConfig, VesperForCausalLM
from utils.pipeline.errors import ConfigError
from utils.pipeline.lineage import prove_gguf
from utils.pipeline.manifest import read_manifest

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


@pytest.mark.parametrize("name", ["fused", "mixtral"])
def test_every_type_of_experts_is_the_checkpoint(
    folders: dict, llama: LlamaCpp, tmp_path: Path, name: str
) -> None:
    """All gates of the conversion: logits in F32, divergence of each type, greedy text where it is exact."""
    folder = folders[name]
    description = Description("tiny", keys=lineage_keys(folder))
    wanted = ["f32", "f16", "q8_0", "q4_k_m"]
    report = convert(
        folder, tmp_path, wanted, description, evidence_of(folder), llama, log=lambda *_, **__: None
    )
    assert list(report["files"]) == wanted
    assert report["files"]["q8_0"]["types"] == {"F32": 7, "Q8_0": 15}
    assert report["files"]["q4_k_m"]["types"].keys() >= {"F32", "Q4_K", "Q6_K"}


def test_rows_that_are_no_multiple_of_256_fall_back_to_blocks_of_32(folders: dict, tmp_path: Path) -> None:
    values = config_of(folders["fused"]) | {"intermediate_size": 96}
    model = VesperForCausalLM(VesperConfig(**values))
    folder = save(model, folders["fused"], tmp_path / "narrow")
    write(folder, tmp_path / "f16.gguf", "f16")
    quantize_gguf(tmp_path / "f16.gguf", tmp_path / "q4.gguf", "q4_k_m", timeout_seconds=60)
    types = {each.name: each.tensor_type.name for each in GGUFReader(tmp_path / "q4.gguf").tensors}
    assert types["blk.0.ffn_gate_exps.weight"] == "Q4_K"  # rows of the model's width, 256
    assert types["blk.0.ffn_down_exps.weight"] in ("Q5_0", "Q8_0")  # rows of 96


@pytest.mark.parametrize(
    "adapter",
    [
        AdapterConfig(kind="dense", rank=4, targets=("q_proj", "o_proj")),
        AdapterConfig(kind="fly", rank=8, active_ranks=8, density=0.25, targets=("k_proj", "v_proj")),
    ],
    ids=lambda each: each.kind,
)
def test_a_merged_adapter_becomes_a_file(
    folders: dict, llama: LlamaCpp, tmp_path: Path, adapter: AdapterConfig
) -> None:
    model = load_model(folders["fused"]).eval()
    model.adapt(adapter, seed=0)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.05)
    adapted = save(model, folders["fused"], tmp_path / "adapted")
    with pytest.raises(ConfigError, match="adapter is .*this writer converts null only"):
        write(adapted, tmp_path / "adapted.gguf")
    evidence = evidence_of(adapted)
    model.merge_adapters()
    merged = save(model, folders["fused"], tmp_path / "merged")
    write(merged, tmp_path / "merged.gguf")
    gates = check_meaning(tmp_path / "merged.gguf", merged, evidence, llama)
    assert gates["logits"]["max_logit_difference"] < 1e-3


def test_experts_with_an_adapter_go_through_both_stages(folders: dict, tmp_path: Path) -> None:
    """From what stage 70 leaves, over 110, to files of stage 120 that prove their ancestors."""

    def write_tuned(folder: Path) -> None:
        model = load_model(folders["fused"])
        adapter = AdapterConfig(kind="dense", rank=4, targets=("q_proj", "up_proj", "down_proj"))
        model.adapt(adapter, seed=0)
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                torch.nn.init.normal_(parameter, std=0.02)
        model.generation_config.eos_token_id = [2, 5]
        save_model(model, folder)
        copy_tokenizer_set(folder)

    run = ToyRun.build(tmp_path)
    run.seal("70_train_sft", "checkpoints/toy/own", write_tuned)
    run.configure("110_merge_lora", MERGE | {"inputs": MERGE["inputs"] | {"adapter": "checkpoints/toy/own"}})
    inputs = {name: path for name, path in GGUF["inputs"].items() if name != "evaluation"}
    run.configure("120_convert_gguf", GGUF | {"inputs": inputs, "outputs": ["q8_0"]})
    assert [run.stage(name) for name in ("110_merge_lora", "120_convert_gguf")] == [0, 0]
    merged = read_manifest(run.path("checkpoints/toy/merged"))[0].metrics
    assert merged["mode"] == "merged" and merged["max_logit_difference"] <= 1e-4
    verdict, proof = prove_gguf(run.path("checkpoints/toy/gguf/model-q8_0.gguf"))
    assert verdict.good and "70_train_sft" in {entry["stage"] for entry in proof.lineage}


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
    refuse(folders["fused"], "fused")
    folder = shutil.copytree(folders["dense"], tmp_path / "era")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"hidden_act": "silu"', '"hidden_act": "era"'))
    with pytest.raises(ConfigError) as refused:
        refuse(folder, "checkpoints/mine/sft")
    assert refused.value.exit_code == 2
    assert str(refused.value).splitlines() == [
        "120_convert_gguf cannot express checkpoints/mine/sft",
        "  activation era (gamma 0.1)        llama.cpp's llama graph computes SiLU only",
        '  would convert                     "activation": "silu" and adapter none, dense, or fly with '
        "active_ranks = rank",
        "  runs as it is                     python tools/serve.py --model checkpoints/mine/sft",
    ]
