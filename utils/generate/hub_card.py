"""
README.md for the Hub: front matter that makes the viewer work, statistics, lineage, digests.

Its last line is a mark over the text above it, so that a card which people have edited is known and kept.

    text = card(parcel, "me/stories")
    is_untouched(text)          # True until somebody changes a character
"""

import re
from collections.abc import Mapping

from huggingface_hub import CardData

from utils.generate.hub_parcel import Parcel, SentFile
from utils.pipeline.hashing import sha256_hex

MARK = re.compile(r"\n<!-- written by lockstep, sha256 ([0-9a-f]{64}) -->\n\Z")
FRONT_MATTER = re.compile(r"\A---\n(.*?\n)---\n+", re.DOTALL)
SIZES = {10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M", 10**7: "1M<n<10M"}
SPLITS = {"train": "train", "val": "validation", "test": "test"}
OWN_CARDS = ("MODEL_CARD.md", "DATA_CARD.md", "TOKENIZER_CARD.md")
WRITTEN_BY_MODELS = ("10_", "15_")
MOST_FILES_LISTED = 100
MOST_FACTS = 40


def card(parcel: Parcel, repo: str) -> str:
    """The whole text, mark included."""
    own, description = _own_description(parcel)
    front = _dataset_front(parcel) if parcel.kind == "dataset" else _model_front(parcel, own)
    parts = [
        f"---\n{CardData(**front).to_yaml().strip()}\n---",
        description or f"# {repo.split('/')[-1]}",
        _how_to_load(parcel, repo),
        _rows_table(parcel) if parcel.kind == "dataset" else "",
        _facts_table(parcel.manifest.metrics) if parcel.kind == "model" and not description else "",
        _lineage_table(parcel) if "## Lineage\n" not in description else "",
        _waivers(parcel),
        _digest_table(parcel),
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    return f"{text}\n<!-- written by lockstep, sha256 {sha256_hex(text.encode())} -->\n"


def is_untouched(text: str) -> bool:
    """Whether a card was written here and not changed since."""
    text = text.replace("\r\n", "\n")
    mark = MARK.search(text)
    return mark is not None and mark[1] == sha256_hex(text[: mark.start()].encode())


def _own_description(parcel: Parcel) -> tuple[str, str]:
    """Front matter and text of the card that the stage wrote."""
    text = next((text for name in OWN_CARDS if (text := parcel.text(name))), "")
    front = FRONT_MATTER.match(text)
    return (front[1] if front else ""), FRONT_MATTER.sub("", text).strip()


def viewer_configs(files: list[SentFile]) -> list[dict]:
    """The `configs` of the dataset viewer: one per generated dataset, else the splits of the one there is."""
    generated = [file.path for file in files if file.path.endswith("/dataset.jsonl")]
    if generated:
        configs = [
            {"config_name": path.split("/")[0], "data_files": [{"split": "train", "path": path}]}
            for path in generated
        ]
        return [configs[0] | {"default": True}, *configs[1:]]
    splits = [found for split in SPLITS for found in _split_files(split, files)]
    return [{"config_name": "default", "data_files": splits}] if splits else []


def _split_files(split: str, files: list[SentFile]) -> list[dict]:
    """`train/*.jsonl.zst` of stage 20, `train.rows.jsonl.zst` of 60 and 80, a lone dataset.jsonl."""
    patterns = {f"{split}/*.jsonl.zst": rf"{split}/[^/]+\.jsonl\.zst"}
    patterns[f"{split}.rows.jsonl.zst"] = rf"{split}\.rows\.jsonl\.zst"
    if split == "train":
        patterns["dataset.jsonl"] = r"dataset\.jsonl"
    return [
        {"split": SPLITS[split], "path": path}
        for path, pattern in patterns.items()
        if any(re.fullmatch(pattern, file.path) for file in files)
    ]


def _dataset_front(parcel: Parcel) -> dict:
    configs = viewer_configs(parcel.files)
    synthetic = any(entry["stage"].startswith(WRITTEN_BY_MODELS) for entry in parcel.lineage)
    tags = ["lockstep", "synthetic"] if synthetic else ["lockstep"]
    front = {"tags": tags, "task_categories": ["text-generation"], "size_categories": [_size(parcel)]}
    return front | ({"configs": configs} if configs else {})


def _size(parcel: Parcel) -> str:
    rows = sum(file.rows for file in data_files(parcel))
    return next((name for most, name in SIZES.items() if rows < most), "n>10M")


def data_files(parcel: Parcel) -> list[SentFile]:
    """The files that the viewer shows."""
    shown = [entry["path"] for config in viewer_configs(parcel.files) for entry in config["data_files"]]
    patterns = [re.compile(re.escape(path).replace(r"\*", "[^/]+")) for path in shown]
    return [file for file in parcel.files if any(pattern.fullmatch(file.path) for pattern in patterns)]


def _model_front(parcel: Parcel, own: str) -> dict:
    license = re.search(r"^license: (\S+)$", own, re.MULTILINE)
    names = {file.path for file in parcel.files}
    library = "gguf" if any(name.endswith(".gguf") for name in names) else "transformers"
    library = "peft" if "adapter_config.json" in names else library
    is_tokenizer = parcel.manifest.stage.startswith("30_")
    front: dict[str, object] = {"library_name": library, "tags": ["lockstep", library]}
    front |= {} if is_tokenizer else {"pipeline_tag": "text-generation"}
    return front | ({"license": license[1]} if license else {})


def _how_to_load(parcel: Parcel, repo: str) -> str:
    configs = viewer_configs(parcel.files)
    if parcel.kind == "model" or not configs:
        return f"```\nhf download {repo} --repo-type {parcel.kind} --local-dir .\n```"
    second = f', "{configs[0]["config_name"]}"' if configs[0]["config_name"] != "default" else ""
    return f'```python\nfrom datasets import load_dataset\n\nrows = load_dataset("{repo}"{second})\n```'


def _rows_table(parcel: Parcel) -> str:
    rows = [(file.path, f"{file.rows:,}", f"{file.bytes:,}") for file in data_files(parcel)]
    return _section("Rows", ("file", "rows", "bytes"), rows) if rows else ""


def _facts_table(metrics: Mapping) -> str:
    rows = list(_leaves(metrics, ""))[:MOST_FACTS]
    return _section("What was measured", ("", ""), rows) if rows else ""


def _leaves(value: Mapping, path: str) -> list[tuple[str, str]]:
    """Numbers and short texts of the metrics by dotted name."""
    found = []
    for key, inner in value.items():
        name = f"{path}.{key}" if path else str(key)
        if isinstance(inner, Mapping):
            found += _leaves(inner, name)
        elif isinstance(inner, (int, float, str)):
            found.append((name.replace("_", " "), f"{inner:.4g}" if isinstance(inner, float) else str(inner)))
    return found


def _lineage_table(parcel: Parcel) -> str:
    rows = []
    for entry in parcel.lineage:
        parents = [f"{role} {found[:12]}" for role, found in entry["parents"].items()]
        sources = [_source(source) for source in entry["sources"]]
        rows.append((entry["stage"], f"`{entry['output_digest']}`", ", ".join([*parents, *sources])))
    return _section("Lineage", ("stage", "output digest", "made from"), rows)


def _source(source: Mapping) -> str:
    """A source's name, where it is from if that is the Hub, and its digest."""
    place = f" ({source['id']})" if source["kind"] == "hub" else ""
    return f"{source['name']}{place} {source['digest'][:12]}"


def _waivers(parcel: Parcel) -> str:
    lines = [
        f"- {waiver['stage']} {waiver['role']}: {waiver['verdict']} {waiver['component']}: {waiver['reason']}"
        for waiver in parcel.manifest.waivers
    ]
    return "## Allowed mismatches\n\n" + "\n".join(lines) if lines else ""


def _digest_table(parcel: Parcel) -> str:
    rows = [(file.path, f"{file.bytes:,}", f"`{file.sha256}`") for file in parcel.files[:MOST_FILES_LISTED]]
    rest = len(parcel.files) - len(rows)
    more = f"\n\nand {rest:,} more in manifest.json" if rest else ""
    return _section("Files", ("file", "bytes", "SHA-256"), rows) + more


def _section(title: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return f"## {title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)
