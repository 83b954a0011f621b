"""
Every refusal of the chain, one named function each.

A guard compares facts that its caller gathered and returns None when all is well, or the verdict to report.
They stand in one table, `GUARDS`, and are always called through it, so that a test can switch each of them
off and see another test fail: a check that never fires is worse than none (`tests/pipeline/test_guards.py`).

    if problem := GUARDS["G5"](sizes):
        return problem
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from utils.pipeline.verdict import ABSENT, Change, Verdict, differences, name_three, shown

SCHEMA_VERSION = 1
MAX_PATH_BYTES = 240
MANIFEST = "manifest.json"

Found = Verdict | None


def seal_holds(problem: str, stored: str, computed: str) -> Found:
    """G1: the manifest is readable and hashes to its own seal."""
    if problem:
        return Verdict("tampered", f"{MANIFEST}: {problem}", MANIFEST)
    return None if stored == computed else Verdict.tampered(MANIFEST, stored, computed)


def output_digest_holds(stored: str, computed: str) -> Found:
    """G2: the listed outputs hash to the stored output digest."""
    return None if stored == computed else Verdict.tampered(f"{MANIFEST}: output_digest", stored, computed)


def key_holds(stored: str, computed: str) -> Found:
    """G3: the stored config, inputs and sources hash to the stored key."""
    return None if stored == computed else Verdict.tampered(f"{MANIFEST}: key", stored, computed)


def all_present(missing: Sequence[str], total: int) -> Found:
    """G4: every listed file is there."""
    if not missing:
        return None
    detail = f"{len(missing)} of {total} files missing: {name_three(list(missing))}"
    return Verdict("incomplete", detail, missing[0], "present", "absent")


def sizes_hold(sizes: Sequence[tuple[str, int, int]]) -> Found:
    """G5: every file has its listed size; `sizes` holds (path, expected, actual)."""
    wrong = [row for row in sizes if row[1] != row[2]]
    if not wrong:
        return None
    path, expected, actual = wrong[0]
    return Verdict.tampered(path, f"{expected:,} bytes", f"{actual:,} bytes", len(wrong) - 1)


def hashes_hold(hashes: Sequence[tuple[str, str, str]]) -> Found:
    """G6: every file has its listed SHA-256; `hashes` holds (path, expected, actual)."""
    wrong = [row for row in hashes if row[1] != row[2]]
    return Verdict.tampered(*wrong[0], more=len(wrong) - 1) if wrong else None


def nothing_extra(extra: Sequence[str]) -> Found:
    """G7: no file lies in the folder that the manifest does not list."""
    return Verdict("tampered", f"extra file: {name_three(list(extra))}", extra[0]) if extra else None


def paths_safe(paths: Sequence[str]) -> Found:
    """G8: output paths are relative, normal, portable and unique (P10)."""
    folded: set[str] = set()
    for path in paths:
        parts = path.split("/")
        unsafe = (
            any(part in ("", ".", "..") for part in parts)
            or re.search(r"[\\:\0]", path)
            or unicodedata.normalize("NFC", path) != path
            or len(path.encode("utf-8", errors="surrogatepass")) > MAX_PATH_BYTES
            or path.casefold() in folded
        )
        if unsafe:
            return Verdict("tampered", f'{MANIFEST}: unsafe path "{path}"', MANIFEST)
        folded.add(path.casefold())
    return None


def all_regular(irregular: Sequence[str]) -> Found:
    """G9: every output is a regular file inside the folder."""
    if not irregular:
        return None
    return Verdict("tampered", f"not a regular file: {name_three(list(irregular))}", irregular[0])


def config_current(stored: Mapping, now: Mapping) -> list[Change]:
    """G10: the semantic view that the artifact was built from is the one its config file has now."""
    return differences(stored, now, "config")


def inputs_current(stored: Mapping[str, str], now: Mapping[str, str]) -> list[Change]:
    """G11: the inputs that it was built from are the ones on disk; both map a role to an output digest."""
    return _changed_entries("input", stored, now)


def stage_version_current(stored: int, now: int) -> list[Change]:
    """G12: the stage has not declared its results changed."""
    return [] if stored == now else [("stage_version", stored, now)]


def sources_current(stored: Mapping[str, str], now: Mapping[str, str]) -> list[Change]:
    """G20: external data is what it was; both map a source's name to its digest."""
    return _changed_entries("source", stored, now)


def _changed_entries(prefix: str, stored: Mapping[str, str], now: Mapping[str, str]) -> list[Change]:
    names = sorted({*stored, *now})
    pairs = [(f"{prefix}.{name}", stored.get(name, ABSENT), now.get(name, ABSENT)) for name in names]
    return [change for change in pairs if change[1] != change[2]]


def tokenizers_agree(blocks: Mapping[str, Mapping]) -> Found:
    """G13: all inputs that carry a tokenizer carry the same one, and one chat template (P36)."""
    rows = [(role, block) for role, block in blocks.items() if block]
    for role, block in rows[1:]:
        first_role, first = rows[0]
        fields = [name for name in first if name not in ("fingerprint", "chat_template_sha256")]
        if any(first[name] != block.get(name) for name in fields):
            equal_size = first["vocab_size"] == block.get("vocab_size")
            return _different(
                "tokenizer", first_role, first["fingerprint"], role, block["fingerprint"], equal_size
            )
    with_template = [
        (role, block["chat_template_sha256"]) for role, block in rows if block["chat_template_sha256"]
    ]
    for role, template in with_template[1:]:
        if template != with_template[0][1]:
            return _different("chat_template", *with_template[0], role, template, True)
    return None


def _different(what: str, role: str, before: str, other: str, after: str, waivable: bool) -> Verdict:
    detail = f"{what}: {role} {shown(before)}, {other} {shown(after)}"
    return Verdict("mismatched", detail, what, before, after, waivable)


def unchanged_while_running(before: Mapping[str, str], after: Mapping[str, str]) -> list[Change]:
    """G14: the inputs that were proven before the work are the same after it; both map `role` to a digest."""
    return [
        (role, before[role], after.get(role, ABSENT)) for role in before if before[role] != after.get(role)
    ]


def partial_belongs(key: str, key_now: str, changes: Sequence[Change]) -> Found:
    """G15: an unfinished build may be continued only under the key it was begun with."""
    if key == key_now:
        return None
    return Verdict.changed("stale", changes or [("key", key, key_now)])


def lock_is_free(held_by: str) -> str:
    """G16: nobody else builds this; `held_by` says who does, or is empty."""
    return held_by


def is_sealed(folder: Path) -> Found:
    """G17: no manifest, no artifact."""
    if (folder / MANIFEST).exists():
        return None
    return Verdict("incomplete", f"no {MANIFEST}", MANIFEST)


def not_edited_after_use(user: str, run_ids: tuple[str, str], seals: tuple[str, str]) -> Found:
    """G18: a parent of the same run has the same seal as when `user` read it; pairs are (recorded, found)."""
    if run_ids[0] != run_ids[1] or seals[0] == seals[1]:
        return None
    detail = f"{MANIFEST}: edited after {user} used it"
    return Verdict("tampered", detail, MANIFEST, *seals)


def schema_is_readable(version: object) -> Found:
    """G19: the manifest is not of a newer program."""
    if version == SCHEMA_VERSION:
        return None
    detail = f"schema_version: {version} -> this program reads {SCHEMA_VERSION}"
    return Verdict("mismatched", detail, "schema_version", str(version), str(SCHEMA_VERSION))


def gguf_proves_itself(proofs: Sequence[tuple[str, str, str]]) -> Found:
    """
    G21: tensors, lineage and pieces of a GGUF hash to the digests in its own header: (what, expected,
    actual).
    """
    return hashes_hold(proofs)


def load_is_fatal(error: Exception | None) -> bool:
    """G22: a checkpoint that fails to load ends the run; it never becomes a fresh start."""
    return error is not None


def bytes_read_match(expected: str, actual: str) -> bool:
    """G23: what a verified reader handed out is what the manifest names."""
    return expected == actual


def waiver_covers(waiver: Mapping, stage: str, verdict: Verdict) -> bool:
    """G24: a waiver covers exactly the change that it was given for."""
    return (
        waiver["stage"] == stage
        and waiver["component"] == verdict.component
        and (waiver["before"], waiver["after"]) == (verdict.before, verdict.after)
    )


def adapter_fits_base(recorded: str, found: str) -> Found:
    """G25: an adapter stands on the base it was trained on; both are output digests."""
    if recorded == found:
        return None
    detail = f"base: adapter trained on {shown(recorded)}, found {shown(found)}"
    return Verdict("mismatched", detail, "base", recorded, found, waivable=True)


def kept_clean_of(corpus: str, corpus_digest: str, missing: Sequence[Mapping]) -> Found:
    """
    G27: the corpus behind a model was kept clean of the files it is measured on; `missing` are the
    others.
    """
    if not missing:
        return None
    files = name_three([file["path"] for file in missing])
    lacking = ",".join(sorted(file["sha256"] for file in missing))
    detail = f"decontamination: {corpus} was not kept clean of {files}"
    return Verdict("mismatched", detail, "decontamination", corpus_digest, lacking, waivable=True)


def keys_known(unknown: Sequence[tuple]) -> Sequence[tuple]:
    """G26: a config holds only keys that somebody reads; returns where the ones are that nobody does."""
    return unknown


GUARDS: dict[str, Callable] = {
    "G1": seal_holds,
    "G2": output_digest_holds,
    "G3": key_holds,
    "G4": all_present,
    "G5": sizes_hold,
    "G6": hashes_hold,
    "G7": nothing_extra,
    "G8": paths_safe,
    "G9": all_regular,
    "G10": config_current,
    "G11": inputs_current,
    "G12": stage_version_current,
    "G13": tokenizers_agree,
    "G14": unchanged_while_running,
    "G15": partial_belongs,
    "G16": lock_is_free,
    "G17": is_sealed,
    "G18": not_edited_after_use,
    "G19": schema_is_readable,
    "G20": sources_current,
    "G21": gguf_proves_itself,
    "G22": load_is_fatal,
    "G23": bytes_read_match,
    "G24": waiver_covers,
    "G25": adapter_fits_base,
    "G26": keys_known,
    "G27": kept_clean_of,
}
