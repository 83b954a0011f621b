"""tools/pipeline.py: its outputs to the letter, over the toy chain (P44)."""

import json
import re
import shutil
import signal

import pytest

from tests.pipeline.toy import Toy
from tests.pipeline.toy_configs import CLASSES
from utils.pipeline.locks import exclusive

PACK, BASE = "40_pack_dataset", "50_pretrain"
TRAIN = "train/00000.jsonl.zst"


def shown(toy: Toy, text: str) -> str:
    """The text with digests by their stage and times by a letter."""
    for stage in CLASSES:
        if (toy.folder(stage) / "manifest.json").is_file():
            text = text.replace(toy.digest(stage)[:12], f"<{stage.split('_')[0]:_<10}>")
    text = re.sub(r"\b[0-9a-f]{12}\b", "<another___>", text)
    return re.sub(r"\d+\.\d s", "T s", text)


def lines(text: str) -> list[str]:
    return text.strip("\n").splitlines()


def test_run(toy: Toy) -> None:
    before = toy.tool("run", "demo", "--to", PACK)
    assert lines(shown(toy, before.text)) == [
        "20_prepare_corpus      up to date   <20________>",
        "30_train_tokenizer     up to date   <30________>",
        "40_pack_dataset        up to date   <40________>",
        "3 stages: 3 up to date, 0 built, 0 failed in T s",
    ]
    toy.set(PACK, sequence_length_tokens=128)
    result = toy.tool("run", "demo", "--from", "30_train_tokenizer", "--to", BASE)
    own = [line for line in lines(shown(toy, result.text)) if not re.search(r"  (build|done) ", line)]
    assert own == [
        "30_train_tokenizer     up to date   <30________>",
        "40_pack_dataset        built        <40________>   T s   was <another___>: "
        "config.sequence_length_tokens 256 -> 128",
        "50_pretrain            built        <50________>   T s   was <another___>: "
        "input.data <another___> -> <40________>",
        "3 stages: 1 up to date, 2 built, 0 failed in T s",
    ]


def test_run_starts_no_process_for_what_is_up_to_date(toy: Toy) -> None:
    started: list[str] = []
    toy._launch = lambda command, root: started.append(command) or 9
    assert toy.tool("run", "demo").code == 0 and started == []
    assert toy.tool("run", "demo", "--force", PACK).code == 9
    (command,) = started
    assert command[1:] == [
        f"scripts/{PACK}.py", "--config", f"config/demo/{PACK}.json", "--verify", "full", "--force",
    ]  # fmt: skip


def test_run_launches_training_stages_with_accelerate(toy: Toy) -> None:
    started: list[str] = []
    toy._launch = lambda command, root: started.append(command) or 9
    options = ("--accelerate", "config/accelerate/cpu.yaml", "--verify", "cached")
    for stage in (PACK, BASE):
        toy.tool("run", "demo", "--force", stage, *options)
    assert started[0][1] == f"scripts/{PACK}.py"
    assert started[1][1:5] == [
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        "config/accelerate/cpu.yaml",
    ]
    assert started[1][5:9] == [f"scripts/{BASE}.py", "--config", f"config/demo/{BASE}.json", "--verify"]


@pytest.mark.parametrize(("code", "word"), [(2, "failed"), (4, "failed"), (75, "stopped"), (130, "stopped")])
def test_run_ends_with_the_code_of_the_first_that_fails(toy: Toy, code: int, word: str) -> None:
    toy.set("20_prepare_corpus", seed=4)
    toy._launch = lambda command, root: code
    result = toy.tool("run", "demo")
    assert result.code == code
    assert lines(shown(toy, result.text)) == [
        f"20_prepare_corpus      {word:<13}exit {code}",
        "9 stages: 0 up to date, 0 built, 1 failed in T s",
    ]


def test_run_asks_the_build_folder_for_a_code_that_a_launcher_hid(toy: Toy) -> None:
    shutil.rmtree(toy.folder(BASE))
    launch = toy._launch
    toy.hooks = {"50.step": lambda stage: signal.raise_signal(signal.SIGTERM)}
    toy._launch = lambda command, root: min(launch(command, root), 1)
    assert toy.tool("run", "demo", "--to", BASE).code == 75
    state = json.loads((toy.root / "checkpoints/demo/base.partial/state.json").read_text())
    assert (state["ended"], state["exit_code"]) == ("preempted", 75)
    toy.flip(PACK, "train.bin")  # a refusal leaves no build folder of its own
    assert toy.tool("run", "demo", "--from", BASE, "--to", BASE).code == 3
    assert json.loads((toy.root / "checkpoints/demo/base.partial/state.json").read_text()) == state


def test_plan(toy: Toy) -> None:
    toy.set(PACK, sequence_length_tokens=512)
    shutil.rmtree(toy.folder("110_merge_lora"))
    toy.flip("60_prepare_sft", "rows.jsonl")
    text = re.sub(r" +about \d+ s", "", toy.tool("plan", "demo").text)
    text = re.sub(r"[0-9a-f]{12}", "<digest>", text)
    assert lines(text) == [
        "20_prepare_corpus      up to date",
        "30_train_tokenizer     up to date",
        "40_pack_dataset        run     stale (config.sequence_length_tokens: 256 -> 512)",
        "50_pretrain            maybe   waits for 40_pack_dataset",
        "60_prepare_sft         refuse  tampered (rows.jsonl: expected <digest>, actual <digest>)",
        "70_train_sft           maybe   waits for 50_pretrain",
        "100_evaluate           maybe   waits for 50_pretrain",
        "110_merge_lora         run     missing",
        "120_convert_gguf       maybe   waits for 110_merge_lora",
    ]


def test_plan_says_how_long_it_took_last_time(toy: Toy) -> None:
    def slower(raw: dict) -> None:
        raw["run"]["seconds"] = 3.9

    toy.edit_manifest(PACK, slower, reseal=False)  # `run` is in no digest
    toy.set(PACK, sequence_length_tokens=512)
    row = toy.tool("plan", "demo").text.splitlines()[2]
    assert (
        row == "40_pack_dataset        run     stale (config.sequence_length_tokens: 256 -> 512)   about 4 s"
    )


def test_status(toy: Toy) -> None:
    toy.put("utils/packing/pack.py", "def pack(ids):\n    return list(ids)\n")
    toy.set(PACK, sequence_length_tokens=512)
    assert toy.run(BASE, "--force", "--allow-mismatch", "same text, longer rows").code == 0
    assert toy.run("70_train_sft", "--force").code == 0
    shutil.rmtree(toy.folder("100_evaluate"))
    toy.flip("60_prepare_sft", "rows.jsonl")
    result = toy.tool("status", "demo")
    text = shown(toy, result.text).replace("<another___>", "<digest>")
    note = "code changed: utils.packing.pack"
    allowed = 'stale config.sequence_length_tokens: 256 -> 512; "same text, longer rows"'
    edited = "rows.jsonl: expected <digest>, actual <digest>"
    inherited = 'stale config.sequence_length_tokens of 40_pack_dataset; "same text, longer rows"'
    assert lines(text)[:6] == [
        f"20_prepare_corpus      ok         <20________>     0.0 MB   {note}",
        f"30_train_tokenizer     ok         <30________>     0.2 MB   {note}",
        f"40_pack_dataset        allowed    <40________>     0.0 MB   {allowed}; {note}",
        f"50_pretrain            allowed    <50________>     0.2 MB   {inherited}",
        f"60_prepare_sft         tampered   <60________>     0.0 MB   {edited}; {note}",
        f"70_train_sft           allowed    <70________>     0.2 MB   {inherited}",
    ]
    assert lines(text)[6] == "100_evaluate           missing"
    fix = "python scripts/60_prepare_sft.py --config config/demo/60_prepare_sft.json --force"
    assert result.code == 3 and lines(text)[-1].endswith(f"problems: {fix}")


def test_status_when_all_is_well(toy: Toy) -> None:
    result = toy.tool("status", "demo", "--verify", "cached")
    assert result.code == 0 and [line.split()[1] for line in lines(result.text)] == ["ok"] * 9


def test_why(toy: Toy) -> None:
    old = toy.digest(PACK)[:12]
    toy.set(PACK, sequence_length_tokens=128)
    toy.run(PACK)
    result = toy.tool("why", "checkpoints/demo/base")
    assert result.code == 0
    assert lines(shown(toy, result.text.replace(old, "OLD"))) == [
        "50_pretrain  <50________>  stale (input.data: OLD -> <40________>)",
        "  data       data/demo/packed was rebuilt after this: config.sequence_length_tokens 256 -> 128",
        "  tokenizer  data/demo/tokenizer unchanged; code: same modules",
        "  fix        python tools/pipeline.py run demo --to 50_pretrain",
    ]
    assert toy.tool("why", "data/demo/corpus").text.splitlines()[1:] == [
        "  source     books: raw/books/*.txt, 3 files; code: same modules"
    ]
    toy.run("30_train_tokenizer", "--force")
    assert (
        "tokenizer  data/demo/tokenizer was rebuilt to the same bytes"
        in toy.tool("why", "checkpoints/demo/base").text
    )
    shutil.rmtree(toy.root / "data/.lockstep")
    assert (
        f"was rebuilt after this: {old} -> {toy.digest(PACK)[:12]}"
        in toy.tool("why", "checkpoints/demo/base").text
    )
    toy.flip(BASE, "model.safetensors")
    text = toy.tool("why", "checkpoints/demo/base").text
    assert (
        "  fix        python scripts/50_pretrain.py --config config/demo/50_pretrain.json --force\n" in text
    )
    shutil.rmtree(toy.folder(BASE))
    assert toy.tool("why", "checkpoints/demo/base").code == 2


def test_verify(toy: Toy) -> None:
    seal = toy.manifest(PACK)["inputs"][0]["manifest_sha256"][:12]
    shutil.rmtree(toy.folder("20_prepare_corpus"))
    size = (toy.root / "checkpoints/demo/gguf/model-q8_0.gguf").stat().st_size
    result = toy.tool("verify", "checkpoints/demo/gguf/model-q8_0.gguf")
    text = re.sub(r"tensors [0-9a-f]{12}", "tensors X", result.text)
    assert result.code == 0
    assert lines(re.sub(r"in \d+\.\d s", "in T s", text)) == [
        f"model-q8_0.gguf                  ok   {size:,} bytes, tensors X, lineage of 7 artifacts",
        "  120_convert_gguf               ok   checkpoints/demo/gguf",
        "    110_merge_lora               ok   checkpoints/demo/merged",
        "      70_train_sft               ok   checkpoints/demo/sft",
        "        50_pretrain              ok   checkpoints/demo/base",
        "          40_pack_dataset        ok   data/demo/packed",
        f"            20_prepare_corpus    not on disk, not checked (archived manifest {seal})",
        "            30_train_tokenizer   ok   data/demo/tokenizer",
        "        60_prepare_sft           ok   data/demo/sft",
        "verified 19 files, 1.0 MB in T s",
    ]


def test_diff(toy: Toy) -> None:
    toy.write_configs("trial")
    toy.set(PACK, profile="trial", sequence_length_tokens=128)
    toy.set("20_prepare_corpus", profile="trial", seed=4)
    assert toy.tool("run", "trial", "--to", PACK).code == 0
    result = toy.tool("diff", "data/demo/packed", "data/trial/packed")
    before, after = (
        toy.manifest("20_prepare_corpus", name)["output_digest"][:12] for name in ("demo", "trial")
    )
    assert lines(result.text) == [
        "same      stage, stage_version, tokenizer",
        f"differs   config.sequence_length_tokens 256 -> 128; input.corpus {before} -> {after}; 4 of 4 files",
    ]
    assert lines(toy.tool("diff", "data/demo/packed", "data/demo/packed").text) == [
        "same      stage, stage_version, tokenizer, all files",
        "differs   nothing",
    ]
    assert (
        "differs   stage 40_pack_dataset -> 60_prepare_sft"
        in toy.tool("diff", "data/demo/packed", "data/demo/sft").text
    )
    assert toy.tool("diff", "data/demo/packed", "config").code == 2


def test_gc(toy: Toy) -> None:
    shutil.rmtree(toy.folder(PACK))
    toy.killed(PACK, "40.committed", 1)
    assert "would remove 0 folders, 0.0 MB (add --yes)\n" in toy.tool("gc", "demo").text  # it can be resumed
    old = json.loads((toy.root / "data/demo/packed.partial/state.json").read_text())["key"][:12]
    toy.set(PACK, sequence_length_tokens=512)
    new = re.search(r"key (\w{12})", toy.run(PACK, "--dry-run").text)[1]
    result = toy.tool("gc", "demo")
    told = f"data/demo/packed.partial, abandoned build, key {old}, current {new}"
    assert lines(result.text) == [
        f"would remove 1 folder, 0.0 MB (add --yes): {told}",
        "never touched: sealed artifacts, raw sources, logs; .tampered folders are named, not removed",
    ]
    with exclusive(toy.workspace, "data/demo/packed", "held by the test"):
        assert toy.tool("gc", "demo", "--yes").code == 4  # somebody builds there
    assert toy.tool("gc", "demo", "--yes").text.startswith(f"removed 1 folder, 0.0 MB: {told}")
    assert not (toy.root / "data/demo/packed.partial").exists()
    (toy.root / "data/demo/packed.tampered").mkdir()
    assert "kept      data/demo/packed.tampered" in toy.tool("gc", "demo").text


def test_json(toy: Toy) -> None:
    toy.set(PACK, sequence_length_tokens=512)
    plan = json.loads(toy.tool("plan", "demo", "--json").text)
    assert plan[2]["stage"] == PACK and plan[2]["action"] == "run" and plan[0]["action"] == "up to date"
    status = json.loads(toy.tool("status", "demo", "--json").text)
    assert status[2]["verdict"] == "stale (config.sequence_length_tokens: 256 -> 512)"
    assert status[2]["output_digest"] == toy.digest(PACK)
    rows = json.loads(toy.tool("verify", "data/demo/packed", "--json").text)["rows"]
    assert [row["verdict"].split(" (")[0] for row in rows] == ["stale", "ok", "ok"]
    differs = json.loads(toy.tool("diff", "data/demo/packed", "data/demo/corpus", "--json").text)["differs"]
    assert differs[0] == "stage 40_pack_dataset -> 20_prepare_corpus"


# the graph


def refused(toy: Toy, *command: str) -> str:
    result = toy.tool(*command)
    assert result.code == 2, result.text
    return result.text


def test_profiles_that_are_no_graph(toy: Toy) -> None:
    assert 'there is no profile "demmo"\n  fix       profiles: demo' in refused(toy, "status", "demmo")
    assert 'this profile has no stage "40_pack"' in refused(toy, "run", "demo", "--to", "40_pack")
    toy.set("60_prepare_sft", output="data/demo/packed")
    text = refused(toy, "plan", "demo")
    assert (
        "config/demo/60_prepare_sft.json and config/demo/40_pack_dataset.json both write data/demo/packed"
        in text
    )
    toy.write_configs("demo")
    toy.set("20_prepare_corpus", output="data/demo/tokenizer")
    toy.set("30_train_tokenizer", output="data/demo/corpus", inputs={"corpus": "data/demo/corpus"})
    assert "these stages need each other: 30_train_tokenizer -> 30_train_tokenizer" in refused(
        toy, "run", "demo"
    )


def test_a_stage_without_a_config_is_no_part_of_the_profile(toy: Toy) -> None:
    (toy.root / "config/demo/100_evaluate.json").unlink()
    (toy.root / "config/demo/notes.json").write_text("{}")
    assert "8 stages: 8 up to date" in toy.tool("run", "demo").text


def test_the_order_is_by_need_not_by_number(toy: Toy) -> None:
    toy.set(PACK, inputs={"corpus": "data/demo/sft", "tokenizer": "data/demo/tokenizer"})
    order = [line.split("_")[0] for line in lines(toy.tool("plan", "demo").text)]
    assert order == ["20", "30", "60", "40", "50", "70", "100", "110", "120"]


def test_a_range_that_is_empty_is_refused(toy: Toy) -> None:
    result = toy.tool("run", "demo", "--from", "50_pretrain", "--to", "20_prepare_corpus")
    assert result.code == 2 and "--from 50_pretrain comes after --to 20_prepare_corpus" in result.text


def test_a_waived_change_is_listed_once_and_shown_as_allowed_everywhere(toy: Toy) -> None:
    toy.set("20_prepare_corpus", seed=5)
    assert toy.run("40_pack_dataset", "--allow-mismatch", "same text", "--force").code == 0
    waivers = toy.manifest("40_pack_dataset")["mismatches_allowed"]
    assert [waiver["component"] for waiver in waivers] == ["config.seed"]
    for command in (("verify", "data/demo/packed"), ("why", "data/demo/packed")):
        assert "allowed (stale config.seed of 20_prepare_corpus" in toy.tool(*command).text
