"""The stage runner: what it decides, prints, keeps and gives to `main` (P6, P18, P25-P27, P32)."""

import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest

from tests.pipeline.rows import answers
from tests.pipeline.toy import Toy, all_files
from tests.pipeline.toy_configs import CLASSES
from utils.config.corpus import CorpusConfig
from utils.pipeline import build as build_module
from utils.pipeline.errors import ConfigError, DataError, UpstreamError
from utils.pipeline.journal import Journal
from utils.pipeline.seal import partial_of
from utils.pipeline.stage import Stage, run_stage

PACK = "40_pack_dataset"

# what is decided


def test_up_to_date_names_the_artifact(toy: Toy) -> None:
    result = toy.run(PACK)
    assert result.text == f"{PACK}        up to date data/demo/packed {toy.digest(PACK)[:12]}\n"


def test_dry_run_decides_and_writes_nothing(toy: Toy) -> None:
    toy.set(PACK, sequence_length_tokens=8)
    before = {path: path.stat().st_mtime_ns for path in all_files(toy.root)}
    result = toy.run(PACK, "--dry-run")
    answers(result, 0, "data/demo/packed: stale (config.sequence_length_tokens: 256 -> 8); key ")
    after = {
        path: path.stat().st_mtime_ns for path in all_files(toy.root) if "digests.sqlite" not in path.name
    }
    assert after == {path: stat for path, stat in before.items() if "digests.sqlite" not in path.name}


def test_a_refusal_has_the_shape_of_the_specification(toy: Toy) -> None:
    corpus, where = "20_prepare_corpus", "data/demo/corpus/manifest.json"
    path = toy.flip(corpus, "train/00001.jsonl.zst")
    listed = next(row for row in toy.manifest(corpus)["outputs"] if row["path"].endswith("1.jsonl.zst"))
    text = toy.run(PACK).text
    first = f'error: {PACK} cannot start: input "corpus" (data/demo/corpus) is tampered'
    assert text.splitlines()[0] == first
    assert re.fullmatch(
        r"  file      train/00001.jsonl.zst\n"
        rf"  expected  sha256 {listed['sha256'][:12]}, {listed['bytes']} bytes   {where}\n"
        rf"  actual    sha256 [0-9a-f]{{12}}, {path.stat().st_size} bytes   on disk\n"
        rf"  fix       python scripts/{corpus}.py --config config/demo/{corpus}.json --force\n",
        text.partition("\n")[2],
    )


def test_a_stale_refusal_has_the_shape_of_the_specification(toy: Toy) -> None:
    toy.set(PACK, sequence_length_tokens=512)
    assert toy.run("50_pretrain").text == (
        'error: 50_pretrain cannot start: input "data" (data/demo/packed) is stale\n'
        "  changed   config.sequence_length_tokens: 256 (data/demo/packed/manifest.json)"
        " -> 512 (config/demo/40_pack_dataset.json)\n"
        "  fix       python tools/pipeline.py run demo --to 40_pack_dataset\n"
        '  or        --allow-mismatch "why this is fine" (recorded in everything built from it)\n'
    )


def test_a_refusal_is_one_json_line(toy: Toy) -> None:
    toy.flip("20_prepare_corpus", "train/00001.jsonl.zst")
    toy.run(PACK)
    row = [json.loads(line) for line in toy.events() if "refused" in line][-1]
    names = ("event", "stage", "input", "verdict", "component", "expected", "actual", "fix", "exit_code")
    assert all(name in row for name in names)
    assert (row["event"], row["stage"], row["input"], row["exit_code"]) == ("refused", PACK, "corpus", 3)
    assert len(row["expected"]) == len(row["actual"]) == 64


def test_several_changes_are_counted(toy: Toy) -> None:
    toy.set(PACK, sequence_length_tokens=8, mode="other")
    answers(toy.run(PACK, "--dry-run"), 0, "stale (config.mode: best_fit -> other, and 1 more)")


def test_the_worst_of_several_verdicts_is_reported(toy: Toy) -> None:
    toy.set("20_prepare_corpus", seed=3)  # stale
    shutil.rmtree(toy.folder("30_train_tokenizer"))  # missing
    answers(toy.run(PACK), 3, "is missing", "missing")
    toy.flip("20_prepare_corpus", "train/00000.jsonl.zst")
    answers(toy.run(PACK), 3, "is tampered", "tampered")


def test_a_reason_must_be_one(toy: Toy, capsys: pytest.CaptureFixture) -> None:
    for reason in ("", " ", "\x07\n", "x" * 501):
        if reason:
            with pytest.raises(SystemExit) as left:
                toy.run(PACK, "--allow-mismatch", reason)
            assert left.value.code == 2
    toy.set("20_prepare_corpus", seed=3)
    assert toy.run(PACK, "--force", "--allow-mismatch", " fi\x1b[31mne\n").code == 0
    assert toy.manifest(PACK)["mismatches_allowed"][0]["reason"] == "fi[31mne"


def test_a_config_that_cannot_be_read_is_exit_2(toy: Toy) -> None:
    answers(toy.run(PACK, "--config", "config/demo/gone.json"), 2, "config/demo/gone.json: cannot be read")


def test_force_builds_again_to_the_same_bytes(toy: Toy) -> None:
    before = toy.manifest(PACK)
    answers(toy.run(PACK, "--force"), 0, "data/demo/packed: forced")
    after = toy.manifest(PACK)
    assert after["output_digest"] == before["output_digest"] and after["run"]["id"] != before["run"]["id"]


def test_the_same_bytes_in_another_folder_at_another_time(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3.2e7)
    monkeypatch.setattr(build_module, "utc_now", lambda: "2031-01-05T10:00:00Z")
    other = Toy(tmp_path / "a longer name" / "root").write()
    for stage in list(CLASSES)[:-1]:
        assert other.run(stage, profile="demo").code == 0
    bitwise = [stage for stage in CLASSES if stage != "120_convert_gguf"]
    assert [other.digest(stage) for stage in bitwise] == [toy.digest(stage) for stage in bitwise]
    assert other.manifest(PACK)["key"] == toy.manifest(PACK)["key"]
    assert other.manifest(PACK)["run"]["finished"] == "2031-01-05T10:00:00Z"


def test_no_secret_is_written_anywhere(bare: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_SECRET", "sk-environment-0451")
    bare.set("20_prepare_corpus", api_key="sk-literal-0451")
    bare.build()
    bare.set("20_prepare_corpus", api_key="${TOY_SECRET}")
    bare.run("20_prepare_corpus", "--force")
    written = [path for place in ("data", "checkpoints") for path in all_files(bare.root / place)]
    assert len(written) > 30
    assert [path for path in written if b"-0451" in path.read_bytes()] == []  # digests hold bare digits
    assert bare.manifest("20_prepare_corpus")["config"]["resolved"]["api_key"] == "${TOY_SECRET}"


# unfinished builds


def test_resume_never_says_what_it_throws_away(toy: Toy) -> None:
    shutil.rmtree(toy.folder("50_pretrain"))
    toy.killed("50_pretrain", "50.sealed", 2)
    result = toy.run("50_pretrain", "--resume", "never")
    answers(result, 0, "discarding an unfinished build (")
    assert re.search(r"\(\d+ files, \d+\.\d MB\), as --resume never asks", result.text)


def test_a_leftover_that_says_nothing_of_itself_is_discarded_aloud(toy: Toy) -> None:
    shutil.rmtree(toy.folder(PACK))
    partial_of(toy.folder(PACK)).mkdir()
    answers(toy.run(PACK), 0, "discarding an unfinished build that does not say what it is of")


def test_the_state_says_what_the_build_is_of(toy: Toy) -> None:
    shutil.rmtree(toy.folder(PACK))
    toy.killed(PACK, "40.committed", 1)
    state = json.loads((partial_of(toy.folder(PACK)) / "state.json").read_text())
    assert {"key", "stage", "stage_version", "run_id", "started"} <= state.keys()
    assert (state["stage"], state["stage_version"]) == (PACK, 1)
    toy.run(PACK)
    assert toy.manifest(PACK)["run"]["id"] == state["run_id"]
    assert toy.manifest(PACK)["key"] == state["key"]
    assert not (toy.folder(PACK) / "state.json").exists() and not (toy.folder(PACK) / ".journal").exists()


def test_an_unexpected_error_keeps_its_traceback_and_the_work(toy: Toy) -> None:
    shutil.rmtree(toy.folder(PACK))

    def bug(stage: Stage) -> None:
        raise ZeroDivisionError

    toy.hooks = {"40.committed": bug}
    with pytest.raises(ZeroDivisionError):
        toy.run(PACK)
    toy.hooks = {}
    answers(toy.run(PACK), 0, "resuming")


# the journal


def test_a_torn_line_is_dropped_and_data_cut_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "units")
    data = tmp_path / "train.bin"
    for number in range(3):
        with open(data, "ab") as file:
            file.write(b"0123456789")
        journal.commit({"unit": number, "ends": {"train.bin": data.stat().st_size}})
    journal.close()
    with open(data, "ab") as file:
        file.write(b"half a un")
    for torn in (b'{"unit": 3, "ends": {"train.bi', b'{"unit": 3, "ends": {"train.bin": 39}}', b"\x00\x00\n"):
        with open(journal.path, "ab") as file:
            file.write(torn)
        again = Journal(tmp_path, "units")
        assert [record["unit"] for record in again.records] == [0, 1, 2]
        assert data.read_bytes() == b"0123456789" * 3
        assert journal.path.read_bytes().count(b"\n") == 3
        again.close()
    os.truncate(data, 5)
    with pytest.raises(DataError, match="train.bin of the unfinished build is shorter than its journal says"):
        Journal(tmp_path, "units")


def test_data_are_synced_before_their_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    names = {}

    def note(descriptor: int) -> None:
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        names[synced[-1]] = (tmp_path / ".journal/units.jsonl").read_bytes()

    (tmp_path / "a.bin").write_bytes(b"x")
    journal = Journal(tmp_path, "units")
    monkeypatch.setattr(os, "fsync", note)
    journal.commit({"ends": {"a.bin": 1}})
    assert synced == ["a.bin", "units.jsonl"] and names["a.bin"] == b""


# what main gets


def test_the_rest_of_a_stage(toy: Toy) -> None:
    seen: list[Stage] = []
    toy.hooks = {"40.done": seen.append}
    toy.run(PACK, "--force")
    stage = seen[0]
    assert stage.has_input("corpus") and not stage.has_input("data")
    assert [found.role for found in stage.inputs("corpus")] == ["corpus"]
    assert [stage.every(2, step) for step in (1, 2, 3, 4)] == [False, True, False, True] and not stage.every(
        0, 4
    )
    assert stage.generator("a").integers(1 << 60) == stage.generator("a").integers(1 << 60)
    assert stage.generator("a").integers(1 << 60) != stage.generator("b").integers(1 << 60)
    corpus = stage.input("corpus")
    assert [path.name for path in corpus.files("train/")] == [
        "00000.jsonl.zst",
        "00001.jsonl.zst",
        "00002.jsonl.zst",
    ]
    (corpus.path / "train/stray").write_text("")
    with pytest.raises(UpstreamError, match="has no file train/stray"):
        corpus.file("train/stray")
    with pytest.raises(ConfigError, match='needs the input "data"'):
        stage.input("data")


def test_metrics_and_rates_go_to_their_places(toy: Toy) -> None:
    manifest = toy.manifest("20_prepare_corpus")
    assert manifest["metrics"] == {"lines": 90} and manifest["run"]["rates"] == {"lines_per_second": 1e6}
    assert manifest["run"]["argv"][:2] == ["scripts/20_prepare_corpus.py", "--config"]
    host = manifest["run"]["host_class"]
    assert os.uname().nodename not in host and re.search(r"\d+ cores, \d+ GiB, (no )?GPU", host)


@pytest.mark.parametrize("chosen", ["", "ACTIVE"])
def test_threads_spin_shortly_before_they_sleep_unless_the_user_chose(
    chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that it is undone
        monkeypatch.delenv(name)
    if chosen:
        monkeypatch.setenv("OMP_WAIT_POLICY", chosen)
    monkeypatch.setattr("sys.argv", ["20_prepare_corpus.py", "--config", "none.json"])
    with pytest.raises(SystemExit):
        run_stage("20_prepare_corpus", CorpusConfig, lambda config, stage: {})
    found = {name: os.environ.get(name) for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    expected = (chosen, None) if chosen else ("PASSIVE", "1000")
    assert tuple(found.values()) == expected
