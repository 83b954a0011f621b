"""
A checkpoint folder as the GGUF writer and its gate see it: config values, and tensors read one at a time.

Experts are stored in two layouts, one file tensor per matrix (Mixtral) or all experts fused (VesperLM). Both
are shown as `mlp.gate.weight` [E, D] and `mlp.experts.{gate,up,down}_proj.weight` [E, F, D], [E, F, D],
[E, D, F], which is how llama.cpp wants them.

    config = read_config(folder)                          # ConfigError when llama.cpp computes something else
    CheckpointTensors(folder).read("model.norm.weight")   # fp32
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from utils.pipeline.errors import ConfigError

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "vesper": "VesperForCausalLM",
}
MIXTRAL_PARTS = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


def read_config(folder: Path) -> dict:
    """
    The values that the model computes with, refused unless llama.cpp's llama graph computes the same
    function.
    """
    if not (folder / "config.json").is_file():
        what = "an adapter" if (folder / "adapter_config.json").is_file() else "no model folder"
        raise ConfigError(
            f"{folder.name} is {what}: merge it first", fix="run stage 110 and convert its output"
        )
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model_type = stored.get("model_type", "llama")
    expected = ARCHITECTURES.get(model_type, ARCHITECTURES["llama"])
    _refuse(folder, {"architectures": (stored.get("architectures"), [expected])})
    config = _with_defaults(folder)  # config.json leaves out what equals a class default
    expressible_values = {
        "hidden_act": (config["hidden_act"], "silu"),
        "adapter": (config.get("adapter"), None),
        "attention_bias": (config.get("attention_bias", False), False),
        "mlp_bias": (config.get("mlp_bias", False), False),
        "sliding_window": (config.get("sliding_window"), None),
        "rope_parameters.rope_type": (config["rope_parameters"]["rope_type"], "default"),
    }
    _refuse(folder, expressible_values)
    return config | {"head_dim": config["head_dim"] or config["hidden_size"] // config["num_attention_heads"]}


def _with_defaults(folder: Path) -> dict:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).to_dict()


def _refuse(folder: Path, expressible_values: dict[str, tuple[object, object]]) -> None:
    for key, (found, expressible) in expressible_values.items():
        if found != expressible:
            raise ConfigError(
                f"{folder.name}/config.json: {key} is {json.dumps(found)}; this writer converts "
                f"{json.dumps(expressible)} only",
                fix="run the checkpoint itself: python tools/chat.py --model " + folder.as_posix(),
            )


class CheckpointTensors:
    """
    Lazy view of the safetensors files of a folder: shapes from the headers, one tensor in memory at a
    time.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self._readers: dict[str, Callable[[], np.ndarray]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            handle = safe_open(path, framework="pt")
            for name in handle.offset_keys():
                self._readers[name] = lambda handle=handle, name=name: handle.get_tensor(name).float().numpy()
                self.shapes[name] = tuple(handle.get_slice(name).get_shape())
        if not self.shapes:
            raise ConfigError(
                f"{folder} has no *.safetensors weights", fix="give a full or merged checkpoint folder"
            )
        for name in list(self.shapes):
            if name.endswith(".mlp.experts.gate_up_proj"):
                self._show_fused(name.removesuffix(".gate_up_proj"))
            elif name.endswith(".block_sparse_moe.gate.weight"):
                self._show_mixtral(name.removesuffix(".block_sparse_moe.gate.weight"))

    def read(self, name: str) -> np.ndarray:
        return self._readers[name]()

    def _show_fused(self, block: str) -> None:
        shape, read = self._take(f"{block}.gate_up_proj")
        experts, inner, width = shape[0], shape[1] // 2, shape[2]
        self._put(f"{block}.gate_proj.weight", (experts, inner, width), lambda: read()[:, :inner])
        self._put(f"{block}.up_proj.weight", (experts, inner, width), lambda: read()[:, inner:])
        self._put(f"{block}.down_proj.weight", *self._take(f"{block}.down_proj"))

    def _show_mixtral(self, layer: str) -> None:
        self._put(f"{layer}.mlp.gate.weight", *self._take(f"{layer}.block_sparse_moe.gate.weight"))
        numbered = re.compile(re.escape(layer) + r"\.block_sparse_moe\.experts\.(\d+)\.w1\.weight")
        count = sum(numbered.fullmatch(name) is not None for name in self.shapes)
        for ours, theirs in MIXTRAL_PARTS.items():
            prefix = f"{layer}.block_sparse_moe.experts"
            taken = [self._take(f"{prefix}.{expert}.{theirs}.weight") for expert in range(count)]
            readers = [read for _, read in taken]
            self._put(
                f"{layer}.mlp.experts.{ours}.weight",
                (count, *taken[0][0]),
                lambda readers=readers: np.stack([read() for read in readers]),
            )

    def _take(self, name: str) -> tuple[tuple[int, ...], Callable[[], np.ndarray]]:
        return self.shapes.pop(name), self._readers.pop(name)

    def _put(self, name: str, shape: tuple[int, ...], read: Callable[[], np.ndarray]) -> None:
        self.shapes[name], self._readers[name] = shape, read
