"""
Verification: is this folder what a stage wrote, would I get the same now, and what does it stand on?

A `Verifier` is one phase of one program: within it every file is hashed once and every folder judged once.

    verifier = Verifier(workspace)
    verifier.artifact(Path("data/demo/packed"))     # integrity of the folder itself
    verifier.chain(Path("checkpoints/demo/base"))   # that, currency, and the same for everything below it
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from utils.pipeline.config import LoadedConfig, StageConfig, input_folders, load_config
from utils.pipeline.errors import ConfigError
from utils.pipeline.external import ExternalSource
from utils.pipeline.guards import GUARDS, MANIFEST
from utils.pipeline.listed import judge_files
from utils.pipeline.manifest import Manifest, compute_key, read_manifest
from utils.pipeline.revisions import kept, known_revisions, resolve
from utils.pipeline.verdict import OK, Change, Verdict, shown, worst
from utils.pipeline.workspace import Workspace

Mode = Literal["full", "cached"]


@dataclass(frozen=True)
class Link:
    """One artifact of a chain, as it was judged; `depth` 0 is where the walk began."""

    folder: Path
    stage: str
    role: str
    depth: int
    verdict: Verdict
    manifest: Manifest | None
    archived: str = ""  # seal of the manifest that is archived, for an ancestor that is not on disk

    @property
    def on_disk(self) -> bool:
        return not self.archived


@dataclass(frozen=True)
class Currency:
    """What a stage would be built from now."""

    semantic: dict
    inputs: dict[str, str]  # role -> output digest
    sources: dict[str, str]  # name -> digest
    stage_version: int

    def key(self, stage: str) -> str:
        return compute_key(stage, self.stage_version, self.semantic, self.inputs, self.sources)


def changes_since(stored: Currency, now: Currency) -> list[Change]:
    """Every component in which `now` differs from what an artifact was built from."""
    names = display_roles({*stored.inputs, *now.inputs})
    stored_inputs, inputs = (
        {names[role]: found for role, found in side.inputs.items()} for side in (stored, now)
    )
    return [
        *GUARDS["G12"](stored.stage_version, now.stage_version),
        *GUARDS["G10"](stored.semantic, now.semantic),
        *GUARDS["G11"](stored_inputs, inputs),
        *GUARDS["G20"](stored.sources, now.sources),
    ]


def display_roles(roles: set[str]) -> dict[str, str]:
    """
    Role -> the name in messages: a list with one entry is called by its plain name, `data` for `data.0`.
    """
    plain = {role: role.removesuffix(".0") for role in roles}
    return {role: name if f"{name}.1" not in roles else role for role, name in plain.items()}


def stored_currency(manifest: Manifest) -> Currency:
    """What the artifact was built from."""
    return Currency(
        manifest.semantic, manifest.input_digests, manifest.source_digests, manifest.stage_version
    )


class Verifier:
    """
    Judges artifacts of one workspace; `mode` is how files are hashed (P39), ancestors are always checked
    by the cache. `online` asks the Hub what its branches stand for now.
    """

    def __init__(self, workspace: Workspace, mode: Mode = "full", online: bool = False) -> None:
        self.workspace = workspace
        self.mode = mode
        self.online = online
        self.configs: dict[Path, LoadedConfig] = {}  # output folder -> who writes it, where that is known
        self._artifacts: dict[Path, tuple[Mode, Manifest | None, Verdict]] = {}
        self._manifests: dict[Path, tuple[Manifest | None, Verdict]] = {}
        self._currencies: dict[Path, Verdict] = {}
        self._sources: dict[tuple, str] = {}

    def artifact(self, folder: Path, mode: Mode | None = None) -> tuple[Manifest | None, Verdict]:
        """Whether `folder` is what its manifest says (P19); its manifest comes along if it could be read."""
        folder, mode = self.workspace.path(folder), mode or self.mode
        known = self._artifacts.get(folder)
        if known is None or (mode, known[0]) == ("full", "cached"):
            known = self._artifacts[folder] = (mode, *self._judge(folder, mode))
        return known[1:]

    def _judge(self, folder: Path, mode: Mode) -> tuple[Manifest | None, Verdict]:
        if not folder.is_dir():
            return None, self._absent(folder)
        if unsealed := GUARDS["G17"](folder):
            return None, unsealed
        manifest, verdict = self._read(folder)
        if manifest is None or not verdict.good:
            return manifest, verdict
        cache = self.workspace.digest_cache if mode == "cached" else None
        return manifest, judge_files(folder, manifest, cache)

    def manifest(self, folder: Path) -> Manifest | None:
        """The manifest of `folder` as far as it can be read, without looking at the files that it lists."""
        return self._read(folder)[0] if (folder / MANIFEST).is_file() else None

    def _read(self, folder: Path) -> tuple[Manifest | None, Verdict]:
        if folder not in self._manifests:
            self._manifests[folder] = read_manifest(folder)
        return self._manifests[folder]

    def _absent(self, folder: Path) -> Verdict:
        partial = folder.with_name(folder.name + ".partial")
        if partial.is_dir():
            return Verdict("incomplete", f"unfinished build in {self.workspace.relative(partial)}")
        return Verdict("missing")

    def currency(self, folder: Path, manifest: Manifest) -> Verdict:
        """Whether the stage would build this again now: config file, inputs and sources as they are (P20)."""
        if folder not in self._currencies:
            self._currencies[folder] = self._judge_currency(folder, manifest)
        return self._currencies[folder]

    def forget(self, folder: Path) -> None:
        """`folder` was built again: judge it, and what depends on it, anew."""
        self._artifacts.pop(folder, None)
        self._manifests.pop(folder, None)
        self._currencies.clear()

    def _judge_currency(self, folder: Path, manifest: Manifest) -> Verdict:
        try:
            loaded = self.config_of(folder, manifest)
        except ConfigError as error:
            return Verdict("stale", f"config: {error}", "config", waivable=True)
        stored = stored_currency(manifest)
        if loaded is None:
            folders = {record.role: record.path for record in manifest.inputs}
            now = replace(stored, inputs=self._inputs_on_disk(folders, stored.inputs))
        else:
            try:
                now = self.current(loaded, stored)
            except ConfigError as error:
                return Verdict("stale", f"config: {error}", "config", waivable=True)
        changes = changes_since(stored, now)
        return Verdict.changed("stale", changes) if changes else OK

    def config_of(self, folder: Path, manifest: Manifest) -> LoadedConfig | None:
        """
        The config that writes this folder: the profile's where that is known, else the file named in
        the manifest as it is now, if it still exists and still describes this folder.
        """
        if folder in self.configs:
            return self.configs[folder]
        path = self.workspace.path(manifest.config.path)
        if not path.is_file() or manifest.stage not in self.workspace.stages:
            return None
        loaded = load_config(path, self.workspace.config_class(manifest.stage), self.workspace)
        same_folder = self.workspace.path(loaded.config.output) == self.workspace.path(folder)
        return loaded if same_folder else None

    def current(self, loaded: LoadedConfig, stored: Currency | None = None) -> Currency:
        """
        What the stage would be built from now. What is no longer on disk counts as unchanged when `stored`
        knows it: people delete corpora, and that makes nothing stale.
        """
        config = loaded.config
        inputs = self._inputs_on_disk(input_folders(config), stored.inputs if stored else {})
        sources = self.source_digests(config, stored.sources if stored else {})
        return Currency(loaded.semantic, inputs, sources, type(config).stage_version)

    def _inputs_on_disk(self, folders: Mapping[str, str], stored: Mapping[str, str]) -> dict[str, str]:
        digests = {}
        for role, folder in folders.items():
            manifest = self.manifest(self.workspace.path(folder))
            if manifest is not None:
                digests[role] = manifest.output_digest
            elif role in stored:
                digests[role] = stored[role]
        return digests

    def source_digests(self, config: StageConfig, stored: Mapping[str, str]) -> dict[str, str]:
        """
        Name -> digest of every external source, hashed now; ConfigError if one is gone that `stored`
        does not know.
        """
        try:
            found = config.external_sources(self.workspace)
        except ConfigError:
            if stored:
                return dict(stored)
            raise
        pinned = [self._pinned(source, self.workspace.path(config.output)) for source in found]
        return {source.name: self._source_digest(source) for source in pinned}

    def _pinned(self, source: ExternalSource, output: Path) -> ExternalSource:
        """A branch of the Hub at the commit that was resolved for it; floating still if none ever was."""
        if not source.is_floating:
            return source
        if self.online:
            return resolve(source)
        return kept(source, known_revisions(output, self.manifest(output))) or source

    def _source_digest(self, source: ExternalSource) -> str:
        identity = (source.name, source.files, repr(source.parts))
        if identity not in self._sources:
            cache = self.workspace.digest_cache if self.mode == "cached" else None
            self._sources[identity] = source.record(self.workspace, cache)["digest"]
        return self._sources[identity]

    def chain(self, folder: Path, role: str = "", user: Manifest | None = None) -> list[Link]:
        """
        The folder and everything it was made from, depth first, each once (P21). `user` was made from it
        under `role`.
        """
        return list(self._walk(self.workspace.path(folder), role, 0, user, set()))

    def _walk(
        self, folder: Path, role: str, depth: int, user: Manifest | None, seen: set[Path]
    ) -> Iterator[Link]:
        if folder in seen:
            yield from self._judge_again(folder, role, depth, user)
            return
        seen.add(folder)
        manifest, verdict = self.artifact(folder, None if depth == 0 else "cached")
        if depth and verdict.kind in ("missing", "incomplete") and not folder.is_dir():
            yield self._not_on_disk(folder, role, depth, user)
            return
        if manifest is not None:
            edited = self.edited_since(user, role, manifest) if user else OK
            verdict = worst([verdict, edited, self.currency(folder, manifest) if verdict.good else OK])
        stage = manifest.stage if manifest else ""
        yield Link(folder, stage, role, depth, verdict, manifest)
        for record in manifest.inputs if manifest else ():
            yield from self._walk(self.workspace.path(record.path), record.role, depth + 1, manifest, seen)

    def _judge_again(self, folder: Path, role: str, depth: int, user: Manifest) -> Iterator[Link]:
        """Of a folder that another branch has led to: whether it was edited since this branch used it."""
        manifest = self.manifest(folder)
        edited = self.edited_since(user, role, manifest) if manifest else OK
        if not edited.good:
            yield Link(folder, manifest.stage, role, depth, edited, manifest)

    def _not_on_disk(self, folder: Path, role: str, depth: int, user: Manifest) -> Link:
        record = next(record for record in user.inputs if record.role == role)
        return Link(folder, record.stage, role, depth, OK, None, archived=record.manifest_sha256)

    def edited_since(self, user: Manifest, role: str, parent: Manifest) -> Verdict:
        """Whether `parent`, still the same run, was sealed again after `user` read it (P23)."""
        record = next((record for record in user.inputs if record.role == role), None)
        if record is None:
            return OK
        runs, seals = (record.run_id, parent.run.id), (record.manifest_sha256, parent.manifest_sha256)
        return GUARDS["G18"](user.stage, runs, seals) or OK


def apply_waivers(link: Link, waivers: Sequence[Mapping]) -> Link:
    """
    The link with its verdict allowed where a waiver covers exactly this change (P33).

    A waiver for the same component and another change is named, so that the user sees why it no longer helps.
    """
    if link.verdict.good or not link.verdict.waivable:
        return link
    stage = link.stage
    for waiver in waivers:
        if GUARDS["G24"](waiver, stage, link.verdict):
            return replace(link, verdict=link.verdict.allowed(waiver["reason"]))
    for waiver in waivers:
        if (waiver["stage"], waiver["component"]) == (stage, link.verdict.component):
            given = f"{shown(waiver['before'])} -> {shown(waiver['after'])}"
            detail = f'{link.verdict.detail}, not covered by the waiver for {given} ("{waiver["reason"]}")'
            return replace(link, verdict=replace(link.verdict, detail=detail))
    return link


def verify_artifact(folder: Path, workspace: Workspace, mode: Mode = "full") -> Verdict:
    """The verdict on one folder alone, without looking at what it was made from."""
    return Verifier(workspace, mode).artifact(folder)[1]
