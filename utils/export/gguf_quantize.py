"""
Quantise a GGUF file with llama.cpp, in a child process, and prove that everything but the tensors came
through.

    quantize_gguf(Path("model-f16.gguf"), Path("model-q4_k_m.gguf"), "q4_k_m", timeout_seconds=600)
    written_types(Path("model-q4_k_m.gguf"))      # {"Q4_K": 9, "Q6_K": 3, "F32": 5}

K-quants need rows of a multiple of 256 values; llama.cpp falls back to another type where they are not, so
the types really written are read back and recorded, never assumed.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, LlamaFileType

from utils.export.llama_child import run_child
from utils.pipeline.errors import StageError

QUANTIZED_TYPES = {
    "q4_k_m": LlamaFileType.MOSTLY_Q4_K_M,
    "q5_k_m": LlamaFileType.MOSTLY_Q5_K_M,
    "q6_k": LlamaFileType.MOSTLY_Q6_K,
}
MAY_CHANGE = {"general.file_type", "general.quantization_version", "lockstep.tensors_sha256"}


def quantize_gguf(
    source: Path, target: Path, file_type: str, timeout_seconds: float, threads: int = 1
) -> None:
    """
    Write `target` as `file_type` from an F32, F16 or BF16 file; StageError with one sentence if that
    fails.
    """
    run_child(
        "quantize",
        {
            "source": str(source),
            "model": str(target),
            "file_type": int(QUANTIZED_TYPES[file_type]),
            "threads": threads,
        },
        timeout_seconds,
    )
    before, after = read_keys(source), read_keys(target)
    lost = sorted(key for key in before.keys() - MAY_CHANGE if before[key] != after.get(key))
    if lost:
        raise StageError(
            f"quantising to {file_type} changed {len(lost)} metadata keys, first {lost[0]}",
            fix="use a llama-cpp-python of the pinned version",
        )


def read_keys(path: Path) -> dict[str, Any]:
    """All metadata of a GGUF file as plain Python values."""
    reader = GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}


def written_types(path: Path) -> dict[str, int]:
    """How many tensors of each type the file really holds."""
    return dict(sorted(Counter(tensor.tensor_type.name for tensor in GGUFReader(path).tensors).items()))


def patch_key(path: Path, key: str, value: str) -> None:
    """Overwrite a string value in place; it must be exactly as long as the one that is there."""
    field = GGUFReader(path, "r+").fields[key]
    stored = field.parts[field.data[0]]
    encoded = np.frombuffer(value.encode("utf-8"), dtype=np.uint8)
    if len(stored) != len(encoded):
        raise ValueError(f"{key} holds {len(stored)} bytes, {len(encoded)} do not fit in place")
    stored[:] = encoded
