"""Two processes on one machine: the same steps as one, and the same end however they are stopped."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training import toy_stage
from tests.training.ranks import finish_ranks, kill_ranks, run_ranks, start_ranks, wait_for_steps
from tests.training.toy_stage import CountingRows, run, write_config
from utils.training.loss import next_token_loss
from utils.training.rng import derived_seed

REPOSITORY = Path(toy_stage.__file__).resolve().parents[2]


def launched(root: Path, processes: int) -> list[str]:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
    cpu = ["--config_file", str(REPOSITORY / "config/accelerate/cpu.yaml")]
    return [*launcher, *cpu, toy_stage.__file__, str(root), "--config", str(root / "toy.json")]


def launch(root: Path, processes: int) -> subprocess.CompletedProcess:
    return subprocess.run(launched(root, processes), capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one_and_resume_into_one(tmp_path):
    """Four rows a step with unequal numbers of targets, so a mean of the ranks' means would differ."""
    one, two = tmp_path / "one", tmp_path / "two"
    for root in (one, two):
        root.mkdir()
        write_config(root, steps=8, save_every_steps=4, keep_last=9, micro_batch_rows="auto")
    assert run(one) == 0
    result = launch(two, 2)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("done") == 1  # rank 0 alone prints
    histories = [
        [json.loads(line) for line in (root / "checkpoints/toy/history.jsonl").read_text().splitlines()]
        for root in (one, two)
    ]
    for ours, theirs in zip(*histories, strict=True):
        assert ours["step"] == theirs["step"] and ours.get("tokens") == theirs.get("tokens")
        for name in {"loss", "val_loss", "grad_norm"} & ours.keys():
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5)
    weights = [torch.load(root / "checkpoints/toy/weights.pt") for root in (one, two)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-5, atol=1e-6)
    checkpoint = two / "checkpoints/toy/checkpoints/step_00000004"
    assert sorted(path.name for path in (checkpoint / "rng").iterdir()) == [
        "rank_00000.safetensors",
        "rank_00001.safetensors",
    ]
    (two / "checkpoints/toy").rename(two / "checkpoints/toy.done")
    moved = two / "checkpoints/toy.done/checkpoints/step_00000004"
    assert run(two, "--resume", str(moved)) == 0
    resumed = torch.load(two / "checkpoints/toy/weights.pt")
    for name, tensor in weights[0].items():
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_four_micro_batches_on_two_ranks_are_eight_on_one(tmp_path: Path) -> None:
    """
    Unequal numbers of targets; the first moment after one step is a tenth of the gradient, before Adam's
    division blows up what rounding did to small ones.
    """
    one, two = (prepared(tmp_path / name, steps=1, batch_rows=8, dropout=0.0) for name in ("one", "two"))
    halves = [next_token_loss.weigh(CountingRows().rows(half)) for half in (range(4), range(4, 8))]
    assert halves[0] != halves[1]
    assert run(one) == 0
    run_ranks(two)
    name = OURS / "checkpoints/step_00000001/optimizer.safetensors"
    ours, theirs = load_file(one / name), load_file(two / name)
    for key in (key for key in ours if key.startswith("exp_avg/")):
        torch.testing.assert_close(
            theirs[key], ours[key], rtol=1e-6, atol=1e-6 * float(ours[key].abs().max())
        )
    (first, second) = ([row for row in rows_of(root) if "loss" in row] for root in (one, two))
    for name in ("loss", "grad_norm", "tokens"):
        assert second[0][name] == pytest.approx(first[0][name], rel=1e-6)


@pytest.mark.slow
def test_two_processes_then_one_then_two(tmp_path: Path) -> None:
    changed = {"steps": 12, "save_every_steps": 4, "keep_last": 9, "dropout": 0.0}
    two, one, again = (prepared(tmp_path / name, **changed) for name in ("two", "one", "again"))
    run_ranks(two)
    assert run(one, "--resume", str(two / OURS / "checkpoints/step_00000004")) == 0
    said = run_ranks(again, "--resume", str(one / OURS / "checkpoints/step_00000008"))
    assert "ranks from 1 on draw from the seed, their number and step 8" in said
    cursors = [
        json.loads((root / OURS / "checkpoints" / step / "trainer.json").read_text())["cursor"]
        for root, step in ((two, "step_00000012"), (again, "step_00000012"))
    ]
    assert cursors[0] == cursors[1]
    whole, changing = rows_of(two), rows_of(again)
    assert [row["step"] for row in whole] == [row["step"] for row in changing]
    for before, after in zip(whole, changing, strict=True):
        for name in {"loss", "val_loss", "grad_norm"} & before.keys():
            assert after[name] == pytest.approx(before[name], rel=1e-5), (before, after)
    for root, first, ranks in ((two, 0, 2), (one, 4, 1), (again, 8, 2)):
        expected = {step: [*range(4 * step - 4, 4 * step)] for step in range(first + 1, 13)}
        assert rows_read(root, ranks) == expected


def rows_read(root: Path, ranks: int) -> dict[int, list[int]]:
    """Numbers of the rows of each step, those of rank 0 first."""
    read: dict[int, list[int]] = {}
    for rank in range(ranks):
        for line in (root / OURS / f"log/rows_{rank}.jsonl").read_text().splitlines():
            said = json.loads(line)
            read[said["step"]] = read.get(said["step"], []) + said["rows"]
    return read


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"poisoned_rows": [22, 27], "max_consecutive_skips": 2}, "2 steps in a row had a gradient"),
        ({"full_disk_step": 6}, "the disk is full"),
        ({"full_disk_step": 6, "steps": 6}, "the disk is full"),
    ],
    ids=["poisoned rows of rank 1", "full disk at a save", "full disk at the end"],
)
def test_what_rank_0_meets_while_saving_ends_all_ranks_with_its_code(
    tmp_path: Path, changed: dict, text: str
) -> None:
    """Rows 22 and 27 are the last of rank 1 in steps 6 and 7; a checkpoint is due after each step."""
    root = prepared(tmp_path / "run", **{"steps": 30, "save_every_steps": 1} | changed)
    codes, said = finish_ranks(start_ranks(root))
    assert codes == [4, 4], said
    assert said.count(text) == 1 and "Traceback" not in said, said
    assert ending(root) == ("failed", 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failed", "code", "text"),
    [
        ("1 memory 8", 4, "out of memory on cpu in step 9"),
        ("0 memory 8", 4, "out of memory on cpu in step 9"),
        ("1 host memory 0", 4, "held at most (MemoryError)"),
        ("0 disk 6", 4, "the disk is full"),
        ("1 bug 8", 1, "ZeroDivisionError: division by zero"),
    ],
)
def test_what_one_rank_meets_alone_ends_the_other_that_waits_for_it(
    tmp_path: Path, failed: str, code: int, text: str
) -> None:
    """The first to fail waits until the other comes along; alone, that would find a broken connection."""
    root = prepared(tmp_path / "run", poisoned_rows=[22], steps=2000)
    codes, said = finish_ranks(start_ranks(root, **{toy_stage.FAILED: failed}))
    assert codes == [code, code], said
    assert said.count(text) == 1 and said.count("Traceback") == (code == 1), said
    assert ending(root) == ("failed", code)


@pytest.mark.slow
def test_a_signal_for_one_rank_inside_an_evaluation_leaves_it_to_the_next_start(tmp_path: Path) -> None:
    calm, stopped = (prepared(tmp_path / name) for name in ("calm", "stopped"))
    run_ranks(calm)
    codes, said = finish_ranks(start_ranks(stopped, **{toy_stage.STOPPED: "1 8"}))
    assert codes == [75, 75], said
    folder = stopped / OURS.with_suffix(".partial") / "checkpoints/step_00000008"
    assert json.loads((folder / "trainer.json").read_text())["unevaluated"]
    assert ending(stopped) == ("preempted", 75)
    run_ranks(stopped)
    assert files(stopped) == files(calm)


def test_a_rank_without_a_saved_state_draws_from_seed_rank_and_step() -> None:
    drawn = {derived_seed(seed, rank, step) for seed in (0, 1) for rank in (1, 2) for step in (4, 8)}
    assert len(drawn) == 8 and derived_seed(0, 1, 4) == derived_seed(0, 1, 4)


def rows_of(root: Path) -> list[dict]:
    return [json.loads(line) for line in (root / OURS / "history.jsonl").read_text().splitlines()]


OURS = Path("checkpoints/toy")
OPTIMIZERS = {"adamw": {}, "velvet": {"kind": "velvet"}}
CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}
WORDS = {signal.SIGTERM: "preempted", signal.SIGINT: "interrupted"}
SETTINGS = {"steps": 24, "dropout": 0.3, "save_every_steps": 3, "micro_batch_rows": 1, "eval_every_steps": 8}


def prepared(root: Path, **changed: object) -> Path:
    root.mkdir()
    write_config(root, **SETTINGS | changed)
    return root


def files(root: Path) -> dict[str, bytes]:
    return {
        name: (root / OURS / name).read_bytes() for name in ("weights.pt", "history.jsonl", "samples.jsonl")
    }


def steps_of(root: Path) -> int:
    """Steps that the curve has of the run, finished or not."""
    curves = [root / OURS.with_suffix(suffix) / "log/metrics.jsonl" for suffix in (".partial", "")]
    return max((len(path.read_text().splitlines()) for path in curves if path.is_file()), default=0)


def ending(root: Path) -> tuple[str, int]:
    state = json.loads((root / OURS.with_suffix(".partial") / "state.json").read_text())
    return state["ended"], state["exit_code"]


@pytest.mark.slow
def test_killed_and_stopped_ranks_continue_to_the_same_bytes(tmp_path: Path) -> None:
    """-9 for both, then SIGTERM and Ctrl-C for one of them, which leave together."""
    calm, hunted = (prepared(tmp_path / name, optimizer=OPTIMIZERS["velvet"]) for name in ("calm", "hunted"))
    run_ranks(calm)
    ranks = start_ranks(hunted)
    wait_for_steps(hunted, 3, ranks)
    kill_ranks(ranks)
    assert finish_ranks(ranks)[0] == [-9, -9]
    for number in (signal.SIGTERM, signal.SIGINT):
        ranks = start_ranks(hunted)
        wait_for_steps(hunted, 1, ranks)
        ranks[1].send_signal(number)
        codes, said = finish_ranks(ranks)
        assert codes == [CODES[number]] * 2, said
        assert "checkpoint of step" in said and ending(hunted) == (WORDS[number], CODES[number])
    run_ranks(hunted)
    assert files(hunted) == files(calm)


RUN_AND_ASK = """
import sys
from pathlib import Path
from tests.training.toy_stage import workspace_of
from utils.pipeline.ending import ending_of
from utils.pipeline.run import start_process

root = Path(sys.argv[1])
code = start_process(sys.argv[2:], root)
assert code == 1, "the launcher hides what the stage left with"
sys.exit(ending_of(workspace_of(root), root / "checkpoints/toy"))
"""


@pytest.mark.slow
def test_a_signal_for_the_pipeline_reaches_launched_ranks_and_their_code_comes_back(tmp_path: Path) -> None:
    root = prepared(tmp_path / "run", steps=2000, save_every_steps=500)
    command = [sys.executable, "-c", RUN_AND_ASK, str(root), *launched(root, 2)]
    pipeline = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_for_steps(root, 2, [pipeline])
    pipeline.send_signal(signal.SIGTERM)
    codes, said = finish_ranks([pipeline])
    assert codes == [75], said
    assert ending(root) == ("preempted", 75) and said.count("checkpoint of step") == 1


@pytest.mark.bench
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_twenty_kills_of_two_ranks(tmp_path: Path, kind: str) -> None:
    """
    The toy model, so that a machine with other work can do it; the smoke model's are in tests/test_kills.py.
    """
    calm, hunted = (prepared(tmp_path / name, optimizer=OPTIMIZERS[kind]) for name in ("calm", "hunted"))
    run_ranks(calm)
    dice, steps, compared = random.Random(kind), [], 0
    while len(steps) < 20:
        ranks = start_ranks(hunted)
        wait_for_steps(hunted, dice.randrange(5), ranks)
        time.sleep(0.05 * dice.random())
        kill_ranks(ranks)
        codes, said = finish_ranks(ranks)
        if codes == [0, 0]:
            assert files(hunted) == files(calm)
            shutil.rmtree(hunted / OURS)
            compared += 1
            continue
        assert set(codes) == {-9}, said
        steps.append(steps_of(hunted))
    run_ranks(hunted)
    assert files(hunted) == files(calm)
    print(f"\n{kind}: 20 kills after so many rows of the curve: {steps}; {compared + 1} ends compared")


@pytest.mark.bench
def test_twenty_signals_for_one_of_two_ranks(tmp_path: Path) -> None:
    """At random moments from the first on at which both listen, so also before the first step."""
    calm, hunted = (prepared(tmp_path / name) for name in ("calm", "hunted"))
    ranks = start_ranks(calm)
    began = wait_for_lock(calm, ranks)
    assert finish_ranks(ranks)[0] == [0, 0]
    longest, dice, steps = time.monotonic() - began, random.Random(20), []
    while len(steps) < 20:
        number, rank = dice.choice(list(CODES)), dice.randrange(2)
        ranks = start_ranks(hunted)
        wait_for_lock(hunted, ranks)
        time.sleep(longest * dice.random())
        ranks[rank].send_signal(number)
        codes, said = finish_ranks(ranks)
        if codes == [0, 0]:
            assert files(hunted) == files(calm)
            shutil.rmtree(hunted / OURS)
            continue
        assert codes == [CODES[number]] * 2, said
        assert ending(hunted) == (WORDS[number], CODES[number])
        steps.append(steps_of(hunted))
    run_ranks(hunted)
    assert files(hunted) == files(calm)
    print(f"\n20 signals for one of two ranks, after so many rows of the curve: {steps}")


def wait_for_lock(root: Path, ranks: list[subprocess.Popen]) -> float:
    """When rank 0 has taken the output folder; both have joined and listen by then."""
    lock = root / "data/.lockstep/locks" / (str(OURS).replace("/", "__") + ".lock")
    while not (lock.is_file() and f'"pid": {ranks[0].pid},' in lock.read_text()):
        assert ranks[0].poll() is None, ranks[0].communicate()
        time.sleep(0.005)
    return time.monotonic()


def test_a_batch_that_the_processes_cannot_share_is_refused(tmp_path, capsys, monkeypatch):
    from utils.training.machine import Machine

    write_config(tmp_path)
    monkeypatch.setattr(Machine, "num_ranks", property(lambda self: 3))
    monkeypatch.setattr(Machine, "wrap", lambda self, module: module)
    assert run(tmp_path) == 2
    assert "a global batch of 4 rows cannot be shared by 3 processes" in capsys.readouterr().err
