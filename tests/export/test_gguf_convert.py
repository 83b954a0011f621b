"""The whole conversion: files that pass every gate and prove themselves, and nothing when one gate fails."""

from dataclasses import replace
from pathlib import Path

import pytest
from gguf import GGUFReader

from utils.export.gguf_convert import Evidence, convert
from utils.export.gguf_verify import LlamaCpp
from utils.export.gguf_write import Description
from utils.pipeline.errors import StageError
from utils.pipeline.hashing import canonical_json, digest
from utils.pipeline.lineage import prove_gguf
from utils.pipeline.tokenizer_identity import tokenizer_block


def lineage_keys(folder: Path) -> dict[str, str]:
    """The keys that floor 1 gives for an artifact, here for a model that stands alone."""
    entry = {"output_digest": "ab" * 32, "stage": "110_merge_lora", "path": "m", "parents": {}, "sources": []}
    block = tokenizer_block(folder)
    return {
        "lockstep.output_digest": "ab" * 32,
        "lockstep.tokenizer_fingerprint": block["fingerprint"],
        "lockstep.tokenizer": canonical_json(block).decode(),
        "lockstep.lineage": canonical_json([entry]).decode(),
        "lockstep.lineage_sha256": digest("lineage", [entry]),
        "lockstep.tensors_sha256": "0" * 64,
    }


@pytest.fixture(scope="module")
def converted(tiny: Path, evidence: Evidence, llama: LlamaCpp, tmp_path_factory: pytest.TempPathFactory):
    target = tmp_path_factory.mktemp("gguf")
    lines: list[tuple] = []
    report = convert(
        tiny,
        target,
        ["q8_0", "q4_k_m", "f16"],
        Description("tiny", keys=lineage_keys(tiny)),
        evidence,
        llama,
        log=lambda *given, **fields: lines.append((given, fields)),
    )
    return target, report, lines


def test_report_holds_every_gate(converted) -> None:
    _, report, lines = converted
    assert set(report["gates"]) == {"reader", "tokens", "chat", "logits", "greedy"}
    assert list(report["files"]) == ["q8_0", "q4_k_m", "f16"]
    assert report["parameters"] == 1_312_000
    assert report["files"]["q4_k_m"]["types"] == {"F32": 5, "Q4_K": 12, "Q6_K": 3}
    assert report["files"]["f16"]["greedy"]["prompts"] == 6
    assert [given[0] for given, _ in lines] == ["gates", "written", "written", "written"]


def test_files_prove_themselves(converted) -> None:
    target, report, _ = converted
    digests = set()
    for name in report["files"]:
        verdict, proof = prove_gguf(target / f"model-{name}.gguf")
        assert verdict.good
        digests.add(proof.tensors_sha256)
    assert len(digests) == 3 and "0" * 64 not in digests


def test_one_flipped_tensor_bit_is_tampering(converted, tmp_path: Path) -> None:
    target, _, _ = converted
    path = tmp_path / "model.gguf"
    path.write_bytes((target / "model-q8_0.gguf").read_bytes())
    tensor = GGUFReader(path, "r+").tensors[3]
    tensor.data.reshape(-1)[5] ^= 1
    tensor.data.flush()
    assert "tensors: expected" in str(prove_gguf(path)[0])


def test_f32_file_is_only_scratch(converted) -> None:
    target, _, _ = converted
    assert sorted(path.name for path in target.glob("*.gguf")) == [
        "model-f16.gguf", "model-q4_k_m.gguf", "model-q8_0.gguf"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: {"logits": e.logits[:, ::-1]}, "logits differ from the checkpoint's"),
        (lambda e: {"bos": 2}, "token ids of"),
        (lambda e: {"prompt_ids": lambda messages: [1, 2, 3]}, "the chat prompt of 1 messages differs"),
    ],
)
def test_a_failing_gate_leaves_no_file(
    tiny: Path, evidence: Evidence, llama: LlamaCpp, tmp_path: Path, change, message: str
) -> None:
    wrong = replace(evidence, **change(evidence))
    with pytest.raises(StageError, match=message) as failure:
        convert(tiny, tmp_path, ["f16"], Description("tiny", keys=lineage_keys(tiny)), wrong, llama, print)
    assert failure.value.exit_code == 4
    assert not list(tmp_path.glob("*.gguf"))
