"""
The proof before the work: every input verified down to its raw sources, one tokenizer, waivers applied and
inherited.

    proof = prove_inputs("50_pretrain", loaded, verifier, reason="")
    proof.inputs, proof.sources, proof.key, proof.waivers
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from utils.pipeline.config import LoadedConfig, input_folders
from utils.pipeline.guards import GUARDS
from utils.pipeline.held_out import ALLOWED, KEPT_CLEAN, UNKNOWN, corpora_behind
from utils.pipeline.inputs import Input, Source
from utils.pipeline.manifest import Manifest
from utils.pipeline.refusal import refuse_input, refuse_library, refuse_tokenizers, refuse_unclean
from utils.pipeline.revisions import known_revisions, pin
from utils.pipeline.tokenizer_files import carries_tokenizer
from utils.pipeline.tokenizer_identity import tokenizer_block
from utils.pipeline.verdict import Verdict
from utils.pipeline.verify import Currency, Link, Verifier, apply_waivers, display_roles

ADAPTER_CONFIG = "adapter_config.json"
CANNOT_BE_ALLOWED = "{} inputs cannot be allowed; rebuild or restore the file"


@dataclass(frozen=True)
class Proof:
    """What a stage may stand on, and the key of what it would build from it."""

    stage: str
    inputs: dict[str, Input]
    sources: dict[str, Source]
    currency: Currency
    waivers: list[dict]
    tokenizer: dict = field(default_factory=dict)
    corpora: dict[str, str] = field(default_factory=dict)
    """Path of every corpus behind a measured model -> whether it was kept clean of what is measured on."""

    @property
    def key(self) -> str:
        return self.currency.key(self.stage)


def prove_inputs(
    stage: str,
    loaded: LoadedConfig,
    verifier: Verifier,
    reason: str = "",
    own: Manifest | None = None,
    forced: bool = False,
) -> Proof:
    """
    Verify every input, match their tokenizers and their base. UpstreamError for the worst of them.

    `reason` (of --allow-mismatch) accepts waivable verdicts; `own` is the stage's present artifact, whose
    waivers still hold; `forced` asks the Hub again what its branches stand for.
    """
    workspace, config = verifier.workspace, loaded.config
    folders = {role: workspace.path(folder) for role, folder in input_folders(config).items()}
    names = display_roles(set(folders))
    chains = {names[role]: verifier.chain(folder, role, own) for role, folder in folders.items()}
    manifests = [links[0].manifest for links in chains.values() if links[0].manifest]
    known = [waiver for manifest in [own, *manifests] if manifest for waiver in manifest.waivers]
    case = _Case(stage, loaded.path, verifier, reason, _unique(known))
    chains = {role: [apply_waivers(link, known) for link in links] for role, links in chains.items()}
    case.refuse_beyond_waiving(chains)
    inputs = {role: Input(names[role], folders[role], chains[names[role]][0].manifest) for role in folders}
    tokenizer = case.match_tokenizers({found.role: found for found in inputs.values()})
    case.match_base({found.role: found for found in inputs.values()})
    case.refuse_stale(chains)
    known = [] if forced else known_revisions(workspace.path(config.output), own)
    pinned = [pin(source, known) for source in config.external_sources(workspace)]
    sources = {source.name: Source(source, source.record(workspace), workspace) for source in pinned}
    held_out = [sources[name] for name in type(config).held_out_sources if name in sources]
    corpora = case.match_held_out(held_out, inputs) if held_out else {}
    currency = Currency(
        loaded.semantic,
        {role: found.manifest.output_digest for role, found in inputs.items()},
        {name: source.record["digest"] for name, source in sources.items()},
        type(config).stage_version,
    )
    inherited = [waiver for manifest in manifests for waiver in manifest.waivers]
    return Proof(stage, inputs, sources, currency, _unique([*inherited, *case.used]), tokenizer, corpora)


@dataclass
class _Case:
    """One stage asking for its inputs: what is allowed already, and what of that it had to use."""

    stage: str
    config_path: str
    verifier: Verifier
    reason: str
    known: list[dict]
    used: list[dict] = field(default_factory=list)

    def refuse_beyond_waiving(self, chains: Mapping[str, Sequence[Link]]) -> None:
        """Tampered, missing, incomplete, unreadable: the worst of all inputs, whatever was allowed."""
        self._refuse_first(chains, lambda verdict: not verdict.good and not verdict.waivable)

    def refuse_stale(self, chains: Mapping[str, Sequence[Link]]) -> None:
        """Stale inputs, unless a waiver of this run or an earlier one covers them."""
        if not self.reason:
            self._refuse_first(chains, lambda verdict: not verdict.good)
        for role, links in chains.items():
            for link in links:
                if link.verdict.kind == "allowed":
                    self._use_known(link.stage, link.verdict)
                elif not link.verdict.good:
                    self.used.append(self._waiver(link.stage, role, link.verdict))

    def _refuse_first(self, chains: Mapping[str, Sequence[Link]], refused: Callable[[Verdict], bool]) -> None:
        bad = [(role, link) for role, links in chains.items() for link in links if refused(link.verdict)]
        if bad:
            role, worst_link = min(bad, key=lambda row: row[1].verdict.rank)
            note = CANNOT_BE_ALLOWED.format(worst_link.verdict.kind) if self.reason else ""
            links = chains[role]
            raise refuse_input(self.stage, role, links, worst_link, self.verifier, self.config_path, note)

    def _use_known(self, stage: str, verdict: Verdict) -> bool:
        """Whether an earlier waiver covers this; it is then inherited."""
        covering = [waiver for waiver in self.known if GUARDS["G24"](waiver, stage, verdict)]
        self.used += covering
        return bool(covering)

    def _waiver(self, stage: str, role: str, verdict: Verdict) -> dict:
        change = {"component": verdict.component, "before": verdict.before, "after": verdict.after}
        facts = {"stage": stage, "role": role, "verdict": verdict.kind}
        return facts | change | {"reason": self.reason, "at": self.stage}

    def _allows(self, role: str, verdict: Verdict) -> bool:
        """Whether a mismatch among the inputs is waived, by an earlier run or by this one."""
        if not verdict.waivable:
            return False
        if self._use_known(self.stage, verdict):
            return True
        if self.reason:
            self.used.append(self._waiver(self.stage, role, verdict))
        return bool(self.reason)

    def match_tokenizers(self, inputs: Mapping[str, Input]) -> dict:
        """The tokenizer that all inputs share, {} for none (P36)."""
        blocks = {role: self._block_now(found) for role, found in inputs.items()}
        verdict = GUARDS["G13"](blocks)
        if verdict and not self._allows("tokenizer", verdict):
            workspace = self.verifier.workspace
            raise refuse_tokenizers(self.stage, verdict, blocks, inputs, self.config_path, workspace)
        carried = [block for block in blocks.values() if block]
        with_template = [block for block in carried if block["chat_template_sha256"]]
        return next(iter([*with_template, *carried]), {})

    def _block_now(self, found: Input) -> dict:
        """The tokenizer of an input as its files give it today, which is what its manifest must say."""
        recorded = found.manifest.tokenizer
        if not carries_tokenizer(found.path):
            return recorded
        now = tokenizer_block(found.path)
        verdict = GUARDS["G13"]({"recorded": recorded, "found": now})
        if verdict and not self._allows(found.role, verdict):
            where = self.verifier.workspace
            raise refuse_library(self.stage, verdict, found, (recorded, now), self.config_path, where)
        return now

    def match_base(self, inputs: Mapping[str, Input]) -> None:
        """Every adapter among the inputs stands on the base it was trained on (P36)."""
        for role, found in inputs.items():
            recorded = found.manifest.input_digests.get("base")
            if "base" not in inputs or recorded is None or not found.lists(ADAPTER_CONFIG):
                continue
            verdict = GUARDS["G25"](recorded, inputs["base"].manifest.output_digest)
            if verdict and not self._allows(role, verdict):
                link = Link(found.path, found.manifest.stage, role, 0, verdict, found.manifest)
                raise refuse_input(self.stage, role, [link], link, self.verifier, self.config_path)

    def match_held_out(self, sets: Sequence[Source], inputs: Mapping[str, Input]) -> dict[str, str]:
        """Every corpus behind the inputs was kept clean of these files; an ancestor may be unknown (D21)."""
        found = {}
        for corpus in corpora_behind(inputs.values(), self.verifier):
            found[corpus.path] = UNKNOWN
            if corpus.is_unknown:
                continue
            missing = [file for one in sets for file in corpus.lacks(one)]
            verdict = GUARDS["G27"](corpus.path, corpus.manifest.output_digest, missing)
            if verdict and not self._allows("decontamination", verdict):
                raise refuse_unclean(self.stage, verdict, corpus.manifest, missing, self.config_path)
            found[corpus.path] = ALLOWED if verdict else KEPT_CLEAN
        return found


def _unique(waivers: list[dict]) -> list[dict]:
    """Each change once, however many inputs stand on it."""
    changes = [{name: waiver[name] for name in waiver if name != "role"} for waiver in waivers]
    return [waiver for index, waiver in enumerate(waivers) if changes[index] not in changes[:index]]
