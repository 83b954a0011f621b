"""Adopting: byte for byte, only tokenizer files, no code, from a folder and from a commit of a Hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.corpus.tiny import ROOT, Tiny
from tests.tokenizer.conftest import make_gpt2_style, make_llama2_style, make_tokenizer
from tests.tokenizer.fake_hub import fake_hub
from utils.pipeline.errors import DataError
from utils.pipeline.manifest import read_manifest
from utils.pipeline.tokenizer_identity import tokenizer_block
from utils.tokenizer.adopt import check_files, remote_code, write_own_template

STAGE = "30_train_tokenizer"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
RUN = """
import sys
from pathlib import Path
from tests.corpus.tiny import Tiny
sys.exit(Tiny(Path({workspace!r})).execute("30_train_tokenizer"))
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return Tiny(tmp_path / "root")


def adopt_config(**source: str) -> dict:
    return {"output": "data/adopted/tokenizer", "mode": "adopt", "source": source}


def report_of(tiny: Tiny) -> dict:
    return json.loads((tiny.root / "data/adopted/tokenizer/report.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("make", [make_gpt2_style, make_llama2_style, make_tokenizer])
def test_a_local_folder_is_copied_byte_for_byte(tiny: Tiny, make: object):
    given = tiny.root / "data/raw/given"
    given.parent.mkdir(parents=True)
    make(given)
    (given / "model.safetensors").write_bytes(b"not for us")
    manifest = tiny.run(STAGE, adopt_config(path="data/raw/given"))
    taken = {path.name for path in given.iterdir()} - {"model.safetensors"}
    assert {output.path for output in manifest.outputs} == taken | {"report.json", "TOKENIZER_CARD.md"}
    for name in taken:
        assert (tiny.root / "data/adopted/tokenizer" / name).read_bytes() == (given / name).read_bytes()
    assert manifest.raw["tokenizer"] == tokenizer_block(given)
    (source,) = manifest.raw["sources"]
    assert (source["kind"], {file["path"] for file in source["files"]}) == (
        "local",
        {f"data/raw/given/{name}" for name in taken},
    )


def test_another_file_in_the_folder_makes_it_stale(tiny: Tiny, capsys: pytest.CaptureFixture):
    given = make_gpt2_style(tiny.root / "data/raw/given")
    before = tiny.run(STAGE, adopt_config(path="data/raw/given"))
    tiny.run(STAGE, adopt_config(path="data/raw/given"))
    assert "up to date" in capsys.readouterr().out
    (given / "special_tokens_map.json").write_text('{"pad_token": "<|endoftext|>"}')
    after = tiny.run(STAGE, adopt_config(path="data/raw/given"))
    assert "stale (source.tokenizer: " in capsys.readouterr().out
    assert (before.raw["tokenizer"]["special_ids"]["pad"], after.raw["tokenizer"]["special_ids"]["pad"]) == (
        -1,
        0,
    )


def test_what_is_reported_of_a_byte_level_tokenizer(tiny: Tiny):
    make_gpt2_style(tiny.root / "data/raw/given")
    metrics = tiny.run(STAGE, adopt_config(path="data/raw/given")).metrics
    assert (metrics["mode"], metrics["gguf"], metrics["vocab_size"]) == ("adopt", False, 400)
    card = (tiny.root / "data/adopted/tokenizer/TOKENIZER_CARD.md").read_text(encoding="utf-8")
    assert "Can become a GGUF: no, it has no tokenizer.model" in card
    assert "`pad` none" in card and "No corpus was given" in card and str(tiny.root) not in card


def test_a_corpus_is_measured_where_there_is_one(tiny: Tiny):
    tiny.write_books()
    tiny.run("20_prepare_corpus", tiny.corpus_config())
    make_llama2_style(tiny.root / "data/raw/given")
    config = adopt_config(path="data/raw/given") | {
        "inputs": {"corpus": "data/corpus"},
        "min_chars_per_token": 50,
    }
    metrics = tiny.run(STAGE, config).metrics
    report = report_of(tiny)
    assert metrics["gguf"] is True
    assert report["sources"]["books"]["unknown"] == 0
    assert 1 < metrics["chars_per_token"] < 50  # reported, no gate
    assert report["parity"]["llama_cpp"]["compared"] > 23


def test_a_tokenizer_that_loses_text_ends_the_stage(tiny: Tiny, capsys: pytest.CaptureFixture):
    path = make_gpt2_style(tiny.root / "data/raw/given") / "tokenizer.json"
    path.write_text(path.read_text().replace('"normalizer": null', '"normalizer": {"type": "Lowercase"}'))
    tiny.write_config(STAGE, adopt_config(path="data/raw/given"))
    assert tiny.execute(STAGE) == 4
    assert not (tiny.root / "data/adopted/tokenizer").exists()
    captured = capsys.readouterr()
    assert "texts do not survive encode and decode:" in captured.err + captured.out


def hub_files(tmp_path: Path) -> dict[str, bytes]:
    """A poisoned repository: its config names code, and there are weights."""
    given = make_gpt2_style(tmp_path / "given", auto_map={"AutoTokenizer": ["evil.EvilTokenizer", None]})
    files = {path.name: path.read_bytes() for path in given.iterdir()}
    poison = f"open({str(tmp_path / 'poisoned')!r}, 'w')".encode()
    return files | {"evil.py": poison, "model.safetensors": b"0" * 100}


def run_against(hub_url: str, tiny: Tiny, tmp_path: Path, **more: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"HF_ENDPOINT": hub_url, "HF_HOME": str(tmp_path / "cache")} | more
    command = [sys.executable, "-c", RUN.format(workspace=str(tiny.root))]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_a_commit_of_the_hub(tiny: Tiny, tmp_path: Path):
    files = hub_files(tmp_path)
    tiny.write_config(STAGE, adopt_config(id="me/model", revision=COMMIT))
    with fake_hub("me/model", COMMIT, files) as hub:
        done = run_against(hub.url, tiny, tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        asked = {path.rsplit("/", 1)[1] for path in hub.asked if "me/model" in path}
    assert asked == {
        "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
        "chat_template.jinja",
    }  # fmt: skip
    folder = tiny.root / "data/adopted/tokenizer"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == files[name]
    assert not (tmp_path / "poisoned").exists() and not (folder / "evil.py").exists()
    assert "evil.EvilTokenizer" in (folder / "TOKENIZER_CARD.md").read_text(encoding="utf-8")
    manifest, _ = read_manifest(folder)
    (source,) = manifest.raw["sources"]
    assert (source["kind"], source["id"]) == ("hub", "me/model")
    assert source["requested_revision"] == source["resolved_revision"] == COMMIT

    again = run_against("http://127.0.0.1:9", tiny, tmp_path, HF_HUB_OFFLINE="1")
    assert again.returncode == 0 and "up to date" in again.stdout
    tiny.write_config(
        STAGE, adopt_config(id="me/model", revision=COMMIT) | {"output": "data/other/tokenizer"}
    )
    offline = run_against("http://127.0.0.1:9", tiny, tmp_path, HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stdout + offline.stderr
    other, _ = read_manifest(tiny.root / "data/other/tokenizer")
    assert other.output_digest == manifest.output_digest


def test_what_the_hub_has_not_is_a_config_error(tiny: Tiny, tmp_path: Path):
    with fake_hub("me/model", COMMIT, {"tokenizer.py": b""}) as hub:
        cases = {
            "the Hub has no model, or none for you, me/other at": ("me/other", COMMIT, 2),
            "the Hub has no commit me/model at ffffffff": ("me/model", "f" * 40, 2),
            "no tokenizer.json and no tokenizer.model; a tokenizer that is only code": (
                "me/model",
                COMMIT,
                4,
            ),
        }
        for message, (id, revision, code) in cases.items():
            tiny.write_config(STAGE, adopt_config(id=id, revision=revision))
            done = run_against(hub.url, tiny, tmp_path)
            assert done.returncode == code, done.stdout + done.stderr
            assert message in done.stdout + done.stderr


def test_without_a_network_the_fix_is_named(tiny: Tiny, tmp_path: Path):
    tiny.write_config(STAGE, adopt_config(id="me/model", revision=COMMIT))
    done = run_against("http://127.0.0.1:9", tiny, tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 4
    assert "is not in the cache and the Hub cannot be reached" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": {}}, 'mode "adopt" needs "source": {"id", "revision"} or {"path"}'),
        ({"source": {"id": "me/model"}}, '"id" and "revision" need each other'),
        (
            {"source": {"id": "me/model", "revision": "main"}},
            '"main" is no commit of 40 hex digits; for its newest',
        ),
        ({"source": {"id": "me/model", "revision": COMMIT, "path": "x"}}, 'give "id" or "path", not both'),
        ({"vocab_size": 4096}, '"vocab_size" is the adopted tokenizer\'s own'),
        ({"mode": "train"}, '"source" needs mode "adopt"'),
        ({"mode": "train", "source": {}}, 'mode "train" needs "inputs.corpus"'),
        (
            {"mode": "train", "source": {}, "inputs": {"corpus": "data/corpus"}, "vocab_size": 299},
            'mode "train" needs a "vocab_size" of at least 300',
        ),
        (
            {
                "mode": "train",
                "source": {},
                "inputs": {"corpus": "c"},
                "vocab_size": 400,
                "recipe": "unigram",
            },
            'recipe "unigram" cannot become a GGUF; "allow_no_gguf": true accepts that',
        ),
        ({}, 'source "tokenizer": data/raw/given holds no tokenizer files'),
    ],
)
def test_configs_that_cannot_work(tiny: Tiny, capsys: pytest.CaptureFixture, changes: dict, message: str):
    tiny.write_config(STAGE, adopt_config(path="data/raw/given") | changes)
    assert tiny.execute(STAGE) == 2
    captured = capsys.readouterr()
    assert message in captured.err + captured.out


def test_two_tokenizers_in_one_folder_are_refused(tmp_path: Path):
    make_tokenizer(tmp_path)
    check_files(tmp_path)
    make_gpt2_style(tmp_path)
    with pytest.raises(
        DataError, match="tokenizer.model has 330 pieces and tokenizer.json 400: they are two"
    ):
        check_files(tmp_path)


def test_remote_code_is_named(tmp_path: Path):
    assert remote_code(tmp_path) == []
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["a.B", null]}}')
    assert remote_code(tmp_path) == ["a.B"]


def test_a_chat_template_inside_the_config_gets_its_file(tmp_path: Path):
    assert not write_own_template(tmp_path)
    config = {
        "chat_template": [
            {"name": "tool_use", "template": "no"},
            {"name": "default", "template": "{{ x }}\r\n"},
        ]
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert write_own_template(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_bytes() == b"{{ x }}\r\n"
    (tmp_path / "chat_template.jinja").write_text("own")
    assert write_own_template(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text() == "own"
