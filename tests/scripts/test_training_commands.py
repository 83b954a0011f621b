"""
The training commands that README and docs print: the launcher knows the flags, the files are there, and a
dry run of the shipped config says that it would train.
"""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from tests.chat.toy_chain import script
from tests.scripts import test_50_pretrain
from tests.scripts.test_50_pretrain import TOYS, run
from tools.pipeline import main as pipeline
from utils.pipeline.run import TRAINING_STAGES
from utils.pipeline.stage import execute
from utils.pipeline.workspace import STAGES, Workspace

ROOT = Path(__file__).resolve().parents[2]
STAGE_OF = {f"scripts/{stage}.py": stage for stage in TRAINING_STAGES}
LAUNCHER = ["-m", "accelerate.commands.launch"]


def training_commands() -> list[str]:
    """Every line of a shell block that trains: by a script, by a launcher, or through the pipeline by one."""
    text = "\n".join(path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if "--accelerate" in line or any(name in line for name in STAGE_OF)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The shipped config of stage 50, with toys where the demo profile has its tokenizer and its rows."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("commands")
    for name in ("accelerate", "architectures"):
        shutil.copytree(ROOT / "config" / name, root / "config" / name)
    (root / "config/demo").mkdir()
    shutil.copy(ROOT / "config/demo/50_pretrain.json", root / "config/demo")
    toys = {name: f"{test_50_pretrain.__name__}:{kind.__name__}" for name, (kind, _) in TOYS.items()}
    workspace = Workspace(root, dict(STAGES) | toys)
    tokenizer = "data/demo/tokenizer"
    assert run(workspace, "30_train_tokenizer", {"output": tokenizer}) == 0
    packed = {"output": "data/demo/packed", "inputs": {"tokenizer": tokenizer}}
    assert run(workspace, "40_pack_dataset", packed) == 0
    return workspace


def script_words(words: list[str]) -> list[str]:
    """A command from its script on, after the launcher before it was asked whether it understands."""
    if words[0] == "python":
        return words[1:]
    assert words[:2] == ["accelerate", "launch"], words
    asked = launch_command_parser().parse_args(words[2:])
    assert load_config_from_file(str(ROOT / asked.config_file)).num_processes >= 1
    return [asked.training_script, *asked.training_script_args]


def launched_by_the_pipeline(words: list[str], workspace: Workspace) -> list[str]:
    """The command by which stage 50 of the profile is started, which nobody starts here."""
    seen = []

    def launch(command: list[str], root: Path) -> int:
        seen.append(command[1:])
        return 4

    assert words[:2] == ["python", "tools/pipeline.py"]
    assert pipeline([*words[2:], "--from", "50_pretrain", "--to", "50_pretrain"], workspace, launch) == 4
    (command,) = seen
    assert command[:2] == LAUNCHER
    return ["accelerate", "launch", *command[2:]]


@pytest.mark.parametrize("command", training_commands())
def test_it_would_train(prepared: Workspace, capsys: pytest.CaptureFixture, command: str) -> None:
    words = shlex.split(command)
    if "--accelerate" in words:
        words = launched_by_the_pipeline(words, prepared)
    name, *arguments = script_words(words)
    stage = STAGE_OF[name]
    arguments = [str(prepared.path(each)) if each.endswith(".json") else each for each in arguments]
    config_class, main = prepared.config_class(stage), script(stage).main
    assert execute(stage, config_class, main, [*arguments, "--dry-run"], prepared) == 0
    assert "would build" in capsys.readouterr().out


def test_there_are_commands_of_each_kind() -> None:
    found = [" ".join(shlex.split(command)[:2]) for command in training_commands()]
    assert set(found) == {"python scripts/50_pretrain.py", "accelerate launch", "python tools/pipeline.py"}


def test_a_flag_that_the_launcher_does_not_know_is_noticed(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        script_words(
            shlex.split("accelerate launch --config-fiel x.yaml scripts/50_pretrain.py --config c.json")
        )
    with pytest.raises(FileNotFoundError):
        script_words(
            shlex.split("accelerate launch --config_file x.yaml scripts/50_pretrain.py --config c.json")
        )
