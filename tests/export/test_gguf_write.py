"""
The written file against the gguf package's own reader, and every refusal of a model that llama.cpp cannot
express.
"""

import json
import shutil
from pathlib import Path

import jinja2
import numpy as np
import pytest
from gguf import GGUFReader
from safetensors.numpy import load_file, save_file

from tests.export.tiny_model import CHATML, tiny_model
from utils.chat.templates import GenerationSpans
from utils.export.gguf_quantize import read_keys, written_types
from utils.export.gguf_write import Description, interleave_rotary, write_gguf
from utils.export.template_marks import chat_template_without_marks, restore_marks
from utils.pipeline.errors import ConfigError, StageError

CHATML_FILE = Path(__file__).resolve().parents[2] / "config" / "templates" / "chatml.jinja"


def copy_with(source: Path, target: Path, config: dict | None = None, tensors: dict | None = None) -> Path:
    """A copy of a checkpoint with some config values or tensors replaced; None removes a tensor."""
    shutil.copytree(source, target)
    if config:
        stored = json.loads((target / "config.json").read_text())
        (target / "config.json").write_text(json.dumps(stored | config))
    if tensors:
        weights = load_file(target / "model.safetensors") | tensors
        save_file({k: v for k, v in weights.items() if v is not None}, target / "model.safetensors")
    return target


def test_head_rows_move_from_halves_to_neighbours() -> None:
    rows = np.arange(2 * 6, dtype=np.float32).reshape(12, 1)
    assert interleave_rotary(rows, heads=2).ravel().tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


def test_keys_come_from_config_and_tokenizer(tiny: Path, tmp_path: Path) -> None:
    described = Description(
        "tiny", "mit", ["checkpoints/x/base"], ["stories"], keys={"lockstep.output_digest": "ab"}
    )
    write_gguf(tiny, tmp_path / "model.gguf", "f16", described)
    keys = read_keys(tmp_path / "model.gguf")
    expected = {
        "general.architecture": "llama",
        "general.name": "tiny",
        "general.license": "mit",
        "general.file_type": 1,
        "general.base_model.count": 1,
        "general.base_model.0.name": "checkpoints/x/base",
        "general.dataset.0.name": "stories",
        "lockstep.output_digest": "ab",
        "llama.vocab_size": 512,
        "llama.context_length": 128,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.eot_token_id": 5,
        "tokenizer.ggml.add_space_prefix": False,
    }
    assert {key: keys[key] for key in expected} == expected
    assert keys["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)


def test_tied_heads_write_no_output_tensor_and_untied_ones_do(tmp_path: Path) -> None:
    for tie, expected in ((True, False), (False, True)):
        path = tmp_path / f"{tie}.gguf"
        write_gguf(tiny_model(tie=tie, steps=100 if tie else 2), path, "f16", Description("tiny"))
        names = {tensor.name for tensor in GGUFReader(path).tensors}
        assert ("output.weight" in names) is expected
        assert "token_embd.weight" in names


@pytest.mark.parametrize(
    ("file_type", "types"),
    [
        ("f32", {"F32": 20}),
        ("f16", {"F16": 15, "F32": 5}),
        ("bf16", {"BF16": 15, "F32": 5}),
        ("q8_0", {"F32": 5, "Q8_0": 15}),
    ],
)
def test_norms_stay_f32(tiny: Path, tmp_path: Path, file_type: str, types: dict) -> None:
    write_gguf(tiny, tmp_path / "model.gguf", file_type, Description("tiny"))
    assert written_types(tmp_path / "model.gguf") == types


def test_same_checkpoint_same_bytes(tiny: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_gguf(tiny, tmp_path / name, "q8_0", Description("tiny"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architectures": ["VesperForCausalLM"]}, 'architectures is \\["VesperForCausalLM"\\]'),
        ({"hidden_act": "gelu"}, 'hidden_act is "gelu"'),
        ({"attention_bias": True}, "attention_bias is true"),
        ({"mlp_bias": True}, "mlp_bias is true"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            'rope_parameters.rope_type is "linear"',
        ),
    ],
)
def test_models_that_llama_cpp_would_compute_differently_are_refused(
    tiny: Path, tmp_path: Path, config: dict, message: str
) -> None:
    folder = copy_with(tiny, tmp_path / "model", config=config)
    with pytest.raises(ConfigError, match=message) as refusal:
        write_gguf(folder, tmp_path / "model.gguf", "f16", Description("tiny"))
    assert refusal.value.exit_code == 2


def test_missing_and_surplus_tensors_are_named(tiny: Path, tmp_path: Path) -> None:
    extra = {"model.layers.0.mlp.extra.weight": np.ones((2, 2), np.float32), "model.norm.weight": None}
    folder = copy_with(tiny, tmp_path / "model", tensors=extra)
    with pytest.raises(
        StageError, match=r"missing \['model.norm.weight'\], left over \['model.layers.0.mlp.extra"
    ):
        write_gguf(folder, tmp_path / "model.gguf", "f16", Description("tiny"))


def test_no_weights_are_refused(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ConfigError, match="no \\*.safetensors weights"):
        write_gguf(tmp_path / "model", tmp_path / "model.gguf", "f16", Description("tiny"))


def render(source: str, messages: list[dict]) -> str:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationSpans])
    text = environment.from_string(source).render(
        messages=messages, bos_token="<s>", add_generation_prompt=True
    )
    return text.translate({ord(mark): None for mark in "\ufdd0\ufdd1"})


@pytest.mark.parametrize("template", [CHATML, CHATML_FILE.read_text()])
def test_template_without_marks_renders_the_same_and_the_marks_come_back(
    tmp_path: Path, template: str
) -> None:
    (tmp_path / "chat_template.jinja").write_text(template)
    embedded = chat_template_without_marks(tmp_path)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " one\n\ntwo "},
        {"role": "assistant", "content": "three\n"},
        {"role": "user", "content": "four"},
    ]
    assert "{% generation" not in embedded and "{%- generation" not in embedded
    assert render(embedded, messages) == render(template, messages)
    assert render(restore_marks(embedded), messages) == render(template, messages)
    assert restore_marks(embedded).count("generation") == template.count("generation")
