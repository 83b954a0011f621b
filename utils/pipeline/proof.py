"""
The proof before the work: every input verified down to its raw sources, one tokenizer, waivers applied and
inherited.

    proof = prove_inputs("50_pretrain", loaded, verifier, reason="")
    proof.inputs, proof.sources, proof.key, proof.waivers
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from utils.pipeline.config import LoadedConfig, input_folders
from utils.pipeline.errors import UpstreamError
from utils.pipeline.guards import GUARDS
from utils.pipeline.inputs import Input, Source
from utils.pipeline.manifest import Manifest
from utils.pipeline.refusal import refuse_input, refuse_tokenizers, verdict_fields
from utils.pipeline.tokenizer_identity import carries_tokenizer, changed_probe, tokenizer_block
from utils.pipeline.verdict import Verdict, shown
from utils.pipeline.verify import Currency, Link, Verifier, apply_waivers, display_roles


@dataclass(frozen=True)
class Proof:
    """What a stage may stand on, and the key of what it would build from it."""

    stage: str
    inputs: dict[str, Input]
    sources: dict[str, Source]
    currency: Currency
    waivers: list[dict]
    tokenizer: dict = field(default_factory=dict)

    @property
    def key(self) -> str:
        return self.currency.key(self.stage)


def prove_inputs(
    stage: str, loaded: LoadedConfig, verifier: Verifier, reason: str = "", own: Manifest | None = None
) -> Proof:
    """
    Verify every input and match their tokenizers. UpstreamError at the first that cannot be used.

    `reason` (of --allow-mismatch) accepts waivable verdicts; `own` is the stage's present artifact, whose
    waivers still hold.
    """
    workspace, config = verifier.workspace, loaded.config
    folders = {role: workspace.path(folder) for role, folder in input_folders(config).items()}
    names = display_roles(set(folders))
    waivers = list(own.waivers) if own else []
    inputs: dict[str, Input] = {}
    inherited: list[dict] = []
    for role, folder in folders.items():
        links = verifier.chain(folder, role)
        manifest = links[0].manifest
        known = [*waivers, *(manifest.waivers if manifest else [])]
        used = _accept(stage, names[role], links, known, reason, verifier, loaded.path)
        inherited += [*(manifest.waivers if manifest else []), *used]
        inputs[role] = Input(names[role], folder, manifest)
    tokenizer, used = _match_tokenizers(stage, inputs, waivers, reason, loaded.path, verifier)
    sources = {
        source.name: Source(source, source.record(workspace), workspace)
        for source in config.external_sources(workspace)
    }
    currency = Currency(
        loaded.semantic,
        {role: found.manifest.output_digest for role, found in inputs.items()},
        {name: source.record["digest"] for name, source in sources.items()},
        type(config).stage_version,
    )
    return Proof(stage, inputs, sources, currency, _unique([*inherited, *used]), tokenizer)


def _accept(
    stage: str,
    role: str,
    links: Sequence[Link],
    known: list[dict],
    reason: str,
    verifier: Verifier,
    config_path: str,
) -> list[dict]:
    """The waivers under which this chain may be used; UpstreamError if it may not."""
    used = []
    judged = [apply_waivers(link, known) for link in links]
    for link in sorted(judged, key=lambda link: link.verdict.rank):
        if link.verdict.good:
            used += [waiver for waiver in known if link.verdict.kind == "allowed" and _names(waiver, link)]
        elif not reason:
            raise refuse_input(stage, role, judged, link, verifier, config_path)
        elif not link.verdict.waivable:
            raise _cannot_be_allowed(stage, role, link.verdict, verifier.workspace.relative(link.folder))
        else:
            used.append(_waiver(link.stage, role, link.verdict, reason, at=stage))
    return used


def _names(waiver: dict, link: Link) -> bool:
    return GUARDS["G24"](waiver, link.stage, link.verdict)


def _waiver(stage: str, role: str, verdict: Verdict, reason: str, at: str) -> dict:
    facts = {
        "verdict": verdict.kind,
        "component": verdict.component,
        "before": verdict.before,
        "after": verdict.after,
    }
    return {"stage": stage, "role": role} | facts | {"reason": reason, "at": at}


def _cannot_be_allowed(stage: str, role: str, verdict: Verdict, path: str) -> UpstreamError:
    return UpstreamError(
        f'{stage} cannot start: input "{role}": {path} is {verdict}\n'
        f"  {verdict.kind} inputs cannot be allowed; rebuild or restore the file",
        fix="rerun without --allow-mismatch to see the command that rebuilds it",
        **verdict_fields(verdict, role),
    )


def _match_tokenizers(
    stage: str, inputs: dict[str, Input], known: list[dict], reason: str, config_path: str, verifier: Verifier
) -> tuple[dict, list[dict]]:
    """The tokenizer that all inputs share ({} for none), and the waivers it took."""
    blocks: dict[str, dict] = {}
    for found in inputs.values():
        blocks[found.role] = _block_now(stage, found)
    verdict = GUARDS["G13"](blocks)
    shared = next((block for block in blocks.values() if block.get("chat_template_sha256")), None)
    shared = shared or next((block for block in blocks.values() if block), {})
    if verdict is None:
        return shared, []
    covering = [waiver for waiver in known if GUARDS["G24"](waiver, stage, verdict)]
    if covering:
        return shared, covering
    if reason and verdict.waivable:
        return shared, [_waiver(stage, "tokenizer", verdict, reason, at=stage)]
    folders: dict[str, Path] = {found.role: found.path for found in inputs.values()}
    raise refuse_tokenizers(stage, verdict, blocks, folders, config_path, verifier.workspace)


def _block_now(stage: str, found: Input) -> dict:
    """
    The tokenizer of an input as its files give it today; UpstreamError when its own manifest says
    otherwise.
    """
    recorded = found.manifest.tokenizer
    if not carries_tokenizer(found.path):
        return recorded
    now = tokenizer_block(found.path)
    if verdict := GUARDS["G13"]({"recorded": recorded, "found": now}):
        cause = changed_probe(found.path) or "the library reads the same files differently"
        before, after = shown(recorded["fingerprint"]), shown(now["fingerprint"])
        raise UpstreamError(
            f'{stage} cannot start: input "{found.role}" ({found.path.name}) is mismatched\n'
            f"  found     tokenizer: recorded {before}, computed now {after}\n"
            f"  differs   {cause}",
            fix="install the library versions of its manifest, or rebuild from 30_train_tokenizer",
            **verdict_fields(verdict, found.role),
        )
    return now


def _unique(waivers: list[dict]) -> list[dict]:
    return [waiver for index, waiver in enumerate(waivers) if waiver not in waivers[:index]]
