"""
Open a model to talk to: a checkpoint folder, an adapter folder or a .gguf file, proven before it is loaded.

    opened = open_model(Path("checkpoints/demo/gguf/model-q8_0.gguf"), REPOSITORY, threads=2)
    opened.engine, opened.encoder, opened.title

A folder must match its manifest; a GGUF beside a manifest must be the listed file, and a lone one must prove
itself from its own header. What does not is refused with exit code 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from utils.pipeline.errors import ConfigError, UpstreamError
from utils.pipeline.lineage import prove_gguf
from utils.pipeline.manifest import Manifest
from utils.pipeline.verdict import Verdict
from utils.pipeline.verify import Verifier
from utils.pipeline.workspace import Workspace

if TYPE_CHECKING:
    from utils.chat.masks import ChatEncoder
    from utils.serving.engine import Engine
    from utils.serving.service import ServedModel
    from utils.serving.slots import Slots

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Opened:
    """
    A model ready to write, the template that turns messages into its prompt, one line that names it, and its
    digests.
    """

    engine: Engine
    encoder: ChatEncoder
    title: str
    model: ServedModel
    open_slots: Callable[[int], Slots]
    """Makes room for so many answers at once."""


def open_model(path: Path, workspace: Workspace, threads: int = 0) -> Opened:
    """
    Verify and load. ConfigError for a path that is no model, UpstreamError (exit 3) for one that cannot
    be trusted.
    """
    path = workspace.path(path)
    if path.suffix == ".gguf" and path.is_file():
        return _open_gguf(path, workspace, threads)
    if (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        return _open_checkpoint(path, workspace, threads)
    raise ConfigError(f"{path} is neither a .gguf file nor a checkpoint folder", fix=_models_near(path))


def _models_near(path: Path) -> str:
    found = sorted(path.glob("*.gguf")) if path.is_dir() else []
    if found:
        return f"--model {found[0]}"
    return "make full-pipeline builds checkpoints/demo/gguf/model-q8_0.gguf; or give --model another model"


def _open_gguf(path: Path, workspace: Workspace, threads: int) -> Opened:
    from utils.chat.masks import ChatEncoder
    from utils.chat.templates import ChatTemplate
    from utils.export.template_marks import restore_marks
    from utils.serving.engine import GGUFEngine
    from utils.serving.gguf_slots import GGUFSlots
    from utils.serving.service import ServedModel

    seal = ""
    if (path.parent / MANIFEST).is_file():
        seal = _trusted(path.parent, Verifier(workspace), path).manifest_sha256
    verdict, proof = prove_gguf(path)
    _require(path, verdict)
    engine = GGUFEngine(path, threads=threads or None)
    template = engine.metadata.get("tokenizer.chat_template", "")
    if not template:
        engine.close()
        raise ConfigError(
            f"{path.name} carries no chat template", fix="convert a model that was tuned on conversations"
        )
    encoder = ChatEncoder(ChatTemplate(restore_marks(template), f"chat template of {path.name}"), engine)
    waivers = [waiver for entry in proof.lineage for waiver in entry["mismatches_allowed"]]
    model = ServedModel(
        name=_name(path.with_suffix(""), workspace),
        kind="gguf",
        type=_file_type(engine.metadata),
        output_digest=proof.output_digest,
        tokenizer_fingerprint=proof.tokenizer["fingerprint"],
        template_sha256=encoder.template.sha256,
        manifest_sha256=seal,
        mismatches_allowed=_told(waivers),
    )
    title = f"{path.name}  model {proof.output_digest[:12]}  tensors {proof.tensors_sha256[:12]}"
    return Opened(engine, encoder, title, model, partial(GGUFSlots, engine, threads=threads))


def _told(waivers: list[dict]) -> tuple[str, ...]:
    """Each mismatch that was allowed on the way, once."""
    texts = (f"{w['stage']} {w['role']}: {w['component']} {w['before']} -> {w['after']}" for w in waivers)
    return tuple(dict.fromkeys(texts))


def _name(path: Path, workspace: Workspace) -> str:
    """What the model is called by those who ask for it: `demo/gguf/model-q8_0`."""
    name = workspace.relative(path)
    return path.name if Path(name).is_absolute() else name.removeprefix("checkpoints/")


def _file_type(metadata: dict[str, str]) -> str:
    """How most tensors of a GGUF are stored: "q8_0"."""
    from gguf import LlamaFileType

    return LlamaFileType(int(metadata["general.file_type"])).name.removeprefix("MOSTLY_").lower()


def _open_checkpoint(folder: Path, workspace: Workspace, threads: int) -> Opened:
    import torch

    from utils.chat.masks import ChatEncoder
    from utils.chat.templates import ChatTemplate
    from utils.models.adapt import attach_adapter, is_adapter
    from utils.models.load import load_model
    from utils.serving.engine import CheckpointEngine
    from utils.serving.service import ServedModel
    from utils.serving.slots import CheckpointSlots
    from utils.tokenizer.frozen import FrozenTokenizer

    if threads:
        torch.set_num_threads(threads)
    verifier = Verifier(workspace)
    manifest = _trusted(folder, verifier)
    if is_adapter(folder):
        base = _trusted_base(manifest, verifier)
        model = attach_adapter(load_model(base), folder)
    else:
        model = load_model(folder)
    template = folder / "chat_template.jinja"
    if not template.is_file():
        raise ConfigError(
            f"{workspace.relative(folder)} has no chat template: "
            "a base model continues text and does not chat",
            fix="give --model a model of stage 70 or later",
        )
    tokenizer = FrozenTokenizer(folder)
    encoder = ChatEncoder(ChatTemplate.load(template), tokenizer)
    served = ServedModel(
        name=_name(folder, workspace),
        kind="adapter" if is_adapter(folder) else "checkpoint",
        type=str(model.dtype).removeprefix("torch."),
        output_digest=manifest.output_digest,
        tokenizer_fingerprint=tokenizer.fingerprint,
        template_sha256=encoder.template.sha256,
        manifest_sha256=manifest.manifest_sha256,
        mismatches_allowed=_told(manifest.waivers),
    )
    title = f"{workspace.relative(folder)}  {manifest.stage}  {manifest.output_digest[:12]}"
    engine = CheckpointEngine(model, tokenizer, encoder.stop_ids)
    return Opened(engine, encoder, title, served, partial(CheckpointSlots, model))


def _trusted(folder: Path, verifier: Verifier, named: Path | None = None) -> Manifest:
    manifest, verdict = verifier.artifact(folder)
    _require(named or folder, verdict)
    return manifest


def _trusted_base(adapter: Manifest, verifier: Verifier) -> Path:
    """
    The folder of the base that the adapter was trained on; UpstreamError if another model lies there now.
    """
    from utils.serving.adapters import recorded_base, refuse_other_base

    record = recorded_base(adapter)
    folder = verifier.workspace.path(record.path)
    refuse_other_base("chat", record.output_digest, _trusted(folder, verifier).output_digest)
    return folder


def _require(path: Path, verdict: Verdict) -> None:
    if not verdict.good:
        raise UpstreamError(
            f"{path.name} is {verdict}", fix="restore the file, or build it again", verdict=verdict.kind
        )
