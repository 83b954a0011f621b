"""
Held-out text: was every corpus behind a model kept clean of the files that the model is measured on?

A corpus records the files of the evaluation sets that it was decontaminated against; a stage that measures on
local files names them in `held_out_sources`. The two are compared by content, so renaming a set changes
nothing and editing one does.

    for corpus in corpora_behind(inputs.values(), verifier):
        corpus.lacks(source)            # files of the source that the corpus was not kept clean of
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from utils.pipeline.external import EVALUATION
from utils.pipeline.inputs import Input, Source
from utils.pipeline.lineage import archived_manifest
from utils.pipeline.manifest import Manifest
from utils.pipeline.verify import Verifier

CORPUS_STAGE, RAW_TEXT_STAGE = "20_prepare_corpus", "50_pretrain"
KEPT_CLEAN, ALLOWED, UNKNOWN = "kept clean", "allowed", "unknown"


@dataclass(frozen=True)
class Ancestor:
    """An artifact behind an input; no manifest when neither it nor its archived manifest can be found."""

    path: str
    manifest: Manifest | None

    @property
    def is_corpus(self) -> bool:
        return self.manifest is not None and self.manifest.stage == CORPUS_STAGE

    @property
    def is_unknown(self) -> bool:
        """Whether nobody knows what text went in: no manifest, or text that no stage has looked at."""
        return self.manifest is None or (
            self.manifest.stage == RAW_TEXT_STAGE and bool(self.manifest.sources)
        )

    def lacks(self, source: Source) -> list[Mapping]:
        """The files of an evaluation set (path, sha256) that this corpus was not kept clean of."""
        found = [file.sha256 for one in self.manifest.sources if one.kind == EVALUATION for file in one.files]
        return [file for file in source.record["files"] if file["sha256"] not in found]


def corpora_behind(inputs: Iterable[Input], verifier: Verifier) -> list[Ancestor]:
    """
    Every corpus among the inputs and their ancestors, and every ancestor that cannot be found or has read
    raw text, by path.
    """
    found = {one.path: one for one in _ancestors(inputs, verifier)}
    return sorted(
        (one for one in found.values() if one.is_corpus or one.is_unknown), key=lambda one: one.path
    )


def _ancestors(inputs: Iterable[Input], verifier: Verifier) -> Iterator[Ancestor]:
    workspace, seen = verifier.workspace, set()
    waiting = [Ancestor(workspace.relative(found.path), found.manifest) for found in inputs]
    while waiting:
        ancestor = waiting.pop(0)
        yield ancestor
        for record in ancestor.manifest.inputs if ancestor.manifest else ():
            if record.manifest_sha256 in seen:
                continue
            seen.add(record.manifest_sha256)
            manifest = verifier.manifest(workspace.path(record.path))
            # built again to the same bytes, it says of them what is known by now
            if manifest is None or manifest.output_digest != record.output_digest:
                manifest = archived_manifest(record.manifest_sha256, workspace)
            waiting.append(Ancestor(record.path, manifest))
