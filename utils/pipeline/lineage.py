"""
Lineage: the whole chain as one value, small enough to travel inside the GGUF, and the proof that a lone file
carries.

    metadata = gguf_metadata(stage.input("model"), workspace)     # written into the file by stage 120
    verdict, proof = prove_gguf(Path("model-q8_0.gguf"))          # read back by anybody, without the folders
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from utils.pipeline.guards import GUARDS
from utils.pipeline.hashing import canonical_json, digest
from utils.pipeline.manifest import Manifest
from utils.pipeline.tokenizer_identity import seal_block
from utils.pipeline.verdict import OK, Verdict
from utils.pipeline.verify import Verifier
from utils.pipeline.workspace import Workspace

OUTPUT_DIGEST = "lockstep.output_digest"
FINGERPRINT = "lockstep.tokenizer_fingerprint"
TOKENIZER = "lockstep.tokenizer"
LINEAGE = "lockstep.lineage"
LINEAGE_SHA256 = "lockstep.lineage_sha256"
TENSORS_SHA256 = "lockstep.tensors_sha256"


def lineage_of(folder: Path, workspace: Workspace) -> list[dict]:
    """
    One entry per artifact of the chain, `folder` first, each once.

    An ancestor that is not on disk is taken from the archive of manifests, and left out when it is not there
    either. Seals are not in it: they cover run ids, and a GGUF made twice must be the same file.
    """
    verifier = Verifier(workspace, "cached")
    entries: dict[str, dict] = {}
    waiting = [(workspace.path(folder), "")]
    while waiting:
        place, seal = waiting.pop(0)
        manifest = verifier.manifest(place)
        if seal and (manifest is None or manifest.manifest_sha256 != seal):
            manifest = archived_manifest(seal, workspace)
        if manifest is None or manifest.manifest_sha256 in entries:
            continue
        entries[manifest.manifest_sha256] = _entry(workspace.relative(place), manifest)
        waiting += [(workspace.path(record.path), record.manifest_sha256) for record in manifest.inputs]
    return list(entries.values())


def _entry(path: str, manifest: Manifest) -> dict:
    sources = [
        {"name": source.name, "kind": source.kind, "id": source.id, "digest": source.digest}
        for source in manifest.sources
    ]
    return {
        "stage": manifest.stage,
        "path": path,
        "key": manifest.key,
        "output_digest": manifest.output_digest,
        "parents": {record.role: record.output_digest for record in manifest.inputs},
        "sources": sources,
        "mismatches_allowed": manifest.waivers,
    }


def archived_manifest(seal: str, workspace: Workspace) -> Manifest | None:
    """The manifest with this seal from the archive, which outlives its folder (P12)."""
    path = workspace.records / "manifests" / f"{seal}.json"
    return Manifest.from_raw(json.loads(path.read_bytes())) if path.is_file() else None


def gguf_metadata(folder: Path, tokenizer: dict, workspace: Workspace) -> dict[str, str]:
    """
    The string keys that tie a GGUF to the model in `folder` (P40).

    `lockstep.tensors_sha256` is left to the writer: it is known when the tensors are, and has the width of a
    digest.
    """
    entries = lineage_of(folder, workspace)
    return {
        OUTPUT_DIGEST: entries[0]["output_digest"],
        FINGERPRINT: tokenizer["fingerprint"],
        TOKENIZER: canonical_json(tokenizer).decode("ascii"),
        LINEAGE: canonical_json(entries).decode("ascii"),
        LINEAGE_SHA256: digest("lineage", entries),
        TENSORS_SHA256: "0" * 64,
    }


def tensors_digest(reader: object) -> str:
    """Digest over name, shape, type and data of every tensor of a `gguf.GGUFReader`, in file order."""
    rows = [
        [
            tensor.name,
            [int(size) for size in tensor.shape],
            tensor.tensor_type.name,
            hashlib.sha256(tensor.data.reshape(-1).view("uint8")).hexdigest(),
        ]
        for tensor in reader.tensors
    ]
    return digest("tensors", rows)


@dataclass(frozen=True)
class GGUFProof:
    """
    What a lone GGUF says of itself: digests, tokenizer block, lineage (its own model first), bytes,
    tensor digest.
    """

    output_digest: str
    tokenizer: dict
    lineage: list[dict]
    bytes: int
    tensors_sha256: str


def prove_gguf(path: Path) -> tuple[Verdict, GGUFProof | None]:
    """
    Whether tensors, lineage and pieces of the file hash to the digests in its own header; needs no other
    file.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items() if _is_ours(name)}
        if OUTPUT_DIGEST not in fields:
            return Verdict("mismatched", f"{path.name}: carries no lineage, another program made it"), None
        tokenizer, lineage = json.loads(fields[TOKENIZER]), json.loads(fields[LINEAGE])
        rows = [
            ("tensors", fields[TENSORS_SHA256], tensors_digest(reader)),
            ("lineage", fields[LINEAGE_SHA256], digest("lineage", lineage)),
            ("lineage", fields[OUTPUT_DIGEST], lineage[0]["output_digest"]),
            ("pieces", tokenizer["pieces_sha256"], digest("pieces", _pieces(fields))),
            ("tokenizer", fields[FINGERPRINT], seal_block(tokenizer)["fingerprint"]),
        ]
    except (ValueError, TypeError, LookupError, OSError) as error:
        return Verdict("tampered", f"{path.name}: not a readable GGUF: {error}", path.name), None
    proof = GGUFProof(fields[OUTPUT_DIGEST], tokenizer, lineage, path.stat().st_size, fields[TENSORS_SHA256])
    return GUARDS["G21"](rows) or OK, proof


def _is_ours(name: str) -> bool:
    return name.startswith(("lockstep.", "tokenizer.ggml."))


def _pieces(fields: dict) -> list[list]:
    tokens, scores, types = (fields[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type"))
    return [
        [token, float(score), int(kind)] for token, score, kind in zip(tokens, scores, types, strict=True)
    ]
