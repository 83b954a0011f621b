"""
The whole house on the smoke profile, as a user runs it: built twice, the second time with a kill -9 in every
stage, then damaged in every way that the matrix marks for real stages.

    python -m pytest tests/test_smoke.py
"""

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Clone

pytestmark = pytest.mark.slow

STAGES = (
    "10_generate",
    "20_prepare_corpus",
    "30_train_tokenizer",
    "40_pack_dataset",
    "50_pretrain",
    "60_prepare_sft",
    "70_train_sft",
    "80_prepare_preferences",
    "90_train_preferences",
    "100_evaluate",
    "110_merge_lora",
    "120_convert_gguf",
)
GGUF = "checkpoints/smoke/gguf/model-q8_0.gguf"


def manifests(clone: Clone) -> dict[str, dict]:
    """Stage -> manifest of everything that the smoke profile has built."""
    paths = [
        *clone.root.glob("data/smoke/*/manifest.json"),
        *clone.root.glob("checkpoints/smoke/*/manifest.json"),
    ]
    found = [json.loads(path.read_text()) for path in paths]
    return {manifest["stage"]: manifest for manifest in found}


def digests(clone: Clone) -> dict[str, str]:
    return {stage: manifest["output_digest"] for stage, manifest in manifests(clone).items()}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory, clone_repository: Callable[[Path], Clone]) -> Clone:
    """The smoke profile, built once from nothing; tests that damage it work on a fork."""
    clone = clone_repository(tmp_path_factory.mktemp("smoke") / "repository")
    done = clone.pipeline("run", "smoke")
    assert done.returncode == 0, done.stdout
    assert "12 stages: 0 up to date, 12 built, 0 failed" in done.stdout
    return clone


@pytest.fixture
def fork(smoke: Clone, tmp_path: Path) -> Clone:
    return smoke.fork(tmp_path / "fork")


def test_a_second_run_finds_everything_up_to_date_and_is_quick(smoke: Clone) -> None:
    started = time.time()
    done = smoke.pipeline("run", "smoke")
    assert done.returncode == 0, done.stdout
    assert "12 stages: 12 up to date, 0 built, 0 failed" in done.stdout
    assert time.time() - started < 5


def test_every_artifact_is_ok_and_the_gguf_proves_its_ancestors(smoke: Clone) -> None:
    status = smoke.pipeline("status", "smoke")
    assert status.returncode == 0, status.stdout
    assert len(re.findall(r"^\d+_\w+ +ok ", status.stdout, flags=re.MULTILINE)) == 12
    verify = smoke.pipeline("verify", GGUF)
    assert verify.returncode == 0, verify.stdout
    assert all(
        stage in verify.stdout for stage in STAGES if stage not in ("90_train_preferences", "100_evaluate")
    )


def test_a_gguf_alone_in_another_folder_proves_itself(smoke: Clone, tmp_path: Path) -> None:
    alone = tmp_path / "alone.gguf"
    shutil.copy(smoke.root / GGUF, alone)
    done = smoke.pipeline("verify", str(alone))
    assert done.returncode == 0, done.stdout
    assert "lineage of" in done.stdout


def test_smoke_learns_something(smoke: Clone) -> None:
    metrics = manifests(smoke)["50_pretrain"]["metrics"]
    assert metrics["val_loss"] < metrics["unigram_loss"]


def test_the_chat_answers_once(smoke: Clone) -> None:
    done = smoke.run("tools/chat.py", "--model", GGUF, "--once", "What does a cow say?")
    assert done.returncode == 0, done.stdout
    assert done.stdout.strip()


def test_killed_in_every_stage_it_ends_in_the_same_bytes(
    smoke: Clone, tmp_path: Path, clone_repository: Callable[[Path], Clone]
) -> None:
    """
    Acceptance 3 and 4 in one: a second build in another folder, each stage killed once at a random
    moment.
    """
    clone, dice = clone_repository(tmp_path / "second"), random.Random(20260101)
    built = manifests(smoke)
    for stage in STAGES:
        seconds = built[stage]["run"]["seconds"]
        kill_at_random(clone, stage, 1.0 + dice.random() * seconds)
        done = clone.stage(stage)
        assert done.returncode == 0, done.stdout
    assert digests(clone) == digests(smoke)


def kill_at_random(clone: Clone, stage: str, seconds: float) -> None:
    process = clone.start(
        f"scripts/{stage}.py", "--config", f"config/smoke/{stage}.json", start_new_session=True
    )
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    output = json.loads((clone.root / f"config/smoke/{stage}.json").read_text()).get("output")
    folder = clone.root / output if output else None
    assert folder is None or not folder.exists() or (folder / "manifest.json").exists()


def test_sigterm_while_training_is_75_and_the_same_command_continues(fork: Clone, smoke: Clone) -> None:
    shutil.rmtree(fork.root / "checkpoints/smoke/base")
    process = fork.start("scripts/50_pretrain.py", "--config", "config/smoke/50_pretrain.json")
    wait_for_checkpoint(fork, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    done = fork.stage("50_pretrain")
    assert done.returncode == 0 and "resum" in done.stdout, done.stdout
    assert digests(fork)["50_pretrain"] == digests(smoke)["50_pretrain"]


def test_a_changed_learning_rate_does_not_continue_a_killed_run(fork: Clone) -> None:
    shutil.rmtree(fork.root / "checkpoints/smoke/base")
    process = fork.start(
        "scripts/50_pretrain.py", "--config", "config/smoke/50_pretrain.json", start_new_session=True
    )
    wait_for_checkpoint(fork, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    edit_config(fork, "50_pretrain", {"optimizer": {"learning_rate": 0.00012345}})
    done = fork.stage("50_pretrain")
    assert done.returncode == 3, done.stdout
    assert (
        "learning_rate" in done.stdout and "-> 0.00012345" in done.stdout and "--resume never" in done.stdout
    )


def wait_for_checkpoint(clone: Clone, process: subprocess.Popen) -> None:
    partial = clone.root / "checkpoints/smoke/base.partial/checkpoints"
    for _ in range(600):
        if list(partial.glob("step_*/manifest.json")) or process.poll() is not None:
            break
        time.sleep(0.1)
    assert process.poll() is None, process.communicate()[0]


def edit_config(clone: Clone, stage: str, change: dict) -> None:
    path = clone.root / f"config/smoke/{stage}.json"
    document = json.loads(path.read_text())
    for key, value in change.items():
        document[key] = document.get(key, {}) | value if isinstance(value, dict) else value
    path.write_text(json.dumps(document))


def flip_a_byte(path: Path, offset: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def first_file(clone: Clone, pattern: str) -> Path:
    return sorted(clone.root.glob(pattern))[0]


def run_fix(clone: Clone, output: str) -> None:
    """Run the printed command, as a user would."""
    fix = re.search(r"^  fix +python (.+)$", output, flags=re.MULTILINE)
    assert fix, output
    done = clone.run(*fix[1].split())
    assert done.returncode == 0, done.stdout


def test_an_edited_corpus_shard_is_refused_and_its_fix_mends_it(fork: Clone, smoke: Clone) -> None:
    flip_a_byte(first_file(fork, "data/smoke/corpus/train/*.zst"))
    done = fork.stage("40_pack_dataset", "--force")
    assert done.returncode == 3 and "is tampered" in done.stdout and "train/00000.jsonl.zst" in done.stdout
    assert "Traceback" not in done.stdout
    run_fix(fork, done.stdout)
    assert fork.stage("40_pack_dataset").returncode == 0
    assert digests(fork) == digests(smoke)


def test_a_truncated_packed_file_is_named_with_both_sizes(fork: Clone) -> None:
    path = fork.root / "data/smoke/packed/train.bin"
    size = path.stat().st_size
    os.truncate(path, size - 2)
    done = fork.stage("50_pretrain", "--force")
    assert done.returncode == 3, done.stdout
    assert f"{size:,} bytes" in done.stdout and f"{size - 2:,} bytes" in done.stdout


@pytest.mark.parametrize("stage", ["40_pack_dataset", "50_pretrain", "100_evaluate"])
def test_a_swapped_tokenizer_model_is_refused(fork: Clone, stage: str) -> None:
    flip_a_byte(fork.root / "data/smoke/tokenizer/tokenizer.model", offset=200)
    done = fork.stage(stage, "--force")
    assert done.returncode == 3, done.stdout
    assert "tokenizer.model" in done.stdout and "tampered" in done.stdout


@pytest.fixture
def other(fork: Clone) -> Clone:
    """A second tokenizer, valid and of the same size, beside that of the smoke profile, and its SFT rows."""
    folder = fork.root / "config/other"
    folder.mkdir()
    changes = {
        "20_prepare_corpus": {"output": "data/other/corpus", "seed": 1},
        "30_train_tokenizer": {"output": "data/other/tokenizer", "inputs": {"corpus": "data/other/corpus"}},
        "60_prepare_sft": {"output": "data/other/sft", "inputs": {"tokenizer": "data/other/tokenizer"}},
    }
    for stage, change in changes.items():
        document = {"extends": f"../smoke/{stage}.json"} | change
        (folder / f"{stage}.json").write_text(json.dumps(document))
        done = fork.stage(stage, profile="other")
        assert done.returncode == 0, done.stdout
    ours, theirs = (fork.root / f"data/{name}/tokenizer/tokenizer.model" for name in ("smoke", "other"))
    assert ours.read_bytes() != theirs.read_bytes()
    return fork


def test_a_whole_tokenizer_of_equal_size_is_not_taken_for_the_right_one(other: Clone, smoke: Clone) -> None:
    shutil.rmtree(other.root / "data/smoke/tokenizer")
    shutil.copytree(other.root / "data/other/tokenizer", other.root / "data/smoke/tokenizer")
    done = other.stage("50_pretrain", "--force")
    assert done.returncode == 3, done.stdout
    assert "inputs use different tokenizers" in done.stdout and "model bytes; pieces" in done.stdout
    run_fix(other, done.stdout)
    assert digests(other) == digests(smoke)


def test_a_tokenizer_trained_again_to_the_same_bytes_changes_nothing(fork: Clone) -> None:
    assert fork.stage("30_train_tokenizer", "--force").returncode == 0
    done = fork.stage("40_pack_dataset")
    assert done.returncode == 0 and "up to date" in done.stdout, done.stdout


def test_rows_of_another_tokenizer_do_not_train_this_base(other: Clone) -> None:
    edit_config(other, "70_train_sft", {"inputs": {"data": [{"path": "data/other/sft"}]}})
    done = other.stage("70_train_sft")
    assert done.returncode == 3, done.stdout
    assert "inputs use different tokenizers" in done.stdout and "Traceback" not in done.stdout


def test_an_evaluation_set_of_another_tokenizer_is_refused(other: Clone) -> None:
    edit_config(other, "100_evaluate", {"inputs": {"sft_data": "data/other/sft"}})
    done = other.stage("100_evaluate")
    assert done.returncode == 3, done.stdout
    assert "different tokenizers" in done.stdout and "Traceback" not in done.stdout


def test_a_shard_edited_while_it_is_packed_leaves_nothing_sealed(fork: Clone, smoke: Clone) -> None:
    shutil.rmtree(fork.root / "data/smoke/packed")
    script = fork.root / "scripts/40_pack_dataset.py"
    code = script.read_text()
    pause = (
        "    while not (stage.partial.parent / 'edited').exists():\n        __import__('time').sleep(0.05)\n"
    )
    last = "    return packing_metrics("
    assert last in code
    script.write_text(code.replace(last, pause + last))  # all is read and packed, nothing is sealed
    process = fork.start("scripts/40_pack_dataset.py", "--config", "config/smoke/40_pack_dataset.json")
    while not (fork.root / "data/smoke/packed.partial/train.bin").exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(2)
    flip_a_byte(first_file(fork, "data/smoke/corpus/train/*.zst"))
    (fork.root / "data/smoke/edited").touch()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 3, output
    assert "changed while 40_pack_dataset was running" in output and "train/00000.jsonl.zst" in output
    assert not (fork.root / "data/smoke/packed").exists()
    script.write_text(code)
    commands = re.findall(r"^  (?:fix|then) +(?:rerun: )?python (.+)$", output, flags=re.MULTILINE)
    assert len(commands) == 2, output
    for command in commands:
        done = fork.run(*command.split())
        assert done.returncode == 0, done.stdout
    assert digests(fork) == digests(smoke)


def test_a_killed_training_does_not_continue_on_other_data(fork: Clone) -> None:
    shutil.rmtree(fork.root / "checkpoints/smoke/base")
    process = fork.start(
        "scripts/50_pretrain.py", "--config", "config/smoke/50_pretrain.json", start_new_session=True
    )
    wait_for_checkpoint(fork, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    edit_config(fork, "40_pack_dataset", {"mode": "concat"})
    assert fork.stage("40_pack_dataset").returncode == 0
    done = fork.stage("50_pretrain")
    assert done.returncode == 3, done.stdout
    assert "input.data:" in done.stdout and "--resume never" in done.stdout


def test_touched_and_copied_files_change_nothing(fork: Clone) -> None:
    for path in fork.root.glob("data/smoke/**/*"):
        os.utime(path)
    done = fork.pipeline("run", "smoke")
    assert done.returncode == 0 and "12 up to date" in done.stdout, done.stdout


def test_a_changed_setting_rebuilds_its_stage_and_is_named_by_a_grandchild(fork: Clone) -> None:
    edit_config(fork, "40_pack_dataset", {"max_val_tokens": 2000})
    done = fork.stage("70_train_sft", "--force")
    assert done.returncode == 3, done.stdout
    assert "config.max_val_tokens" in done.stdout and "-> 2000" in done.stdout
    plan = fork.pipeline("plan", "smoke")
    assert re.search(r"40_pack_dataset +run +stale \(config.max_val_tokens", plan.stdout), plan.stdout
    assert re.search(r"50_pretrain +maybe +waits for 40_pack_dataset", plan.stdout), plan.stdout


def test_a_replaced_gguf_is_refused_by_verify_and_chat(fork: Clone) -> None:
    flip_a_byte(fork.root / GGUF)
    verify = fork.pipeline("verify", GGUF)
    assert verify.returncode == 3 and "tampered" in verify.stdout, verify.stdout
    chat = fork.run("tools/chat.py", "--model", GGUF, "--once", "hello")
    assert chat.returncode == 3 and "tampered" in chat.stdout, chat.stdout


def test_two_runs_of_one_profile_do_not_meet(fork: Clone) -> None:
    shutil.rmtree(fork.root / "data/smoke/packed")
    first = fork.start("tools/pipeline.py", "run", "smoke", "--to", "40_pack_dataset")
    time.sleep(0.3)
    second = fork.pipeline("run", "smoke", "--to", "40_pack_dataset")
    first.communicate(timeout=120)
    assert first.returncode == 0
    assert second.returncode == 4 and "(pid " in second.stdout, second.stdout


def test_a_missing_upstream_names_the_command_that_builds_it(fork: Clone) -> None:
    shutil.rmtree(fork.root / "data/smoke/packed")
    done = fork.stage("50_pretrain", "--force")
    assert done.returncode == 3, done.stdout
    assert "is missing" in done.stdout and "tools/pipeline.py run smoke --to 40_pack_dataset" in done.stdout


@pytest.mark.parametrize("stage", STAGES)
def test_a_misspelt_key_is_one_readable_error(fork_config: Clone, stage: str) -> None:
    path = fork_config.root / f"config/smoke/{stage}.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"outptu": "x"}))
    done = fork_config.stage(stage)
    assert done.returncode == 2, done.stdout
    assert 'unknown key "outptu" (did you mean "output"?)' in done.stdout and "Traceback" not in done.stdout


@pytest.fixture(scope="module")
def fork_config(tmp_path_factory: pytest.TempPathFactory, clone_repository: Callable[[Path], Clone]) -> Clone:
    return clone_repository(tmp_path_factory.mktemp("configs") / "repository")


TRAINING = {"50_pretrain": "base", "70_train_sft": "sft", "90_train_preferences": "preferences"}


@pytest.mark.parametrize("stage", TRAINING)
def test_two_processes_train_one_model_with_one_writer(fork: Clone, smoke: Clone, stage: str) -> None:
    """By the README's own line, which is thereby known to train."""
    shutil.rmtree(fork.root / "checkpoints/smoke" / TRAINING[stage])
    (line,) = (command for command in readme_commands() if command.startswith("accelerate "))
    words = shlex.split(line.replace("demo", "smoke").replace("50_pretrain", stage))
    place = words.index(f"scripts/{stage}.py")
    launch = ["-m", "accelerate.commands.accelerate_cli", *words[1:place]]
    done = fork.run(*launch, "--num_processes", "2", *words[place:])
    assert done.returncode == 0, done.stdout
    assert len(re.findall(rf"^{stage} +done ", done.stdout, flags=re.MULTILINE)) == 1, done.stdout
    one, two = (manifests(clone)[stage]["metrics"] for clone in (smoke, fork))
    assert two["steps"] == one["steps"]
    assert two["final_train_loss"] == pytest.approx(one["final_train_loss"], rel=1e-3)


def test_no_output_names_a_folder_of_this_machine(smoke: Clone) -> None:
    for stage, manifest in manifests(smoke).items():
        folder = smoke.root / manifest["config"]["resolved"]["output"]
        for output in manifest["outputs"]:
            data = (folder / output["path"]).read_bytes()
            assert str(smoke.root).encode() not in data, f"{stage}: {output['path']}"


def readme_commands() -> list[str]:
    """Every command line of the README's shell blocks."""
    text = (Path(__file__).resolve().parents[1] / "README.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("command", [each for each in readme_commands() if not each.startswith("accelerate")])
def test_readme_commands_work(smoke: Clone, command: str) -> None:
    """
    On the smoke profile, where they take seconds; make targets are expanded, not run. The launched line would
    find its artifact up to date here: two processes train by it above.
    """
    words = shlex.split(command.replace("demo", "smoke"))
    if words[0] == "make":
        done = subprocess.run(["make", "-n", *words[1:]], cwd=smoke.root, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return
    assert words[0] == "python"
    result = smoke.run(*words[1:])
    assert result.returncode == 0, result.stdout
    assert result.stdout.strip() and "Traceback" not in result.stdout


def test_the_readme_has_commands_of_each_kind() -> None:
    firsts = {command.split()[0] for command in readme_commands()}
    assert firsts == {"make", "python", "accelerate"} and len(readme_commands()) > 10
