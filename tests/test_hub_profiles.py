"""The profiles tiny, small and base: what their plans say, and tiny, made small, on a Hub of loopback."""

import io
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tests.corpus.fake_hub import FakeHub, fake_hub
from utils.generate.teacher.stories import idea, tell, themes
from utils.pipeline.plan import read_profile
from utils.pipeline.workspace import REPOSITORY, STAGES

PARAMETERS = {"tiny": 23_072_000, "small": 41_949_696, "base": 124_275_456}
CARD = """---
configs:
- config_name: default
  data_files: [{split: train, path: data/*/*}]
- config_name: sample-10BT
  data_files: [{split: train, path: sample/10BT/*}]
---
"""
RUN = """
import sys
from pathlib import Path
from tests.chat.toy_chain import script
from utils.pipeline.plan import read_profile
from utils.pipeline.stage import execute
from utils.pipeline.workspace import STAGES, Workspace
workspace = Workspace(Path({root!r}), STAGES)
for node in read_profile("tiny", workspace):
    arguments = ["--config", str(workspace.path(node.loaded.path))]
    if code := execute(node.stage, type(node.loaded.config), script(node.stage).main, arguments, workspace):
        sys.exit(code)
"""


def hub_sources(profile: str) -> dict[str, list]:
    nodes = {node.stage: node.loaded.config for node in read_profile(profile, REPOSITORY)}
    found = {stage: getattr(config, "sources", []) for stage, config in nodes.items()}
    return {stage: [each for each in sources if each.kind == "hub"] for stage, sources in found.items()}


@pytest.mark.parametrize("profile", PARAMETERS)
def test_a_profile_goes_from_the_hub_to_a_gguf_within_its_own_folders(profile: str):
    nodes = {node.stage: node.loaded.config for node in read_profile(profile, REPOSITORY)}
    assert list(nodes) == [stage for stage in STAGES if not stage.startswith(("10_", "15_"))]
    for stage, config in nodes.items():
        assert config.output.split("/")[1] == profile, stage
    assert nodes["50_pretrain"].model == profile


@pytest.mark.parametrize("profile", PARAMETERS)
def test_every_dataset_of_the_hub_is_pinned_to_a_commit(profile: str):
    sources = hub_sources(profile)
    assert all(sources[stage] for stage in ("20_prepare_corpus", "60_prepare_sft", "80_prepare_preferences"))
    revisions = [source.revision for each in sources.values() for source in each]
    assert [revision for revision in revisions if len(revision) != 40] == []


@pytest.mark.parametrize(("profile", "count"), PARAMETERS.items())
def test_the_corpus_holds_the_tokens_that_the_model_is_trained_on(profile: str, count: int):
    nodes = {node.stage: node.loaded.config for node in read_profile(profile, REPOSITORY)}
    corpus, training = nodes["20_prepare_corpus"], nodes["50_pretrain"]
    assert training.budget.unit == "tokens_per_parameter"
    wanted = training.budget.value * count
    assert wanted < corpus.budget.tokens * (1 - corpus.split.val_fraction) < 1.05 * wanted


def parquet(rows: Iterable[dict]) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), out)
    return out.getvalue()


def turns(*texts: str) -> list[dict]:
    return [{"content": text, "role": role} for text, role in zip(texts, ("user", "assistant"), strict=True)]


def pages(seed: int, count: int) -> list[dict]:
    """Rows with the fields of FineWeb-Edu."""
    rng = random.Random(seed)
    fixed = {"dump": "CC", "file_path": "s3://x", "language": "en", "language_score": 0.9, "token_count": 100}
    fixed |= {"score": 3.1, "int_score": 3}
    texts = (tell(idea(rng.choice(themes()), rng), rng) for _ in range(count))
    return [
        {"text": text, "id": f"<urn:{i}>", "url": f"https://x.example/{i}"} | fixed
        for i, text in enumerate(texts)
    ]


def text_alone(row: dict) -> dict:
    """A row with the field of TinyStories."""
    return {"text": row["text"]}


def feedback(number: int) -> dict:
    """A row with the fields of UltraFeedback, binarised."""
    prompt = f"What is {number} and {number}?"
    chosen, rejected = (turns(prompt, answer) for answer in (f"It is {2 * number}.", "I do not know that."))
    return {
        "prompt": prompt, "prompt_id": f"{number:064x}", "chosen": chosen, "rejected": rejected,
        "messages": chosen, "score_chosen": 8.0, "score_rejected": 3.5,
    }  # fmt: skip


def chats(count: int) -> list[dict]:
    """Rows with the fields of smol-smoltalk."""
    return [
        {"messages": turns(f"What is {i} plus 1?", f"It is {i + 1}."), "source": "x"} for i in range(count)
    ]


def pushed(hub: FakeHub) -> dict[str, str]:
    """Datasets as they lie on the Hub, small; name -> commit."""
    files = {
        "HuggingFaceFW/fineweb-edu": {
            "README.md": CARD.encode(),
            "data/CC-MAIN-2013-20/train-00000-of-00014.parquet": parquet(pages(2, 3)),
            "sample/10BT/000_00000.parquet": parquet(pages(0, 300)),
        },
        "roneneldan/TinyStories": {"data/train-00000.parquet": parquet(map(text_alone, pages(1, 300)))},
        "HuggingFaceTB/smol-smoltalk": {"data/train-00000-of-00001.parquet": parquet(chats(150))},
        "HuggingFaceH4/ultrafeedback_binarized": {
            "data/train_prefs-00000-of-00001.parquet": parquet(map(feedback, range(100))),
            "data/test_prefs-00000-of-00001.parquet": parquet(map(feedback, range(100, 104))),
        },
    }  # fmt: skip
    return {name: hub.push(name, content) for name, content in files.items()}


def made_small(path: Path, commits: dict[str, str]) -> None:
    """Edit the configs of tiny in a copied folder: the commits of the fake, and sizes for a test."""
    split = {"val_fraction": 0.1, "test_fraction": 0.1}
    small = {
        "20_prepare_corpus": {"budget": {"tokens": 30_000}, "split": {"val_fraction": 0.1}},
        "30_train_tokenizer": {"vocab_size": 512, "min_chars_per_token": 2.0},
        "40_pack_dataset": {"sequence_length_tokens": 64, "mode": "concat"},
        "50_pretrain": {
            "model": "smoke", "budget": {"unit": "steps", "value": 4}, "global_batch_tokens": 512,
            "eval_max_tokens": 512, "cpu_threads": 1,
        },
        "60_prepare_sft": {"max_conversation_tokens": 64, "split": split},
        "70_train_sft": {
            "row_tokens": 64, "epochs": 0.0, "max_steps": 4, "global_batch_tokens": 256, "sample_prompts": 2,
            "sample_tokens": 8, "cpu_threads": 1,
        },
        "80_prepare_preferences": {"max_pair_tokens": 64, "split": split},
        "90_train_preferences": {
            "row_tokens": 128, "epochs": 0.0, "max_steps": 4, "global_batch_tokens": 256, "cpu_threads": 1,
        },
        "100_evaluate": {
            "generation": {"limit_rows": 4, "max_new_tokens": 8}, "preferences": {"limit_pairs": 4},
            "perplexity": {"limit_tokens": 512}, "bootstrap_resamples": 100,
        },
        "120_convert_gguf": {"outputs": ["f16"], "verify": {"sequences": 2, "prompts": 2}},
    }  # fmt: skip
    for stage in STAGES:
        file = path / f"{stage}.json"
        if not file.exists():
            continue
        document = json.loads(file.read_text())
        for source in document.get("sources", []):
            source["revision"] = commits[source["id"]]
            if source["name"] == "web":
                source["preset"] = "short"
        file.write_text(json.dumps(document | small.get(stage, {})))


@pytest.mark.slow
def test_made_small_tiny_runs_from_a_hub_to_a_gguf(tmp_path: Path):
    shutil.copytree(REPOSITORY.path("config"), tmp_path / "config")
    with fake_hub() as hub:
        made_small(tmp_path / "config/tiny", pushed(hub))
        done = subprocess.run(
            [sys.executable, "-c", RUN.format(root=str(tmp_path))],
            cwd=REPOSITORY.root,
            env=os.environ | hub.environment(tmp_path / "home"),
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in (tmp_path / "checkpoints/tiny/gguf").glob("*.gguf")] == ["model-f16.gguf"]
