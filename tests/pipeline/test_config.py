"""Configs: strict reading, extends, secrets, and the view that enters the key (P13-P16)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ClassVar

import pytest

from tests.pipeline.toy import Toy
from tests.pipeline.toy_configs import (
    CLASSES,
    CorpusConfig,
    Executor,
    OneCorpus,
    PackConfig,
    PretrainConfig,
)
from utils.pipeline.config import (
    InputFolder,
    Neutral,
    Runtime,
    Secret,
    Section,
    StageConfig,
    input_folders,
    load_config,
    reveal,
    semantic_view,
    source_file,
    tagged_fields,
)
from utils.pipeline.errors import ConfigError
from utils.pipeline.workspace import Workspace

Load = Callable[..., object]


class Provider(Section):
    """One of several."""

    name: str
    key: Secret = ""
    weight: float = 1.0


class WideConfig(StageConfig):
    """Every kind of field."""

    stage: ClassVar[str] = "10_generate"

    inputs: OneCorpus = OneCorpus(corpus="")
    extra: list[InputFolder] = []
    providers: list[Provider] = []
    by_name: dict[str, Provider] = {}
    templates: list[Annotated[str, source_file("config/templates/{}.jinja")]] = []
    executor: Runtime[Executor] = Executor()
    added_later: Annotated[int, Neutral(0)] = 0
    ratio: float = 1.0


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Write files, load the first."""
    workspace = Workspace(tmp_path, {})

    def load(files: dict[str, object], config_class: type[StageConfig] = WideConfig) -> object:
        for name, document in files.items():
            path = tmp_path / "config" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(document if isinstance(document, str) else json.dumps(document))
        return load_config(Path("config") / next(iter(files)), config_class, workspace)

    return load


def refusal(load: Load, files: dict[str, object]) -> str:
    with pytest.raises(ConfigError) as caught:
        load(files)
    assert caught.value.exit_code == 2
    return str(caught.value)


# reading


def test_extends_merges_objects_and_replaces_lists(load: Load) -> None:
    base = {"output": "x", "executor": {"workers": 3}, "extra": ["a", "b"], "ratio": 2, "_note": "base"}
    middle = {"extends": "base.json", "ratio": 3}
    top = {"extends": "deep/middle.json", "executor": {}, "extra": ["c"], "_why": {"ratio": 9}}
    loaded = load({"top.json": top, "deep/middle.json": middle, "deep/base.json": base})
    assert (loaded.config.executor.workers, loaded.config.extra, loaded.config.ratio) == (3, ["c"], 3.0)
    assert loaded.resolved["executor"] == {"workers": 3}


def test_the_file_digest_covers_what_is_extended(load: Load) -> None:
    files = {"top.json": {"extends": "base.json"}, "base.json": {"output": "x"}}
    before = load(files)
    after = load(files | {"base.json": {"output": "x", "_c": ""}})
    assert before.sha256 != after.sha256 and before.semantic == after.semantic


def test_a_cycle_is_named(load: Load) -> None:
    files = {"a.json": {"extends": "b.json"}, "b.json": {"extends": "a.json"}}
    text = refusal(load, files)
    assert text == "config/a.json: extends itself: config/a.json -> config/b.json -> config/a.json"


@pytest.mark.parametrize(
    ("document", "part"),
    [
        ({"output": "x", "ratoi": 1}, 'config/a.json: unknown key "ratoi" (did you mean "ratio"?)'),
        (
            {"output": "x", "executor": {"wrokers": 1}},
            'unknown key "executor.wrokers" (did you mean "workers"?)',
        ),
        (
            {"output": "x", "providers": [{"name": "a", "nane": "b"}]},
            '"providers[0].nane" (did you mean "name"?)',
        ),
        ({"output": "x", "zzz": 1}, "(valid keys: output, inputs, extra, providers"),
        ({"output": "x", "ratio": "much"}, 'config/a.json: "ratio": input should be a valid number'),
        ({"output": "x", "ratio": "0.5"}, '"ratio": input should be a valid number, this is "0.5"'),
        (
            {"output": "x", "executor": {"workers": "3"}},
            '"executor.workers": input should be a valid integer',
        ),
        ({"output": "x", "executor": {"workers": 3.0}}, "this is 3.0"),
        ({"output": "x", "executor": {"workers": True}}, "this is true"),
        ({}, '"output": field required'),
        ({"output": "x", "ratio": "${HOME}"}, '"ratio"'),
        ({"output": "${HOME}/x"}, '"output": environment names are allowed in secret fields only'),
        ("[]", "a config is a JSON object, this is a list"),
        ("{", "not valid JSON"),
        ('{"output": "x", "output": "y"}', 'key "output" occurs twice'),
        ('{"output": "x", "ratio": NaN}', "NaN is not a JSON number"),
        ('{"output": "x", "ratio": Infinity}', "Infinity is not a JSON number"),
        ('{"output": "x", "ratio": 1e999}', '"ratio": input should be a finite number'),
        ({"extends": "gone.json"}, "config/gone.json: cannot be read (No such file or directory)"),
        ({"output": "x", "templates": ["gone"]}, "config/templates/gone.jinja: cannot be read"),
    ],
)
def test_what_is_refused(load: Load, document: object, part: str) -> None:
    def read(files: dict[str, object]) -> object:
        return load(files).semantic

    assert part in refusal(read, {"a.json": document})


def test_a_config_is_frozen(load: Load) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load({"a.json": {"output": "x"}}).config.ratio = 2.0


def test_secrets_are_read_late_and_written_never(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    providers = [{"name": "a", "key": "${TOY_KEY}"}, {"name": "b", "key": "sk-literal"}]
    loaded = load({"a.json": {"output": "x", "providers": providers, "by_name": {"c": providers[1]}}})
    assert [provider["key"] for provider in loaded.resolved["providers"]] == ["${TOY_KEY}", "<secret>"]
    assert "sk-literal" not in json.dumps(loaded.resolved) and "key" not in json.dumps(loaded.semantic)
    key = loaded.config.providers[0].key
    with pytest.raises(ConfigError, match="environment variable TOY_KEY is not set"):
        reveal(key)
    monkeypatch.setenv("TOY_KEY", "sk-from-environment")
    assert reveal(key) == "sk-from-environment" and reveal("plain") == "plain"


# the semantic view


def test_what_enters_the_key(load: Load) -> None:
    document = {
        "output": "x",
        "inputs": {"corpus": "c"},
        "extra": ["d", "e"],
        "ratio": 1,
        "executor": {"workers": 2},
    }
    document |= {"templates": ["plain"], "providers": [{"name": "a", "key": "k"}]}
    loaded = load({"a.json": document, "templates/plain.jinja": "hello"})
    assert loaded.semantic == {
        "providers": [{"name": "a", "weight": 1.0}],
        "by_name": {},
        "templates": ["2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"],
        "ratio": 1.0,
    }
    assert input_folders(loaded.config) == {"corpus": "c", "extra.0": "d", "extra.1": "e"}


def test_a_field_added_later_is_left_out_at_its_neutral_value(load: Load) -> None:
    assert "added_later" not in load({"a.json": {"output": "x", "added_later": 0}}).semantic
    assert load({"a.json": {"output": "x", "added_later": 1}}).semantic["added_later"] == 1


def test_input_roles(load: Load) -> None:
    toy = Workspace(Path("/nowhere"), {})
    data = [{"path": "a"}, {"path": "b"}]
    config = PretrainConfig.model_validate({"output": "x", "inputs": {"tokenizer": "t", "data": data}})
    assert input_folders(config) == {"tokenizer": "t", "data.0": "a", "data.1": "b"}
    assert semantic_view(config, toy)["inputs"] == {"data": [{"weight": 1.0}, {"weight": 1.0}]}


# the tags are proven (P16)

OTHER_VALUES = {
    "20_prepare_corpus": {
        "books": ["raw/books/?.txt"], "seed": 5, "rules.lowercase": True, "rules.banned": ["line 1"],
        "executor.workers": 7, "log_every": 3, "cut": 0.5, "api_key": "sk-other",
        "web": "d" * 40, "against": ["raw/books/0.txt"],
    },
    "40_pack_dataset": {"sequence_length_tokens": 8, "mode": "other", "executor.workers": 7},
}  # fmt: skip


def nested(path: str, value: object) -> dict:
    first, _, rest = path.partition(".")
    return {first: nested(rest, value) if rest else value}


@pytest.mark.parametrize(
    ("stage", "path"), [(stage, path) for stage, values in OTHER_VALUES.items() for path in values]
)
def test_each_field_is_what_its_tag_says(toy: Toy, stage: str, path: str) -> None:
    before = toy.digest(stage)
    toy.set(stage, **nested(path, OTHER_VALUES[stage][path]))
    config = CLASSES[stage].model_validate(json.loads((toy.root / f"config/demo/{stage}.json").read_text()))
    tags = {name.removesuffix("[0]"): tag for name, tag, _ in tagged_fields(config)}
    tag = tags.get(path) or tags.get(path.split(".")[0])
    status = toy.tool("status", "demo").text
    if tag and tag.kind in ("runtime", "secret"):
        assert "stale" not in status
        assert toy.run(stage, "--force").code == 0 and toy.digest(stage) == before
    else:
        assert f"config.{path}" in status
        assert f"stale (config.{path}" in toy.run(stage).text


def test_every_field_of_the_bitwise_toy_stages_was_changed() -> None:
    for config_class in (CorpusConfig, PackConfig):
        inputs = {"corpus": "c", "tokenizer": "t"}
        document = {"output": "x"} | ({"inputs": inputs} if "inputs" in config_class.model_fields else {})
        names = {path for path, tag, _ in tagged_fields(config_class.model_validate(document))}
        changed = {path.split(".")[0] for path in OTHER_VALUES[config_class.stage]}
        assert {name.split(".")[0].split("[")[0] for name in names} - {"output", "inputs"} == changed


def test_a_missing_parent_is_named_with_the_file_that_extends_it(load: Load) -> None:
    with pytest.raises(ConfigError) as caught:
        load({"top.json": {"extends": "gone.json"}})
    assert caught.value.fix == 'check "extends" in config/top.json'
