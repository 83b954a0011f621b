"""
A profile as a graph: which stages there are, what each needs, what would happen now.

Everything `tools/pipeline.py` prints is computed here as data. Edges are not declared: an input folder that
is another stage's output folder is an edge.

    for node in read_profile("demo", REPOSITORY):
        print(node.stage, node.inputs)
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from utils.pipeline.config import LoadedConfig, input_folders, load_config
from utils.pipeline.environment import changed_modules
from utils.pipeline.errors import ConfigError
from utils.pipeline.guards import GUARDS
from utils.pipeline.manifest import Manifest
from utils.pipeline.refusal import build_command, needs_force, run_command
from utils.pipeline.verdict import Verdict, differences, shown, worst
from utils.pipeline.verify import Link, Verifier, apply_waivers
from utils.pipeline.workspace import Workspace


@dataclass(frozen=True)
class Node:
    """One stage of a profile: its config, the folder it writes, the folders it reads by role."""

    stage: str
    loaded: LoadedConfig
    output: Path
    inputs: dict[str, Path]


@dataclass(frozen=True)
class Judged:
    """A node with its verdict; `note` says what is worth knowing beside it."""

    node: Node
    verdict: Verdict
    manifest: Manifest | None
    note: str = ""


def profiles(workspace: Workspace) -> list[str]:
    """Names of the profiles that have at least one stage config."""
    folders = sorted(workspace.path("config").glob("*/"))
    return [folder.name for folder in folders if _config_files(folder, workspace)]


def _config_files(folder: Path, workspace: Workspace) -> list[Path]:
    """Configs of stages, in stage order; other JSON files are no stages."""
    found = [path for path in folder.glob("*.json") if path.stem in workspace.stages]
    return sorted(found, key=lambda path: int(path.stem.split("_")[0]))


def outputs_of_profile(profile: str, workspace: Workspace) -> dict[str, tuple[str, str]]:
    """
    Output folder -> (stage, config path), read without validating: it only serves to name who builds a
    folder.
    """
    outputs = {}
    for path in _config_files(workspace.path("config") / profile, workspace):
        try:
            output = json.loads(path.read_bytes()).get("output")
        except (ValueError, OSError):
            continue
        if isinstance(output, str):
            outputs[output.rstrip("/")] = (path.stem, workspace.relative(path))
    return outputs


def read_profile(profile: str, workspace: Workspace) -> list[Node]:
    """
    The stages of a profile, parents before children. ConfigError for an unknown profile, a cycle, a
    shared output.
    """
    paths = _config_files(workspace.path("config") / profile, workspace)
    if not paths:
        known = ", ".join(profiles(workspace))
        raise ConfigError(f'there is no profile "{profile}"', fix=f"profiles: {known}")
    nodes = [_node(path, workspace) for path in paths]
    by_output: dict[Path, Node] = {}
    for node in nodes:
        if node.output in by_output:
            other = by_output[node.output].loaded.path
            shared = workspace.relative(node.output)
            raise ConfigError(f"{node.loaded.path} and {other} both write {shared}")
        by_output[node.output] = node
    return _parents_first(nodes, by_output)


def _node(path: Path, workspace: Workspace) -> Node:
    loaded = load_config(path, workspace.config_class(path.stem), workspace)
    inputs = {role: workspace.path(folder) for role, folder in input_folders(loaded.config).items()}
    return Node(path.stem, loaded, workspace.path(loaded.config.output), inputs)


def _parents_first(nodes: list[Node], by_output: dict[Path, Node]) -> list[Node]:
    ordered: list[Node] = []

    def visit(node: Node, trail: tuple[str, ...]) -> None:
        if node.stage in trail:
            raise ConfigError(f"these stages need each other: {' -> '.join([*trail, node.stage])}")
        for folder in node.inputs.values():
            if folder in by_output and by_output[folder] not in ordered:
                visit(by_output[folder], (*trail, node.stage))
        if node not in ordered:
            ordered.append(node)

    for node in nodes:
        visit(node, ())
    return ordered


def known_to(verifier: Verifier, nodes: Iterable[Node]) -> list[Node]:
    """The nodes, after the verifier learned which config writes which folder."""
    nodes = list(nodes)
    verifier.configs.update({node.output: node.loaded for node in nodes})
    return nodes


def judge(node: Node, verifier: Verifier) -> Judged:
    """The node's artifact and everything it stands on: what starting the stage would find."""
    links = verifier.chain(node.output)
    own = links[0]
    waivers = own.manifest.waivers if own.manifest else []
    judged = [apply_waivers(link, waivers) for link in links]
    problem = min(judged, key=lambda link: link.verdict.rank)
    verdict = judged[0].verdict
    if verdict.good and not problem.verdict.good:
        verdict = Verdict("stale", f"{problem.role}: {problem.verdict}", problem.role)
    return Judged(node, verdict, own.manifest)


def status(nodes: Iterable[Node], verifier: Verifier) -> list[Judged]:
    """
    Every node's own verdict: integrity, currency, edits since a child used it, waivers of the profile,
    code notes (P44).
    """
    nodes = known_to(verifier, nodes)
    links = {node.output: verifier.chain(node.output)[0] for node in nodes}
    manifests = [link.manifest for link in links.values() if link.manifest]
    waivers = [waiver for manifest in manifests for waiver in manifest.waivers]
    return [_status_of(node, links[node.output], manifests, waivers, verifier) for node in nodes]


def _status_of(
    node: Node, link: Link, manifests: list[Manifest], waivers: list[dict], verifier: Verifier
) -> Judged:
    manifest = link.manifest
    if manifest is None:
        return Judged(node, link.verdict, None)
    relative = verifier.workspace.relative(node.output)
    users = [(user, record) for user in manifests for record in user.inputs if record.path == relative]
    edited = [verifier.edited_since(user, record.role, manifest) for user, record in users]
    verdict = with_inherited(worst([*edited, apply_waivers(link, waivers).verdict]), manifest)
    return Judged(node, verdict, manifest, _code_note(node, manifest, verifier.workspace))


def with_inherited(verdict: Verdict, manifest: Manifest) -> Verdict:
    """`ok` becomes `allowed` for what was built under a waiver, its own or an inherited one (P33)."""
    waivers = manifest.waivers
    if verdict.kind != "ok" or not waivers:
        return verdict
    first = waivers[0]
    more = f", and {len(waivers) - 1} more" if len(waivers) > 1 else ""
    detail = f'{first["verdict"]} {first["component"]} of {first["stage"]}; "{first["reason"]}"{more}'
    return Verdict("allowed", detail)


def _code_note(node: Node, manifest: Manifest, workspace: Workspace) -> str:
    script = workspace.root / "scripts" / f"{node.stage}.py"
    changed = changed_modules(manifest.code, script, workspace.root)
    shown = ", ".join(changed[:3]) + (f", and {len(changed) - 3} more" if len(changed) > 3 else "")
    return f"code changed: {shown}" if changed else ""


@dataclass(frozen=True)
class Step:
    """
    What `run` would do with a node: `up to date`, `run` for a reason, or `maybe` because of a stage
    before it.
    """

    node: Node
    action: str
    reason: str
    seconds: float


def plan(nodes: Iterable[Node], verifier: Verifier) -> list[Step]:
    """The decision for each node as things are now, and how long it took last time."""
    steps: list[Step] = []
    waiting: dict[Path, str] = {}
    for node in known_to(verifier, nodes):
        own = verifier.chain(node.output)[0]
        waivers = own.manifest.waivers if own.manifest else []
        verdict = apply_waivers(own, waivers).verdict
        parents = [waiting[folder] for folder in node.inputs.values() if folder in waiting]
        seconds = own.manifest.run.seconds if own.manifest else 0.0
        if not verdict.good:
            action, reason = ("refuse" if needs_force(verdict) else "run"), str(verdict)
        elif parents:
            action, reason = "maybe", f"waits for {parents[0]}"
        else:
            action, reason = "up to date", ""
        if action != "up to date":
            waiting[node.output] = node.stage
        steps.append(Step(node, action, reason, seconds))
    return steps


def fix_of(judged: Judged, online: bool = False) -> str:
    """The command that mends one row of `status`; only a forced build asks the Hub for another commit."""
    path = judged.node.loaded.path
    if online and judged.verdict.component.startswith("source."):
        profile = path.split("/")[1]
        return f"python tools/pipeline.py run {profile} --force {judged.node.stage}"
    if judged.verdict.kind == "mismatched" or needs_force(judged.verdict):
        return build_command(judged.node.stage, path, force=True)
    return run_command(judged.node.stage, path)


def first_problem(rows: Iterable[Judged]) -> Judged | None:
    """The first node that is not good, worst kind first."""
    bad = [row for row in rows if not row.verdict.good]
    return min(bad, key=lambda row: row.verdict.rank, default=None)


def describe_difference(before: Manifest, after: Manifest) -> tuple[list[str], list[str]]:
    """What two manifests share and where they differ, as short phrases."""
    same, differs = [], []
    for name in ("stage", "stage_version"):
        first, second = getattr(before, name), getattr(after, name)
        (same if first == second else differs).append(
            name if first == second else f"{name} {first} -> {second}"
        )
    if before.tokenizer or after.tokenizer:
        equal = before.tokenizer.get("fingerprint") == after.tokenizer.get("fingerprint")
        (same if equal else differs).append("tokenizer")
    changes = [
        *GUARDS["G10"](before.semantic, after.semantic),
        *GUARDS["G11"](before.input_digests, after.input_digests),
        *GUARDS["G20"](before.source_digests, after.source_digests),
    ]
    differs += [f"{name} {shown(old)} -> {shown(new)}" for name, old, new in changes]
    files = [{output.path: output.sha256 for output in manifest.outputs} for manifest in (before, after)]
    names = {*files[0], *files[1]}
    changed = sum(files[0].get(name) != files[1].get(name) for name in names)
    (differs if changed else same).append(f"{changed} of {len(names)} files" if changed else "all files")
    metrics = differences(before.metrics, after.metrics, "metrics")
    differs += [f"{name} {_number(old)} -> {_number(new)}" for name, old, new in metrics[:5]]
    return same, differs


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
